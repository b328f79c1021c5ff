// The views of files, memory areas, mounts, environments and cached files on guests that tests make and bend.
#include "environment.h"
#include "files.h"
#include "maps.h"
#include "mounts.h"
#include "process_image.h"
#include "recover.h"
#include "tiny_guest.h"

#include <gtest/gtest.h>

using namespace lararium;
using namespace lararium::linux_guest;
using lararium::test::TinyGuest;

namespace {

class Views : public testing::TestWithParam<test::TinyEra> {
protected:
  TinyGuest guest{GetParam()};
  const Kernel &kernel = *guest.kernel;

  std::string recovered(std::string_view what, CachedFile *about = nullptr) {
    std::string content;
    const auto result = recover_file(kernel, what, [&](std::uint64_t offset, Bytes bytes) -> Result<void> {
      EXPECT_GE(offset, content.size()) << "pages come in order";
      content.resize(offset, '.');
      content.append(reinterpret_cast<const char *>(bytes.data()), bytes.size());
      return {};
    });
    if (!result)
      return "error: " + std::string(name_of(result.error().code));
    if (about != nullptr)
      *about = *result;
    return content;
  }
};

INSTANTIATE_TEST_SUITE_P(Eras, Views, testing::Values(test::tiny_new, test::tiny_old),
                         [](const auto &each) { return std::string(each.param.name); });

TEST_P(Views, OpenFiles) {
  const auto view = read_open_files(kernel, 1);
  ASSERT_TRUE(view) << view.error().describe();
  ASSERT_EQ(view->items.size(), 4u);
  EXPECT_FALSE(view->status.raced);
  const auto &passwd = view->items[0], &pipe = view->items[1], &gone = view->items[2], &data = view->items[3];
  EXPECT_EQ(passwd.path, "/etc/passwd");
  EXPECT_EQ(passwd.comm, "init");
  EXPECT_EQ(passwd.type, "file");
  EXPECT_EQ(passwd.access, "r");
  EXPECT_EQ(passwd.position, 5u);
  EXPECT_EQ(passwd.size, 20u);
  EXPECT_EQ(passwd.inode, 4u);
  EXPECT_EQ(pipe.path, "pipe:[77]");
  EXPECT_EQ(pipe.type, "fifo");
  EXPECT_FALSE(pipe.deleted);
  EXPECT_EQ(gone.path, "/etc/gone");
  EXPECT_TRUE(gone.deleted);
  EXPECT_EQ(gone.flags, 02002u);
  EXPECT_EQ(data.fd, 70);
  EXPECT_EQ(data.path, "/tmp/data");
  EXPECT_TRUE(data.close_on_exec);
  EXPECT_EQ(data.flags, 02100002u);
  EXPECT_EQ(data.device_minor, 0x15u);
  EXPECT_EQ(read_open_files(kernel, std::nullopt)->items.size(), 8u) << "of two processes";
  EXPECT_EQ(read_open_files(kernel, 8)->items.size(), 4u) << "of a thread by its own number";
  EXPECT_EQ(read_open_files(kernel, 99).error().code, ErrorCode::not_found);
}

TEST_P(Views, OpenFilesOfAProcessWhoseLeaderEnded) {
  guest.set(guest.worker, "task_struct", "files", 0);
  const auto view = read_open_files(kernel, 7);
  ASSERT_TRUE(view);
  EXPECT_EQ(view->items.size(), 4u);
}

TEST_P(Views, DescriptorTablesThatLie) {
  guest.set(guest.table, "fdtable", "max_fds", 0xffffffff);
  auto view = read_open_files(kernel, std::nullopt);
  ASSERT_TRUE(view);
  EXPECT_TRUE(view->status.raced || view->status.truncated);
  guest.set(guest.table, "fdtable", "max_fds", 128);
  guest.set(guest.table, "fdtable", "fd", 0x1234);
  view = read_open_files(kernel, std::nullopt);
  ASSERT_TRUE(view);
  EXPECT_TRUE(view->items.empty());
  EXPECT_TRUE(view->status.raced);
}

TEST_P(Views, MemoryRegions) {
  const auto view = read_memory_regions(kernel, 1);
  ASSERT_TRUE(view) << view.error().describe();
  ASSERT_EQ(view->items.size(), 5u);
  EXPECT_FALSE(view->status.raced);
  EXPECT_TRUE(view->status.warnings.empty());
  const auto &text = view->items[0];
  EXPECT_EQ(text.begin.value, 0x401000u);
  EXPECT_EQ(text.end.value, 0x402000u);
  EXPECT_TRUE(text.readable && text.executable && !text.writable && !text.shared);
  EXPECT_EQ(text.path, "/tmp/data");
  EXPECT_EQ(text.file_offset, 0x4000u);
  EXPECT_EQ(text.inode, 2u);
  EXPECT_EQ(view->items[1].path, "[heap]");
  EXPECT_EQ(view->items[2].path, "");
  EXPECT_TRUE(view->items[2].shared);
  EXPECT_EQ(view->items[3].path, "[stack]");
  EXPECT_EQ(view->items[4].path, "[vdso]");
}

TEST_P(Views, AreaThatIsInNoTreeIsMissed) {
  guest.set(guest.init_mm, "mm_struct", "map_count", 6);
  const auto view = read_memory_regions(kernel, 1);
  ASSERT_TRUE(view);
  EXPECT_EQ(view->items.size(), 5u);
  EXPECT_TRUE(view->status.raced);
  EXPECT_EQ(view->status.warnings.size(), 1u);
}

TEST_P(Views, AreasInACircleEnd) {
  if (GetParam().maple_tree) {
    // The root is its own child.
    const auto slots = guest.field("maple_arange_64", "slot").offset;
    guest.write(guest.maple_root + slots, guest.maple_root.value | 3 << 3 | 4);
  } else {
    guest.set(guest.areas[4], "vm_area_struct", "vm_next", guest.areas[0]);
  }
  const auto view = read_memory_regions(kernel, 1);
  ASSERT_TRUE(view);
  EXPECT_LE(view->items.size(), 5u);
  EXPECT_TRUE(view->status.raced);
}

TEST_P(Views, DeadMapleNodeIsNotBelieved) {
  if (!GetParam().maple_tree)
    GTEST_SKIP();
  guest.write(guest.leaf, guest.leaf.value);
  const auto view = read_memory_regions(kernel, 1);
  ASSERT_TRUE(view);
  EXPECT_EQ(view->items.size(), 3u);
  EXPECT_TRUE(view->status.raced);
}

TEST_P(Views, Mounts) {
  const auto view = read_mounts(kernel, std::nullopt);
  ASSERT_TRUE(view) << view.error().describe();
  ASSERT_EQ(view->items.size(), 2u);
  const auto &root = view->items[0], &tmp = view->items[1];
  EXPECT_EQ(root.mount_point, "/");
  EXPECT_EQ(root.filesystem, "rootfs");
  EXPECT_EQ(root.id, 21u);
  EXPECT_EQ(root.parent_id, 21u);
  EXPECT_EQ(root.mount_namespace, 0xf0000001u);
  EXPECT_EQ(tmp.mount_point, "/tmp");
  EXPECT_EQ(tmp.root, "/");
  EXPECT_EQ(tmp.source, "a tmpfs");
  EXPECT_EQ(tmp.parent_id, 21u);
  EXPECT_EQ(tmp.options, "rw,nosuid,nodev,noexec,relatime");
  EXPECT_EQ(tmp.propagation, "shared:9");
  EXPECT_EQ(tmp.super_options, "rw");
  EXPECT_EQ(tmp.device_minor, 0x15u);
}

TEST_P(Views, MountsThatAreEachOthersParents) {
  guest.set(guest.root_mount, "mount", "mnt_parent", guest.tmp_mount);
  guest.set(guest.root_mount, "mount", "mnt_mountpoint", guest.get(guest.tmp_mount, "mount", "mnt.mnt_root"));
  const auto files = read_open_files(kernel, 1);
  ASSERT_TRUE(files);
  EXPECT_TRUE(files->items.at(0).path.starts_with("...")) << files->items.at(0).path;
  EXPECT_TRUE(read_mounts(kernel, std::nullopt));
  EXPECT_EQ(recovered("/etc/../../passwd"), "error: not_found");
}

TEST_P(Views, DentriesInACircle) {
  guest.set(guest.etc, "dentry", "d_parent", guest.passwd);
  const auto files = read_open_files(kernel, 1);
  ASSERT_TRUE(files);
  EXPECT_TRUE(files->items.at(0).path.starts_with("..."));
}

TEST_P(Views, Environment) {
  const auto view = read_environment(kernel, 7);
  ASSERT_TRUE(view) << view.error().describe();
  EXPECT_EQ(view->items, (std::vector<std::string>{"HOME=/", "EMPTY=", "odd"}));
  guest.set(guest.init_mm, "mm_struct", "env_end", 0x7fffffffffff); // longer than what is mapped
  const auto longer = read_environment(kernel, 7);
  ASSERT_TRUE(longer);
  EXPECT_TRUE(longer->status.truncated);
}

TEST_P(Views, ProcessImage) {
  const auto image = read_process_image(kernel, 7);
  ASSERT_TRUE(image) << image.error().describe();
  EXPECT_EQ(image->process.comm, "worker");
  EXPECT_EQ(image->regions.size(), 5u);
  EXPECT_EQ(image->auxiliary_vector.size(), 32u) << "one entry and the end mark";
  ASSERT_EQ(image->threads.size(), 2u);
  EXPECT_EQ(image->threads[0].tid, 7);
  ASSERT_EQ(image->threads[0].user_registers.size(), 27u);
  EXPECT_EQ(image->threads[0].user_registers[0], 0x100u);
  EXPECT_EQ(image->threads[0].user_registers[16], 0x401000u);
  EXPECT_TRUE(image->threads[1].user_registers.empty()) << "it runs, and nobody gave the vCPU's registers";

  VcpuRegisters vcpu;
  vcpu.cs = 0x33;
  vcpu.general[0] = 0xabc; // rax
  vcpu.rip = Gva{0x401234};
  vcpu.fs_base = Gva{0x7777};
  vcpu.cr3 = user_page_table(kernel, guest.worker)->table.value;
  const auto with_vcpu = read_process_image(kernel, 7, std::span(&vcpu, 1));
  ASSERT_EQ(with_vcpu->threads[1].user_registers.size(), 27u);
  EXPECT_EQ(with_vcpu->threads[1].user_registers[10], 0xabcu);
  EXPECT_EQ(with_vcpu->threads[1].user_registers[16], 0x401234u);
  EXPECT_EQ(with_vcpu->threads[1].user_registers[21], 0x7777u);
}

TEST_P(Views, RecoveredFile) {
  std::string expected;
  for (const char c : {'a', 'b', '.', '.', 'e', '.'})
    expected.append(page_size, c);
  expected.append(100, 'g');
  for (const char *name : {"/tmp/data", "/etc/link", "/etc/../tmp/./data", "fd:1:70", "inode:0:21:2"}) {
    CachedFile about;
    EXPECT_EQ(recovered(name, &about), expected) << name;
    EXPECT_EQ(about.size, 6 * page_size + 100);
    EXPECT_EQ(about.cached_bytes, 3 * page_size + 100);
    ASSERT_EQ(about.holes.size(), 2u);
    EXPECT_EQ(about.holes[0].begin, 2 * page_size);
    EXPECT_EQ(about.holes[0].end, 4 * page_size);
    EXPECT_EQ(about.holes[1].begin, 5 * page_size);
    EXPECT_EQ(about.holes[1].end, 6 * page_size);
  }
  CachedFile about;
  recovered("/etc/gone (deleted)", &about);
  EXPECT_EQ(about.inode, 5u);
  EXPECT_EQ(about.holes.size(), 1u);
  EXPECT_EQ(recovered("/etc/none"), "error: not_found");
  EXPECT_EQ(recovered("relative"), "error: usage");
  EXPECT_EQ(recovered("/etc"), "error: unsupported");
  EXPECT_EQ(recovered("fd:1"), "error: usage");
  EXPECT_EQ(recovered("fd:1:3"), "error: not_found");
  EXPECT_EQ(recovered("inode:12345"), "error: not_found");
  EXPECT_EQ(recovered("inode:x"), "error: usage");
}

TEST_P(Views, PagesOfAnotherFileAreHoles) {
  guest.set(guest.pages[1], "page", "mapping", 0);    // it was evicted just now
  guest.set(guest.pages[4], "page", "flags", 0);      // it is being read in
  guest.set(guest.pages[6], "page", "index", 0x1000); // it belongs elsewhere
  CachedFile about;
  EXPECT_EQ(recovered("/tmp/data", &about), std::string(page_size, 'a'));
  EXPECT_EQ(about.cached_bytes, page_size);
}

TEST_P(Views, PagesOfALargeFolio) {
  // One folio of four pages at index 0: in its own slot, with siblings.
  const Gva slots = guest.pages_node + guest.field("xa_node", "slots").offset;
  guest.set(guest.pages[0], "page", "flags", 1 << 2 | 1 << 6);
  for (std::uint64_t i = 1; i < 4; ++i)
    guest.write(slots + 8 * i, std::uint64_t{2});
  CachedFile about;
  const std::string content = recovered("/tmp/data", &about);
  EXPECT_EQ(about.cached_bytes, 5 * page_size + 100);
  EXPECT_EQ(content[0], 'a');
  EXPECT_EQ(content[page_size], 'b') << "the frames follow each other";
  EXPECT_EQ(content[2 * page_size], 'e');
  EXPECT_EQ(content[3 * page_size], 'g');
  // Before 5.17 each slot held the folio's first page.
  for (std::uint64_t i = 1; i < 4; ++i)
    guest.write(slots + 8 * i, guest.pages[0].value);
  EXPECT_EQ(recovered("/tmp/data"), content);
}

TEST_P(Views, LinksInACircleEnd) {
  const Gva target{guest.get(guest.link_inode, "inode", "i_link")};
  for (std::size_t i = 0; const char c : std::string_view("../etc/link"))
    guest.write(target + i++, c);
  EXPECT_EQ(recovered("/etc/link"), "error: usage");
}

} // namespace
