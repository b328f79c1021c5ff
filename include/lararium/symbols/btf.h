// BTF, the kernel's compact type information: finding, checking and indexing it.
// Format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h in the kernel's tree, little-endian only.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"
#include "lararium/symbols/types.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace lararium {

inline constexpr std::size_t btf_size_limit = 64U << 20;    // vmlinux has 3 to 8 MiB
inline constexpr std::uint32_t btf_type_limit = 0x000fffff; // BTF_MAX_TYPE
inline constexpr std::size_t btf_name_limit = 1024;         // longer names count as none; KSYM_NAME_LEN is 512
inline constexpr std::uint32_t btf_member_limit = 0xffff;   // per type, more are not shown; task_struct has about 250
inline constexpr std::uint32_t btf_enumerator_limit = 1U << 20; // vmlinux has 20,000 to 40,000

struct FoundBtf {
  std::size_t offset = 0; // in the image
  std::vector<std::byte> bytes;
};

// The kernel's BTF in its image: by magic, then by a header whose lengths fit, then by a full check; of several the
// largest one. The image may be a live guest's memory: what is checked and returned is a copy. Fails with no_types.
[[nodiscard]] Result<FoundBtf> find_btf(Bytes image);

// Copies and checks the BTF of a kernel. `btf` may be longer than what it begins with.
[[nodiscard]] Result<std::shared_ptr<const Types>> parse_btf(Bytes btf);

// The same of a module, whose ids and string offsets go on where those of the kernel's end. `base_btf` is what `base`
// was made of and must live as long as `base` does (the profile that holds both: an aliasing shared_ptr).
[[nodiscard]] Result<std::shared_ptr<const Types>> parse_split_btf(Bytes btf, std::shared_ptr<const Types> base,
                                                                   Bytes base_btf);

// The parts, for who stores them: a profile keeps BTF and index in a file.

struct BtfSections {
  Bytes types, strings;
  Bytes layout;         // sizes of the entries of each kind; BTF made for Linux 7 and later, else empty
  std::size_t size = 0; // of the whole blob, header included
};
// Checks the header alone. Split BTF need not start its strings with the empty one.
[[nodiscard]] Result<BtfSections> btf_sections(Bytes btf, bool split = false);

// What a split BTF goes on from.
struct BtfBase {
  const Types *types = nullptr;
  Bytes strings;
};

struct BtfFlags {
  bool signed_enumerations = false; // enumerations say whether they are signed (Linux 6.0, 6089fb325cf7); else all are
  bool odd_integers = false;        // bit fields may be told by their integer type, as before Linux 4.21 (9d5f9f701b18)
};

struct BtfIndex {
  std::vector<std::uint32_t> offsets;     // where each type starts in the type section; of id 1 (or the first own) on
  std::vector<std::uint32_t> names;       // name_index of the own structures, unions, enumerations, typedefs: position
  std::vector<std::uint32_t> enumerators; // name_index of their enumerators: offset / 4 in the type section, two flags
  std::uint64_t seed = 0;
  BtfFlags flags;
};
// Checks every type, once, and indexes them.
[[nodiscard]] Result<BtfIndex> index_btf(const BtfSections &sections, std::uint64_t seed, const BtfBase &base = {});

struct BtfIndexView {
  std::span<const std::uint32_t> offsets, names, enumerators;
  std::uint64_t seed = 0;
  BtfFlags flags;
};

// Types on BTF and an index that lie elsewhere. Every access is checked again, because both may come from a file: what
// contradicts itself yields nothing, never a read outside.
class BtfTypes final : public Types {
public:
  BtfTypes() = default;
  BtfTypes(const BtfSections &sections, const BtfIndexView &index, const BtfBase &base = {})
      : sections_(sections), index_(index), base_(base), base_count_(base.types == nullptr ? 0 : base.types->count()) {}

  [[nodiscard]] std::uint32_t count() const override;
  [[nodiscard]] std::optional<TypeInfo> info(TypeId id) const override;
  [[nodiscard]] std::vector<MemberInfo> members(TypeId id) const override;
  [[nodiscard]] std::vector<MemberInfo> members_for(TypeId id, std::string_view name) const override;
  [[nodiscard]] std::vector<Enumerator> enumerators(TypeId id) const override;
  [[nodiscard]] std::optional<TypeId> find(std::string_view name) const override;
  [[nodiscard]] std::optional<std::int64_t> enumerator(std::string_view name) const override;

private:
  struct Record;
  [[nodiscard]] std::optional<Record> record(TypeId id) const;
  [[nodiscard]] std::string_view text(std::uint32_t offset) const;
  template <class Wanted> [[nodiscard]] std::vector<MemberInfo> collect_members(TypeId id, Wanted &&wanted) const;

  BtfSections sections_;
  BtfIndexView index_;
  BtfBase base_;
  std::uint32_t base_count_ = 0;
};

} // namespace lararium
