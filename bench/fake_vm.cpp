#include "fake_vm.h"

#include "lararium/base/unique_fd.h"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace lararium::bench {
namespace {

constexpr std::uint64_t entries_per_table = 512;
constexpr std::uint64_t present_writable = 0x3;

void put_entry(std::byte *ram, std::uint64_t table, std::uint64_t index, std::uint64_t target) {
  const std::uint64_t value = target | present_writable;
  std::memcpy(ram + table + 8 * index, &value, sizeof value);
}

// Four levels that map all of RAM at FakeVm::direct_map; the tables take RAM's end. Gives the top table's address.
std::uint64_t write_page_tables(std::byte *ram, std::uint64_t size) {
  std::uint64_t next = size;
  const auto new_table = [&] {
    next -= page_size;
    std::memset(ram + next, 0, page_size);
    return next;
  };
  const std::uint64_t top = new_table(), upper = new_table();
  put_entry(ram, top, FakeVm::direct_map.value >> 39 & (entries_per_table - 1), upper);
  std::uint64_t middle = 0, lowest = 0;
  for (std::uint64_t page = 0; page < size / page_size; ++page) {
    const std::uint64_t lowest_number = page / entries_per_table;
    if (page % (entries_per_table * entries_per_table) == 0) {
      middle = new_table();
      put_entry(ram, upper, lowest_number / entries_per_table, middle);
    }
    if (page % entries_per_table == 0) {
      lowest = new_table();
      put_entry(ram, middle, lowest_number % entries_per_table, lowest);
    }
    put_entry(ram, lowest, page % entries_per_table, page * page_size);
  }
  return top;
}

} // namespace

Result<std::unique_ptr<FakeVm>> FakeVm::start(Backend backend, std::uint64_t size) {
  const UniqueFd file(backend == Backend::shared ? ::memfd_create("ram", MFD_CLOEXEC) : -1);
  if (backend == Backend::shared && (!file || ::ftruncate(file.get(), static_cast<off_t>(size)) != 0))
    return fail_errno("cannot make RAM", errno);
  const int flags = backend == Backend::shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
  void *data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, file.get(), 0);
  if (data == MAP_FAILED)
    return fail_errno("cannot map RAM", errno);
  auto *const ram = static_cast<std::byte *>(data);
  std::memset(ram, 0x5a, size);
  const std::uint64_t top = write_page_tables(ram, size);

  const pid_t child = ::fork();
  if (child < 0)
    return fail_errno("cannot fork", errno);
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;)
      ::pause();
  }
  std::unique_ptr<FakeVm> vm(new FakeVm(child, ram, size));
  vm->root_ = {.table = Gpa{top}, .levels = 4};
  TRY_ASSIGN(const auto process, qemu::Process::open(child));
  TRY_ASSIGN(vm->memory_,
             qemu::QemuMemory::open(process, {{Gpa{0}, size, Hva{reinterpret_cast<std::uint64_t>(ram)}, "ram"}}));
  return vm;
}

FakeVm::~FakeVm() {
  ::kill(child_, SIGKILL);
  ::waitpid(child_, nullptr, 0);
  ::munmap(own_view_, size_);
}

} // namespace lararium::bench
