// Operations of files, folders and file systems: of every inode and open file in memory. This is where files and
// folders are hidden, by a change of the table that a file system's files share or by a table of one's own for a single
// folder.

#include "handler.h"
#include "lararium/os/linux/fdtable.h"
#include "lararium/os/linux/list.h"
#include "lararium/os/linux/paths.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fmt/format.h>
#include <optional>
#include <unordered_set>
#include <vector>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

// A server's cache can hold millions of inodes. Of each file system the oldest are looked at (its root, what was there
// at boot), and the newest. An inode takes about a microsecond.
constexpr std::size_t inode_limit = 1 << 17, old_inodes = 1 << 15, new_inodes = 1 << 13;
constexpr std::size_t file_system_limit = 1 << 14, file_limit = 1 << 18;
constexpr std::uint64_t type_mask = 0170000, folder_type = 0040000, file_type = 0100000, link_type = 0120000;
constexpr std::uint64_t inode_part_limit = 1024;

// Here modules of every origin make files with operations of theirs; those of anon_inodefs are regular ones in newer
// kernels.
constexpr std::array shared_file_systems = {"debugfs", "tracefs", "securityfs", "configfs", "anon_inodefs"};

struct Layout {
  FieldLocation super_list, super_type, super_operations, super_root, super_inodes;
  FieldLocation inode_mode, inode_operations, inode_file_operations, inode_mapping, inode_list, inode_super;
  FieldLocation mapping_operations, dentry_inode, dentry_operations, file_inode, file_operations, type_name;
  std::optional<FieldLocation> super_dentry_operations, inode_aliases, dentry_alias;

  static Result<Layout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    Layout f;
    f.super_list = layout.require("super_block", "s_list");
    f.super_type = layout.require("super_block", "s_type");
    f.super_operations = layout.require("super_block", "s_op");
    f.super_root = layout.require("super_block", "s_root");
    f.super_inodes = layout.require("super_block", "s_inodes");
    f.inode_mode = layout.require("inode", "i_mode");
    f.inode_operations = layout.require("inode", "i_op");
    f.inode_file_operations = layout.require("inode", "i_fop");
    f.inode_mapping = layout.require("inode", "i_mapping");
    f.inode_list = layout.require("inode", "i_sb_list");
    f.inode_super = layout.require("inode", "i_sb");
    f.mapping_operations = layout.require("address_space", "a_ops");
    f.dentry_inode = layout.require("dentry", "d_inode");
    f.dentry_operations = layout.require("dentry", "d_op");
    f.file_inode = layout.require("file", "f_inode");
    f.file_operations = layout.require("file", "f_op");
    f.type_name = layout.require("file_system_type", "name");
    f.super_dentry_operations = layout.optional_any("super_block", {"__s_d_op", "s_d_op"}); // renamed in 6.17
    f.inode_aliases = layout.optional("inode", "i_dentry.first");
    f.dentry_alias = layout.optional_any("dentry", {"d_u.d_alias", "d_alias"});
    TRY(layout.check());
    return f;
  }
};

class FileLook {
public:
  FileLook(const Scene &scene, Findings &findings, const Layout &layout)
      : scene_(scene), kernel_(scene.kernel()), findings_(findings), tables_(scene, findings), f_(layout) {
    std::uint64_t end = 0;
    for (const FieldLocation *field : {&f_.inode_mode, &f_.inode_operations, &f_.inode_file_operations,
                                       &f_.inode_mapping, &f_.inode_list, &f_.inode_super})
      end = std::max<std::uint64_t>(end, field->offset + std::max<std::uint64_t>(field->size, 16));
    part_.resize(std::min(end, inode_part_limit));
    is_readable_ = end <= inode_part_limit;
    if (auto paths = linux_guest::PathResolver::create(kernel_))
      paths_ = std::move(*paths);
  }

  Result<void> look() {
    const auto supers = kernel_.symbol("super_blocks");
    if (!supers)
      return fail(ErrorCode::not_found, "the kernel has no symbol super_blocks");
    if (!is_readable_)
      return fail(ErrorCode::no_types, "the kernel's inodes are larger than any");
    linux_guest::walk_list(kernel_, *supers, file_system_limit, [&](Gva link) {
      look_at_file_system(link - f_.super_list.offset);
      return !inodes_.is_spent();
    });
    ViewStatus status;
    return linux_guest::for_each_open_file(
        kernel_, status, [&](const linux_guest::DescriptorHolder &, const linux_guest::FileDescriptor &descriptor) {
          look_at_file(descriptor.file);
          return files_.take();
        });
  }

private:
  // What an inode's file system decides.
  struct Owner {
    Gva type;           // its struct file_system_type
    std::string module; // that brings it; empty: the kernel
    std::string name;
    bool is_shared = false;
  };

