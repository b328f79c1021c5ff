// A kernel's text and read-only data beside those of the file it was booted from. What the kernel changes in them at
// boot and later stands in tables of the file: alternatives, paravirt calls, retpolines, return and call sites, sealed
// endbr64, lock prefixes, jump labels, static calls, places for tracers. Each such place must hold one of the things
// that it can hold; everywhere else the bytes are the same, but for addresses, which move with the kernel (KASLR).
//
// The same holds for a module beside its file, once that is relocated as the kernel relocated it.
//
// Layouts: arch/x86/include/asm/alternative.h, paravirt_types.h; arch/x86/kernel/alternative.c. The size of struct
// alt_instr changed (23c1ad538f4f, 5.13; 5d1dd961e743, 6.3), and is taken from the guest's types.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/os/linux/code_sites.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/symbols/kernel_file.h"
#include "lararium/symbols/relocated_module.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace lararium::detect {

class ReferenceText {
public:
  struct Difference {
    Gva at;
    Bytes expected, found; // of the same length; the file's bytes, as linked
    bool is_code = false;
  };
  using Give = std::function<void(const Difference &)>;

  // The places that the file's tables name. `file` must outlive the object. Fails with `usage` where it is of another
  // build, and with `not_found` where the guest's symbols or types do not say what is needed.
  [[nodiscard]] static Result<ReferenceText> create(const KernelFile &file, const linux_guest::Kernel &kernel);

  struct Range {
    std::uint64_t begin = 0, end = 0;
  };
  // Of a module in the same kernel: its code and read-only data that are to be compared. `module` must outlive the
  // object. What stands at places that are unknown() is not compared.
  [[nodiscard]] static Result<ReferenceText> of_module(const RelocatedModule &module, std::vector<Range> code,
                                                       std::vector<Range> data, const linux_guest::Kernel &kernel);

  // `now` says what is probed, and what is being changed at this moment.
  void look(const linux_guest::Kernel &kernel, const linux_guest::CodeSites &now, const Give &give) const;

private:
  enum class Kind : std::uint8_t {
    alternative,
    paravirt,
    retpoline,
    ret,
    call,
    endbr,
    lock,
    tracer,
    static_call,
    jump_label,
    trampoline,
    constant,
    unknown
  };
  struct Site {
    std::uint64_t at = 0; // as linked
    std::uint8_t length = 0;
    Kind kind{};
    std::uint64_t other = 0; // alternative: the replacement; jump label: the target; constant: its value
    std::uint8_t other_length = 0;
  };

  struct Table {
    std::uint64_t address = 0;
    Bytes content;
  };
  ReferenceText(const LinkedSections &file, std::uint64_t slide) : file_(&file), slide_(slide) {}
  void add_sites_of_sections(const linux_guest::Kernel &kernel);
  void add_relative(std::string_view section, std::uint8_t length, Kind kind);
  void add_alternatives(const linux_guest::Kernel &kernel);
  void add_paravirt();
  void add_constants(const linux_guest::Kernel &kernel);
  void add_tables_of_image(const linux_guest::Kernel &kernel);
  void add_tracers(const Table &table);
  void add_static_calls(const Table &table);
  void add_jump_labels(const Table &table, const linux_guest::Kernel &kernel);
  void order_sites();
  [[nodiscard]] std::uint64_t linked(Gva address) const { return address.value - slide_; }
  [[nodiscard]] Gva here(std::uint64_t address) const { return Gva{address + slide_}; }
  [[nodiscard]] bool is_text(Gva address) const {
    return linked(address) >= kernel_text_.begin && linked(address) < kernel_text_.end;
  }
  void compare(std::uint64_t begin, Bytes expected, Bytes found, bool is_code, bool has_texts,
               const linux_guest::CodeSites &now, const Give &give) const;
  // Past the place that covers `at` and holds what it may; `at` where there is none.
  [[nodiscard]] std::uint64_t past_site(std::uint64_t at, std::uint64_t begin, Bytes found,
                                        const linux_guest::CodeSites &now) const;
  [[nodiscard]] bool is_lawful(const Site &site, Bytes found) const;
  [[nodiscard]] bool is_lawful_branch(Bytes found, std::uint64_t low, std::uint64_t high, std::uint64_t site) const;

  const LinkedSections *file_;
  std::uint64_t slide_; // of the guest's addresses from those of the file
  bool is_image_ = false;
  Range kernel_text_;       // where thunks are, whosever code this is
  std::vector<Range> code_; // that is compared
  std::vector<Range> data_; // read-only from the beginning
  std::vector<Site> sites_; // by address
  std::optional<Gva> return_thunk_;
};

// Whether the four bytes around a difference at `at` are the lower half of the same address in the image, moved by
// `slide`; or a distance to what belongs to a CPU, which moves the other way (until 6.15). `past` is then behind them.
// Where it is not `is_code`, letters are neither.
[[nodiscard]] bool is_moved_address(Bytes expected, Bytes found, std::size_t at, std::uint32_t slide, std::size_t &past,
                                    bool is_code);

// Whether two pieces of code do the same: the same instructions, less nops, that lead to and use the same places.
// `slide`: by how much constant addresses in `found` may have moved. A jump to `return_thunk` is a return.
[[nodiscard]] bool is_same_code(Bytes expected, Gva expected_at, Bytes found, Gva found_at, std::uint32_t slide,
                                std::optional<Gva> return_thunk = {});

} // namespace lararium::detect
