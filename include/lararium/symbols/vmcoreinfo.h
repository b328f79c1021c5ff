// VMCOREINFO: what a Linux kernel tells crash dump tools about itself, as lines of text
// ("SYMBOL(_stext)=ffffffff8..."), see Documentation/admin-guide/kdump/vmcoreinfo.rst. It is in the guest's memory from
// boot on, and in dumps.
#pragma once

#include "lararium/base/address.h"
#include "lararium/base/bytes.h"
#include "lararium/base/result.h"
#include "lararium/symbols/build_id.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lararium {

// Holds the text; it has about 150 lines, so that a look-up walks over them. What a line says is the guest's word:
// nothing of it is verified here but its form.
class Vmcoreinfo {
public:
  static constexpr std::size_t max_text = 64 * 1024; // the kernel uses one page at most
  static constexpr std::size_t max_lines = 4096;

  // Refuses what is not plausible: a first line "OSRELEASE=" and a release, PAGESIZE a power of two, at least three
  // symbols with addresses, and only lines "key=value" of printable text. The text ends at a NUL, or where it ends.
  [[nodiscard]] static Result<Vmcoreinfo> parse(std::string_view text);
  // The same of memory that starts with the text, or with an ELF note that holds it. The memory may be changing.
  [[nodiscard]] static Result<Vmcoreinfo> read(Bytes memory);

  [[nodiscard]] std::string_view text() const { return text_; }

  [[nodiscard]] std::string_view release() const;                   // OSRELEASE, as uname -r prints it
  [[nodiscard]] std::optional<BuildId> build_id() const;            // from 5.9 on (0935288c6e00)
  [[nodiscard]] std::uint64_t guest_page_size() const;              // PAGESIZE
  [[nodiscard]] std::optional<std::uint64_t> kernel_offset() const; // KERNELOFFSET: by how much KASLR moved the image
  [[nodiscard]] std::optional<std::int64_t> crash_time() const;     // CRASHTIME: only after a panic
  [[nodiscard]] std::optional<Gva> symbol(std::string_view name) const;             // SYMBOL(name)
  [[nodiscard]] std::optional<std::uint64_t> size(std::string_view type) const;     // SIZE(type)
  [[nodiscard]] std::optional<std::uint64_t> offset(std::string_view member) const; // OFFSET(type.member)
  [[nodiscard]] std::optional<std::uint64_t> length(std::string_view name) const;   // LENGTH(name)
  // NUMBER(name): printed as a signed or an unsigned decimal or in hexadecimal with 0x; here its 64 bits.
  [[nodiscard]] std::optional<std::uint64_t> number(std::string_view name) const;
  // The value of any line, by all that is before its "="; the first where there are several.
  [[nodiscard]] std::optional<std::string_view> value(std::string_view key) const;

private:
  explicit Vmcoreinfo(std::string text) : text_(std::move(text)) {}
  [[nodiscard]] std::optional<std::string_view> value(std::string_view kind, std::string_view name) const;

  std::string text_;
};

// Whether memory starts like a VMCOREINFO: the offset of its text, 0, or 24 where it is in an ELF note. `head` is the
// start of a page, 64 bytes do: from 4.13 on (203e9e41219b) the kernel keeps the text at the start of a page of its
// own, and the note (a copy for the crash kernel) at the start of others; before, both lay anywhere in .bss. A search
// through all of memory compares 8 bytes a page this way; what it finds may be a stale copy, or planted.
[[nodiscard]] std::optional<std::size_t> vmcoreinfo_text_offset(Bytes head);

} // namespace lararium
