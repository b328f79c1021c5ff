// Judging pointers to code that the kernel will follow: one by one, and in tables of operations.
#pragma once

#include "lararium/detect/check.h"

#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace lararium::detect {

// How much a lawful module may do at the place.
enum class Trust : std::uint8_t {
  any_owner,     // whoever is known: drivers register timers, notifiers, protocols
  no_foreign,    // not a module from outside the kernel's tree (taint O or E): this is where rootkits hook
  kernel_or_own, // the kernel, or the module in whose memory the pointer stands
};

struct Handler {
  Gva at;           // where the pointer stands
  Gva target;       // where it leads
  std::string what; // "the ftrace handler of vfs_read"; begins the sentence, and is the finding's subject
  std::string_view technique = "T1014";
  Trust trust = Trust::any_owner;
  std::string note{}; // follows `what` in the sentence alone: what may differ from look to look
};

// Whether judge() would say nothing. Most pointers are lawful, and naming each costs more than looking at it.
[[nodiscard]] bool is_lawful(const Scene &scene, Gva at, Gva target, Trust trust);

// Reports a handler that leads to nobody's code, or to that of somebody who has no business there. Null is no handler;
// what leads to memory that no CPU can execute is none either, but a read that raced with the guest, or no pointer.
void judge(const Scene &scene, const Handler &handler, Findings &findings);

// A pointer to a table of operations. Tables are part of the kernel or of a module: one in memory that was allocated
// was made to stand in for another. One in a module from outside the kernel's tree is reported too, where that may not
// be.
struct TablePointer {
  Gva at, table;
  std::string what; // "the proc_ops of /proc/stat"; begins the sentence, and is the finding's subject
  std::string note{};
  bool foreign_may_own = false;
};
[[nodiscard]] bool lies_well(const Scene &scene, Gva table, bool foreign_may_own);
void judge_place(const Scene &scene, const TablePointer &pointer, Findings &findings);

// Judges tables of operations (struct file_operations and its like), each once in one look, however many objects share
// it. Where a table lies decides who may be in it: the kernel's own tables lead into the kernel alone; those of a
// module of the kernel's tree, and those in memory that was allocated, to no module from outside it; those of a module
// from outside may lead wherever code has an owner.
class OperationTables {
public:
  OperationTables(const Scene &scene, Findings &findings) : scene_(&scene), findings_(&findings) {}

  // Whether the table is one that was not judged yet; false once a guest shows more tables than can be.
  [[nodiscard]] bool is_new(Gva table);
  // `user` is who has the table, for people: "of /proc/stat"; may be empty.
  void judge(Gva table, std::string_view type, std::string_view user);
  // "proc_root_operations", else the address.
  [[nodiscard]] std::string name_of(Gva table) const;

private:
  struct Function {
    std::string_view name;
    std::uint32_t offset = 0;
  };
  struct Type {
    std::uint64_t size = 0;
    std::vector<Function> functions;
  };
  const Type &type_of(std::string_view name);

  const Scene *scene_;
  Findings *findings_;
  std::unordered_map<std::string, Type> types_;
  std::unordered_set<std::uint64_t> seen_;
  std::vector<std::byte> bytes_; // of the table at hand
};

// How many objects one look may visit, in sum over all its walks: a list can be crafted into each member of another.
class Budget {
public:
  explicit Budget(std::size_t objects) : left_(objects) {}
  [[nodiscard]] bool take() {
    if (left_ == 0)
      return false;
    --left_;
    return true;
  }
  [[nodiscard]] bool is_spent() const { return left_ == 0; }

private:
  std::size_t left_;
};

} // namespace lararium::detect
