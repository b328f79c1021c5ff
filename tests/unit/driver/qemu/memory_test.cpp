#include "lararium/driver/qemu/memory.h"

#include <array>
#include <cstring>
#include <gtest/gtest.h>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>

namespace lararium::qemu {
namespace {

constexpr std::size_t length = 64 * page_size;

// Memory of this very process, which the driver reads as it would a QEMU's.
class Area {
public:
  explicit Area(bool shared) {
    if (shared) {
      file_.reset(::memfd_create("memory-backend-memfd", MFD_CLOEXEC));
      EXPECT_EQ(::ftruncate(file_.get(), length), 0);
    }
    data_ = static_cast<std::byte *>(::mmap(nullptr, length, PROT_READ | PROT_WRITE,
                                            shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, file_.get(), 0));
    EXPECT_NE(data_, MAP_FAILED);
  }
  Area(const Area &) = delete;
  Area &operator=(const Area &) = delete;
  ~Area() { ::munmap(data_, length); }
  std::byte *data() const { return data_; }
  Hva host(std::size_t offset = 0) const { return Hva{reinterpret_cast<std::uintptr_t>(data_) + offset}; }

private:
  UniqueFd file_;
  std::byte *data_;
};

std::unique_ptr<QemuMemory> open_memory(std::vector<GuestRegion> regions) {
  const auto self = Process::open(::getpid());
  EXPECT_TRUE(self);
  auto memory = QemuMemory::open(*self, std::move(regions));
  EXPECT_TRUE(memory) << memory.error().describe();
  return memory ? std::move(*memory) : nullptr;
}

std::string text_at(const PhysicalMemory &memory, Gpa address, std::size_t size) {
  std::string text(size, '\0');
  EXPECT_TRUE(memory.read(address, std::as_writable_bytes(std::span(text))));
  return text;
}

TEST(QemuMemory, SharedMemoryIsMapped) {
  const Area area(true);
  std::memcpy(area.data() + 10 * page_size - 2, "across", 6);
  // The hole below 4 GiB: the block's second half lies elsewhere in guest-physical space.
  const auto memory = open_memory({{Gpa{0}, 10 * page_size, area.host(), "ram"},
                                   {Gpa{1ULL << 32}, length - 10 * page_size, area.host(10 * page_size), "ram"}});
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(memory->access(), "mapped (memfd)");
  EXPECT_EQ(text_at(*memory, Gpa{10 * page_size - 2}, 2), "ac");
  EXPECT_EQ(text_at(*memory, Gpa{1ULL << 32}, 4), "ross");
  EXPECT_EQ(memory->view(Gpa{1ULL << 32}).size(), length - 10 * page_size);
  std::byte byte;
  EXPECT_FALSE(memory->read(Gpa{10 * page_size}, {&byte, 1}));
  EXPECT_EQ(memory->host_address(Gpa{(1ULL << 32) + 5}), area.host(10 * page_size + 5));

  // Only what was touched holds data; page 9 and 10 lie apart in the guest.
  const auto runs = memory->populated(Gpa{0}, UINT64_MAX);
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].base, Gpa{9 * page_size});
  EXPECT_EQ(runs[0].size, page_size);
  EXPECT_EQ(runs[1].base, Gpa{1ULL << 32});
}

TEST(QemuMemory, PrivateMemoryIsReadThroughACacheThatRefreshEmpties) {
  const Area area(false);
  std::memcpy(area.data() + page_size - 3, "before", 6);
  const auto memory = open_memory({{Gpa{0x100000}, length, area.host(), "pc.ram"}});
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(memory->access(), "process_vm_readv (private memory)");
  const Gpa address = Gpa{0x100000} + (page_size - 3);
  EXPECT_EQ(text_at(*memory, address, 6), "before");
  std::memcpy(area.data() + page_size - 3, "after!", 6);
  EXPECT_EQ(text_at(*memory, address, 6), "before");
  memory->refresh();
  EXPECT_EQ(text_at(*memory, address, 6), "after!");

  std::vector<std::byte> all(length);
  EXPECT_TRUE(memory->read(Gpa{0x100000}, all));
  EXPECT_EQ(std::memcmp(all.data(), area.data(), length), 0);
  EXPECT_FALSE(memory->read(Gpa{0x100000} + 1, all));
  EXPECT_FALSE(memory->read(Gpa{0xfffff}, std::span(all).first(1)));
}