  const Owner &owner_of(Gva super) {
    const Gva type = kernel_.read_pointer(super, f_.super_type).value_or(Gva{});
    // Inodes come in rows of one file system.
    for (std::size_t i = owners_.size(); i-- > 0;)
      if (owners_[i].type == type)
        return owners_[i];
    constexpr std::size_t owner_limit = 1024;
    if (owners_.size() >= owner_limit)
      owners_.clear();
    const auto name = type ? kernel_.read_pointer(type, f_.type_name) : std::nullopt;
    Owner owner{type, scene_.module_at(type), name ? kernel_.space().read_c_string(*name, 32).value_or("?") : "?"};
    owner.is_shared = std::ranges::find(shared_file_systems, owner.name) != shared_file_systems.end();
    owners_.push_back(std::move(owner));
    return owners_.back();
  }

  void look_at_file_system(Gva super) {
    const Owner owner = owner_of(super);
    const std::string of = fmt::format("of a {} file system", owner.name);
    look_at_table(owner, super, f_.super_operations, "super_operations", false, [&] { return of; });
    if (f_.super_dentry_operations)
      look_at_table(owner, super, *f_.super_dentry_operations, "dentry_operations", false, [&] { return of; });
    if (const auto root = kernel_.read_pointer(super, f_.super_root); root && kernel_.is_kernel_address(*root)) {
      look_at_table(owner, *root, f_.dentry_operations, "dentry_operations", false, [&] { return of; });
      if (const auto inode = kernel_.read_pointer(*root, f_.dentry_inode); inode && kernel_.is_kernel_address(*inode))
        if (read_inode(*inode))
          look_at_inode(*inode, owner);
    }
    const Gva head = super + f_.super_inodes.offset;
    if (!walk_inodes(head, 8, old_inodes, owner)) // from the oldest
      walk_inodes(head, 0, new_inodes, owner);
  }

  // False: not all were seen. An inode that is removed meanwhile leads to itself.
  bool walk_inodes(Gva head, std::uint64_t link, std::size_t limit, const Owner &owner) {
    auto node = kernel_.read_pointer(head + link);
    for (std::size_t count = 0; count < limit; ++count) {
      if (!node || !kernel_.is_kernel_address(*node))
        return false;
      if (*node == head)
        return true;
      const Gva inode = *node - f_.inode_list.offset;
      if (!inodes_.take() || !read_inode(inode))
        return false;
      const Gva next = in_part(f_.inode_list.offset + link);
      look_at_inode(inode, owner);
      if (next == *node)
        return false;
      node = next;
    }
    return false;
  }

  // The part of the inode that matters, with one read.
  bool read_inode(Gva inode) { return kernel_.space().read(inode, part_); }
  [[nodiscard]] Gva in_part(std::uint64_t offset) const {
    Gva value;
    std::memcpy(&value.value, part_.data() + offset, sizeof(value.value));
    return value;
  }

  // Of the inode that was read last.
  void look_at_inode(Gva inode, const Owner &owner) {
    std::uint16_t mode = 0;
    std::memcpy(&mode, part_.data() + f_.inode_mode.offset, sizeof(mode));
    const Gva operations = in_part(f_.inode_operations.offset), mapping = in_part(f_.inode_mapping.offset);
    const Gva file_operations = in_part(f_.inode_file_operations.offset);
    const auto user = [&] { return name_of(inode, owner); };
    const bool may = may_be_foreign(mode, owner);
    if (is_new(operations, owner, may))
      look_at_table(owner, inode, f_.inode_operations, "inode_operations", may, user);
    if (is_new(file_operations, owner, may))
      look_at_table(owner, inode, f_.inode_file_operations, "file_operations", may, user);
    if (mapping && kernel_.is_kernel_address(mapping))
      if (const auto table = kernel_.read_pointer(mapping, f_.mapping_operations); table && is_new(*table, owner, may))
        look_at_table(owner, mapping, f_.mapping_operations, "address_space_operations", may, user);
  }

