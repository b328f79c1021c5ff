// Where a guest kernel's code lies, and whose it is: what a pointer to code may lead to.
#pragma once

#include "lararium/os/linux/kernel.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::linux_guest {

enum class CodeOwner : std::uint8_t {
  kernel,            // the image's text
  kernel_init,       // its text that is given free after boot: nothing may lead there
  module,            // a module that is in the list of modules
  module_init,       // its initialisation
  bpf,               // a BPF program or trampoline that the kernel lists in bpf_kallsyms
  ftrace_trampoline, // made for one ftrace_ops
  kprobe_slot,       // copied instructions of kprobes
};
[[nodiscard]] std::string_view name_of(CodeOwner owner);

struct CodeRange {
  Gva begin, end;
  CodeOwner owner = CodeOwner::kernel;
  std::string name; // of the module, program or probe; empty for the kernel
  bool operator==(const CodeRange &) const = default;
};

// Taken from the kernel's own lists in one look. Code that is in none of them has no owner, and that is the point.
class CodeMap {
public:
  [[nodiscard]] static CodeMap read(const Kernel &kernel);

  [[nodiscard]] const CodeRange *find(Gva address) const; // null: nobody's
  [[nodiscard]] const std::vector<CodeRange> &ranges() const { return ranges_; }
  [[nodiscard]] bool is_known(Gva address) const {
    const CodeRange *range = find(address);
    return range != nullptr && range->owner != CodeOwner::kernel_init;
  }
  // A list that could not be read to its end: what is missing here may be there.
  [[nodiscard]] bool complete() const { return complete_; }

private:
  void add(Gva begin, std::uint64_t size, CodeOwner owner, std::string name);
  void add_modules(const Kernel &kernel);
  void add_bpf(const Kernel &kernel);
  void add_ftrace(const Kernel &kernel);
  void add_kprobe_slots(const Kernel &kernel);

  std::vector<CodeRange> ranges_; // by begin
  bool complete_ = true;
};

} // namespace lararium::linux_guest