// More pages than the cache has room for, some of them more than once, one outside: what is read is right in any case.
TEST(QemuMemory, ExpectedPagesOfPrivateMemoryComeTogether) {
  constexpr std::size_t pages = 3000;
  auto *const data = static_cast<std::byte *>(
      ::mmap(nullptr, pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(data, MAP_FAILED);
  const auto write_all = [&](std::uint32_t salt) {
    for (std::uint32_t page = 0; page < pages; page++) {
      const std::uint32_t value = page + salt;
      std::memcpy(data + page * page_size + 8, &value, sizeof value);
    }
  };
  const Gpa base{0x100000};
  const auto memory = open_memory({{base, pages * page_size, Hva{reinterpret_cast<std::uintptr_t>(data)}, "pc.ram"}});
  ASSERT_NE(memory, nullptr);
  const auto value_at = [&](std::uint32_t page) {
    std::uint32_t value = 0;
    EXPECT_TRUE(memory->read(base + page * page_size + 8, writable_bytes_of(value))) << page;
    return value;
  };
  std::vector<Gpa> places{Gpa{0}, Gpa{UINT64_MAX}};
  for (std::uint32_t page = 0; page < pages; page++)
    places.insert(places.end(), {base + page * page_size, base + page * page_size + 8});

  write_all(1);
  memory->expect(places);
  for (std::uint32_t page = 0; page < pages; page++)
    ASSERT_EQ(value_at(page), page + 1);

  // What is expected is there from then on, until a refresh.
  const std::array few{base, base + 7 * page_size};
  memory->refresh();
  memory->expect(few);
  write_all(2);
  EXPECT_EQ(value_at(7), 8U);
  EXPECT_EQ(value_at(8), 10U);
  memory->refresh();
  EXPECT_EQ(value_at(7), 9U);

  // Pages that are gone do not take the others with them.
  ASSERT_EQ(::munmap(data + 5 * page_size, page_size), 0);
  memory->refresh();
  memory->expect(places);
  EXPECT_EQ(value_at(4), 6U);
  EXPECT_EQ(value_at(6), 8U);
  std::uint32_t value = 0;
  EXPECT_FALSE(memory->read(base + 5 * page_size, writable_bytes_of(value)));
  ::munmap(data, pages * page_size);
}

// A copy says when it is no longer one: after a refresh, and when the cache had to start anew.
TEST(QemuMemory, CopiesOfPrivatePagesHaveAnAge) {
  constexpr std::size_t pages = 1500; // more than there are copies
  const std::vector<std::byte> guest((pages + 1) * page_size);
  const auto start = (reinterpret_cast<std::uintptr_t>(guest.data()) + page_mask) / page_size * page_size;
  auto *const first = reinterpret_cast<volatile std::byte *>(start);
  const auto memory = open_memory({{Gpa{0}, pages * page_size, Hva{start}, "pc.ram"}});
  ASSERT_NE(memory, nullptr);
  *first = std::byte{1};
  const std::byte *copy = memory->copy_of_page(Gpa{0});
  ASSERT_NE(copy, nullptr);
  EXPECT_EQ(*copy, std::byte{1});
  const auto age = memory->copies_age();
  *first = std::byte{2};
  EXPECT_EQ(memory->copy_of_page(Gpa{0}), copy);
  EXPECT_EQ(*copy, std::byte{1});
  EXPECT_EQ(memory->copies_age(), age);
  memory->refresh();
  EXPECT_NE(memory->copies_age(), age);
  copy = memory->copy_of_page(Gpa{0});
  ASSERT_NE(copy, nullptr);
  EXPECT_EQ(*copy, std::byte{2});

  const auto before = memory->copies_age();
  for (std::size_t page = 1; page < pages; page++)
    ASSERT_NE(memory->copy_of_page(Gpa{page * page_size}), nullptr) << page;
  EXPECT_NE(memory->copies_age(), before);
  EXPECT_EQ(memory->copy_of_page(Gpa{pages * page_size}), nullptr);
}

TEST(QemuMemory, UntouchedPrivatePagesAreNotPopulated) {
  const Area area(false);
  area.data()[40 * page_size] = std::byte{1};
  const auto memory = open_memory({{Gpa{0}, length, area.host(), "pc.ram"}});
  ASSERT_NE(memory, nullptr);
  const auto runs = memory->populated(Gpa{page_size}, length);
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].base, Gpa{40 * page_size});
  EXPECT_EQ(runs[0].size, page_size);
}

TEST(QemuMemory, RegionsThatAreNotThereOrOverlapAreRefused) {
  const Area area(false);
  const auto self = Process::open(::getpid());
  EXPECT_FALSE(QemuMemory::open(*self, {{Gpa{0}, length, Hva{0x1000}, "ram"}}));
  EXPECT_FALSE(
      QemuMemory::open(*self, {{Gpa{0}, length, area.host(), "ram"}, {Gpa{page_size}, length, area.host(), "x"}}));
  EXPECT_FALSE(QemuMemory::open(*self, {{Gpa{UINT64_MAX}, length, area.host(), "ram"}}));
}

} // namespace
} // namespace lararium::qemu