  void look_at_file(Gva file) {
    const auto table = kernel_.read_pointer(file, f_.file_operations),
               inode = kernel_.read_pointer(file, f_.file_inode);
    if (!table || !inode || !kernel_.is_kernel_address(*inode) || !read_inode(*inode))
      return;
    const Owner owner = owner_of(in_part(f_.inode_super.offset));
    look_at_inode(*inode, owner);
    std::uint16_t mode = 0;
    std::memcpy(&mode, part_.data() + f_.inode_mode.offset, sizeof(mode));
    // Drivers bring the operations of their devices, and of what they give out by other ways; some copy a table into
    // memory of their own to change a member (sound), and debugfs does so for all of its files.
    const std::uint16_t type = mode & type_mask;
    const bool is_plain = (type == file_type || type == folder_type) && !owner.is_shared;
    if (!is_new(*table, owner, !is_plain))
      return;
    if (is_plain)
      look_at_table(owner, file, f_.file_operations, "file_operations", false, [&] { return name_of(*inode, owner); });
    else if (tables_.is_new(*table))
      tables_.judge(*table, "file_operations", name_of(*inode, owner));
  }

  static bool may_be_foreign(std::uint16_t mode, const Owner &owner) {
    const std::uint16_t type = mode & type_mask;
    if (type == file_type)
      return owner.is_shared;
    return type != folder_type && type != link_type;
  }

  // Whether the table was met with such an owner before: nearly all objects share their tables.
  bool is_new(Gva table, const Owner &owner, bool may_be_foreign) {
    if (!table || met_.size() >= met_limit)
      return false;
    return met_.insert({table, owner.type, may_be_foreign}).second;
  }

  template <class User>
  void look_at_table(const Owner &owner, Gva object, const FieldLocation &member, std::string_view type,
                     bool may_be_foreign, User &&user) {
    const auto table = kernel_.read_pointer(object, member);
    if (!table || !kernel_.is_kernel_address(*table))
      return;
    if (tables_.is_new(*table))
      tables_.judge(*table, type, user());
    const bool may = may_be_foreign || (!owner.module.empty() && scene_.module_at(*table) == owner.module);
    if (lies_well(scene_, *table, may))
      return;
    if (findings_.is_full())
      findings_.leave_out();
    else
      judge_place(scene_,
                  {.at = object + member.offset,
                   .table = *table,
                   .what = fmt::format("the {} at {:#x}", type, table->value), // others may have it too
                   .note = user(),
                   .foreign_may_own = may},
                  findings_);
  }

  // "of /etc (ext4)", as its file system names it.
  std::string name_of(Gva inode, const Owner &owner) const {
    if (paths_ && f_.inode_aliases && f_.dentry_alias)
      if (const auto alias = kernel_.read_pointer(inode, *f_.inode_aliases); alias && kernel_.is_kernel_address(*alias))
        if (const auto path = paths_->within_filesystem(*alias - f_.dentry_alias->offset))
          return fmt::format("of {} ({})", path->text, owner.name);
    return fmt::format("of a file ({})", owner.name);
  }

  struct Met {
    Gva table, type;
    bool may_be_foreign = false;
    bool operator==(const Met &) const = default;
  };
  struct MetHash {
    std::size_t operator()(const Met &met) const {
      return std::hash<std::uint64_t>{}(met.table.value ^ met.type.value << 1 ^ (met.may_be_foreign ? 1 : 0));
    }
  };
  static constexpr std::size_t met_limit = 1 << 14;

  const Scene &scene_;
  const Kernel &kernel_;
  Findings &findings_;
  OperationTables tables_;
  const Layout &f_;
  std::optional<linux_guest::PathResolver> paths_;
  Budget inodes_{inode_limit}, files_{file_limit};
  std::vector<std::byte> part_;
  bool is_readable_ = false;
  std::vector<Owner> owners_;
  std::unordered_set<Met, MetHash> met_;
};

class FileOperations final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    TRY_ASSIGN(const auto layout, scene.kernel().layout<Layout>());
    return FileLook(scene, findings, *layout).look();
  }
};

LARARIUM_CHECK(
    FileOperations, "file_operations", "T1014 T1564.001", "operations of files, folders and file systems",
    "The tables of operations of every inode and open file in memory are judged by where they lie: the kernel's "
    "own must lead into the kernel, and none may lie in allocated memory. Those of files, folders and links "
    "must be of the kernel, of its modules, or of the module that brings the file system. Of a file system "
    "with more than 40,000 inodes in memory those in between are not seen.")

} // namespace
} // namespace lararium::detect
