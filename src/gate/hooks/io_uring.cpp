// Rings of io_uring that are made.
#include "lararium/gate/hook.h"

#include <fmt/format.h>

namespace lararium::gate {
namespace {

// The file of a new ring is an anonymous inode's, with the operations of io_uring: the second argument. Which function
// makes it differs: anon_inode_getfile() before 5.17 (91a9ab7c942a) and anon_inode_getfile_secure() until 6.8
// (4f0b9194bc11), then anon_inode_create_getfile(). They give an error as a pointer.
Result<std::vector<HookPoint>> points(const linux_guest::Kernel &kernel) {
  const auto operations = kernel.symbol("io_uring_fops");
  if (!operations)
    return fail(ErrorCode::unsupported, "the kernel does not have io_uring");
  std::vector<HookPoint> functions;
  const ArgumentFilter filter{2, ~std::uint64_t{0}, operations->value, operations->value};
  for (const char *name : {"anon_inode_getfile", "anon_inode_getfile_secure", "anon_inode_create_getfile"})
    functions.push_back({name, filter});
  return points_at(kernel, std::move(functions));
}

Meaning tell(const CallReader & /*reader*/, const HookedCall & /*call*/) { return {"sets up an io_uring"}; }

LARARIUM_HOOK(
    io_uring_hook, "io_uring", "a process sets up an io_uring",
    "io_uring_setup(2). What a ring is used for afterwards makes no system calls, but is seen by the other hooks: "
    "open, connect, and so on.",
    true, points, tell)

} // namespace
} // namespace lararium::gate
