// Runs the code that is put into guests, here, on made-up structures of a kernel's.
#include "sim/pages.h"
#include "sim/ring.h"
#include "trampoline.h"

#include <asm/prctl.h>
#include <cstring>
#include <gtest/gtest.h>
#include <memory>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace lararium::gate::sim {
namespace {

constexpr std::uint64_t ring_size = 8192;
constexpr std::uint64_t caller = 0xffffffff81001005;

// Each structure is an array of words; its members lie at these offsets.
using Object = std::array<std::uint64_t, 16>;
std::uint64_t address_of(const void *object) { return reinterpret_cast<std::uint64_t>(object); }

class SimCodeTest : public testing::Test {
protected:
  struct Pages {
    Config config;
    char rest[page - sizeof(Config)];
    Plan plans[plan_limit];
    Rule rules[rule_limit];
    Texts texts;
    CpuPage cpu;
    std::byte ring[ring_size];
    std::byte doorbells[2 * page];
  };

  SimCodeTest() {
    // What lies before a function is read, too, where calls by pointers are checked.
    code_ =
        ::mmap(nullptr, page + GATE_SIM_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    std::memcpy(static_cast<std::byte *>(code_) + page, code().data(), code().size());
    void *memory = std::aligned_alloc(page, sizeof(Pages));
    std::memset(memory, 0, sizeof(Pages));
    pages = static_cast<Pages *>(memory);
    Config &c = pages->config;
    c.current_task = 8;
    c.kernel_begin = 0x10000;
    c.physical_limit = std::uint64_t{1} << 47;
    c.patience = std::uint64_t{1} << 60;
    c.levels = 4;
    c.ring_size = ring_size;
    c.task_pid = 0, c.task_tgid = 4, c.task_comm = 8, c.task_start_time = 24, c.task_parent = 32, c.task_cred = 40;
    c.task_mm = 48, c.task_cgroups = 56;
    c.cred_euid = 4, c.mm_exe_file = 8, c.mm_pgd = 16;
    c.path_mnt = 0, c.path_dentry = 8;
    c.dentry_parent = 0, c.dentry_name = 8, c.dentry_name_length = 16;
    c.set_cgroup = 0, c.cgroup_node = 8, c.node_id = 16, c.node_parent = 24, c.node_name = 32;
    c.has_cgroups = c.has_group_names = 1;
    c.vfsmount_root = 0, c.mount_vfsmount = 32, c.mount_parent = 0, c.mount_mountpoint = 8;
    for (std::size_t i = 0; i < record_words; ++i)
      pages->texts.hash_key[i] = 0x9e3779b97f4a7c15 * (i + 3);
    pages->cpu.state.key[0] = key[0];
    pages->cpu.state.key[1] = key[1];
    reader = std::make_unique<RingReader>(ring_size, key, hash());

    set_task(task, 100, 100, "shell", init);
    set_task(init, 1, 1, "init", init);
    task[5] = init[5] = address_of(cred.data());
    task[6] = address_of(mm.data());
    mm[1] = 0xabcdef0;
    per_cpu[1] = address_of(task.data());
    cpu[CPU_STATE / 8] = address_of(&pages->cpu);
    cpu[CPU_RING / 8] = address_of(pages->ring);
    cpu[CPU_DOORBELL / 8] = address_of(pages->doorbells);
    sites[0] = caller - 5;
    stub[STUB_SIM] = STUB_SIM_RECORD;
    stub[STUB_SITE_COUNT] = 1;
    stub[STUB_MAY_DENY] = 1;
    board[BOARD_HEARTBEAT / 8] = 1;
    slot[SLOT_CALLER / 8] = caller;
  }
  ~SimCodeTest() override {
    ::munmap(code_, page + GATE_SIM_SIZE);
    std::free(pages);
  }

  static void set_task(Object &object, std::uint32_t pid, std::uint32_t tgid, const char *comm, Object &parent) {
    object[0] = pid | std::uint64_t{tgid} << 32;
    std::memset(&object[1], 0, 16);
    std::strncpy(reinterpret_cast<char *>(&object[1]), comm, 16);
    object[3] = 5000 + pid;
    object[4] = address_of(parent.data());
  }
  const std::array<std::uint64_t, record_words> &hash() const {
    return *reinterpret_cast<const std::array<std::uint64_t, record_words> *>(pages->texts.hash_key);
  }

  int call(std::uint64_t argument = 0, std::uint64_t second = 0) {
    slot[SLOT_ARGUMENTS / 8] = argument;
    slot[SLOT_ARGUMENTS / 8 + 1] = second;
    ::syscall(SYS_arch_prctl, ARCH_SET_GS, per_cpu.data());
    using Function = int (*)(const void *, const std::uint64_t *, const std::uint8_t *, const std::uint64_t *,
                             const std::uint64_t *, const std::uint64_t *);
    const int result = reinterpret_cast<Function>(static_cast<std::byte *>(code_) + page)(
        pages, slot.data(), stub.data(), cpu.data(), board.data(), sites.data());
    ::syscall(SYS_arch_prctl, ARCH_SET_GS, 0);
    return result;
  }
  std::vector<Record> read() {
    std::vector<Record> records;
    std::vector<std::string> wrong;
    copy_.assign(pages->ring, pages->ring + ring_size);
    reader->read(copy_, pages->cpu.state.head, records, wrong);
    EXPECT_TRUE(wrong.empty()) << wrong.front();
    cpu[CPU_TAIL / 8] = reader->tail();
    return records;
  }
  static std::string text_of(const KeptBytes &kept) {
    return {reinterpret_cast<const char *>(kept.bytes.data()), kept.bytes.size()};
  }

  // "/usr/bin/tool": /usr is a mount.
  void make_path() {
    const auto set = [](Object &dentry, Object &parent, const char *name) {
      dentry = {address_of(parent.data()), address_of(name), std::strlen(name)};
    };
    set(root, root, "/");
    set(usr, root, "usr");
    set(usr_root, usr_root, "/");
    set(bin, usr_root, "bin");
    set(tool, bin, "tool");
    const auto set_mount = [](Object &mount, Object &parent, Object &mountpoint, Object &top) {
      mount = {address_of(parent.data()), address_of(mountpoint.data()), 0, 0, address_of(top.data())};
    };
    set_mount(root_mount, root_mount, root, root);
    set_mount(usr_mount, root_mount, usr, usr_root);
    path = {address_of(&usr_mount[4]), address_of(tool.data())};
    pages->plans[0].captures[0] = {.kind = CaptureKind::path,
                                   .role = Role::path,
                                   .argument = 1,
                                   .second = 0,
                                   .derefs = 0,
                                   .length = 0,
                                   .offsets = {}};
  }
  Rule &add_rule(Action action, std::uint16_t conditions = 0) {
    Rule &rule = pages->rules[pages->config.verdict_rules + pages->config.record_rules];
    ++(action == Action::record || action == Action::skip ? pages->config.record_rules : pages->config.verdict_rules);
    rule.hooks = 1;
    rule.action = action;
    rule.error = 13;
    rule.conditions = conditions;
    rule.number = 7;
    return rule;
  }
  void set_path(Rule &rule, const char *text) {
    rule.path_length = static_cast<std::uint16_t>(std::strlen(text));
    std::strcpy(pages->texts.text, text);
  }

  static constexpr std::array<std::uint64_t, 2> key{11, 22};
  Pages *pages = nullptr;
  Object task{}, init{}, cred{}, mm{}, per_cpu{};
  Object root{}, usr{}, usr_root{}, bin{}, tool{}, root_mount{}, usr_mount{}, path{};
  std::array<std::uint64_t, 8> cpu{};
  std::array<std::uint64_t, SLOT_SIZE / 8> slot{};
  std::array<std::uint8_t, STUB_ENTRY_SIZE> stub{};
  std::array<std::uint64_t, BOARD_SIZE / 8> board{};
  std::array<std::uint64_t, 8> sites{};
  std::unique_ptr<RingReader> reader;

private:
  void *code_;
  std::vector<std::byte> copy_;
};

TEST_F(SimCodeTest, ARecordSaysWhoAndWhat) {
  cred[0] = std::uint64_t{1000} << 32;
  make_path();
  EXPECT_EQ(call(address_of(path.data()), 42), 0);
  const auto records = read();
  ASSERT_EQ(records.size(), 1);
  const RecordHead &head = records[0].head;
  EXPECT_EQ(head.tgid, 100);
  EXPECT_EQ(head.parent, 1);
  EXPECT_EQ(head.euid, 1000);
  EXPECT_STREQ(head.comm, "shell");
  EXPECT_EQ(head.start_time, 5100);
  EXPECT_EQ(head.program, 0xabcdef0);
  EXPECT_EQ(head.arguments[1], 42);
  EXPECT_EQ(head.caller, caller);
  const auto kept = captures_of(records[0]);
  ASSERT_EQ(kept.size(), 1);
  EXPECT_EQ(text_of(kept[0]), "/usr/bin/tool");
  EXPECT_EQ(kept[0].head.key, address_of(path.data()));
}

TEST_F(SimCodeTest, APathThatIsTooLongIsCutAndNoRuleAboutItDecides) {
  make_path();
  std::array<Object, 8> deep{};
  const std::string name(250, 'x');
  for (std::size_t i = 0; i < deep.size(); ++i)
    deep[i] = {address_of(i == 0 ? bin.data() : deep[i - 1].data()), address_of(name.data()), name.size()};
  path[1] = address_of(deep.back().data());
  EXPECT_EQ(call(address_of(path.data())), 0);
  const auto records = read();
  ASSERT_EQ(records.size(), 1);
  EXPECT_NE(records[0].head.flags & flag_cut, 0);
  set_path(add_rule(Action::deny, if_path_begins), "/usr/");
  EXPECT_EQ(call(address_of(path.data())), -1) << "the monitor is asked";
  EXPECT_TRUE(read().empty());
}

TEST_F(SimCodeTest, PathsDecide) {
  make_path();
  Rule &rule = add_rule(Action::deny, if_path_begins);
  set_path(rule, "/usr/bin/");
  EXPECT_EQ(call(address_of(path.data())), 13);
  const auto records = read();
  ASSERT_EQ(records.size(), 1);
  EXPECT_EQ(records[0].head.verdict, 13);
  EXPECT_EQ(records[0].head.rule, 7);
  set_path(rule, "/usr/bim/");
  EXPECT_EQ(call(address_of(path.data())), 0);
  rule.conditions = if_path;
  set_path(rule, "/usr/bin/");
  EXPECT_EQ(call(address_of(path.data())), 0);
  set_path(rule, "/usr/bin/tool");
  EXPECT_EQ(call(address_of(path.data())), 13);
  stub[STUB_MAY_DENY] = 0;
  EXPECT_EQ(call(address_of(path.data())), 0) << "what cannot be denied is not";
}

TEST_F(SimCodeTest, TheFirstRuleThatFitsDecides) {
  add_rule(Action::allow, if_uid) = {.hooks = 1,
                                     .conditions = if_uid,
                                     .action = Action::allow,
                                     .error = 0,
                                     .uid_low = 0,
                                     .uid_high = 0,
                                     .port_low = 0,
                                     .port_high = 0,
                                     .pid = 0,
                                     .below = 0,
                                     .path = 0,
                                     .path_length = 0,
                                     .container = 0,
                                     .container_length = 0,
                                     .number = 1,
                                     .reserved = {}};
  add_rule(Action::deny);
  EXPECT_EQ(call(), 0);
  cred[0] = std::uint64_t{5} << 32;
  EXPECT_EQ(call(), 13);
  pages->rules[0].hooks = pages->rules[1].hooks = 2; // of another hook
  EXPECT_EQ(call(), 0);
}

TEST_F(SimCodeTest, AncestorsDecide) {
  Object child{};
  set_task(child, 200, 200, "child", task);
  child[5] = address_of(cred.data());
  per_cpu[1] = address_of(child.data());
  Rule &rule = add_rule(Action::deny, if_below);
  rule.below = 100;
  EXPECT_EQ(call(), 13);
  rule.below = 300;
  EXPECT_EQ(call(), 0);
  rule.conditions = if_pid;
  rule.pid = 200;
  EXPECT_EQ(call(), 13);
}

TEST_F(SimCodeTest, ContainersDecide) {
  const std::string id(64, 'c'), inside = "docker-" + id + ".scope";
  Object set{}, group{}, node{}, outer{}, top{};
  const auto name = [](Object &each, const char *text, Object *parent) {
    each[3] = parent == nullptr ? 0 : address_of(parent->data());
    each[4] = address_of(text);
  };
  task[7] = address_of(set.data());
  set[0] = address_of(group.data());
  group[1] = address_of(node.data());
  name(node, "init.scope", &outer);
  name(outer, inside.c_str(), &top);
  name(top, "", nullptr);
  Rule &rule = add_rule(Action::deny, if_container);
  const auto wanted = [&](std::uint16_t condition, const std::string &text) {
    rule.conditions = condition;
    rule.container_length = static_cast<std::uint16_t>(text.size());
    std::memcpy(pages->texts.text, text.data(), text.size());
    return call() == 13;
  };
  EXPECT_TRUE(wanted(if_container, id));
  EXPECT_FALSE(wanted(if_container, id.substr(1)));
  EXPECT_TRUE(wanted(if_container_begins, "ccc"));
  EXPECT_FALSE(wanted(if_container_begins, "cca"));
  EXPECT_TRUE(wanted(if_contained, ""));
  EXPECT_FALSE(wanted(if_container, "")) << "it is in one";
  for (const std::string &none : {id + "0", id.substr(1), "x" + id, id + "-x", "docker-" + id.substr(1) + "g",
                                  std::string(400, 'c'), std::string()}) {
    name(outer, none.c_str(), &top);
    EXPECT_FALSE(wanted(if_contained, "")) << none;
    EXPECT_TRUE(wanted(if_container, "")) << none;
  }
  name(outer, id.c_str(), &outer); // a circle
  EXPECT_TRUE(wanted(if_contained, ""));
  name(outer, "circle", &outer);
  EXPECT_FALSE(wanted(if_contained, ""));
  pages->config.has_group_names = 0;
  EXPECT_EQ(call(), -1) << "the monitor knows";
}

TEST_F(SimCodeTest, PortsDecide) {
  struct {
    std::uint16_t family = 2;
    std::uint8_t port[2] = {0x11, 0x5c}; // 4444
    std::uint32_t address = 0;
    std::uint64_t rest = 0;
  } address;
  pages->plans[0].captures[0] = {.kind = CaptureKind::counted,
                                 .role = Role::socket_address,
                                 .argument = 1,
                                 .second = 2,
                                 .derefs = 0,
                                 .length = 128,
                                 .offsets = {}};
  Rule &rule = add_rule(Action::deny, if_port);
  rule.port_low = 4000;
  rule.port_high = 4444;
  EXPECT_EQ(call(address_of(&address), 16), 13);
  rule.port_high = 4443;
  EXPECT_EQ(call(address_of(&address), 16), 0);
  address.family = 1;
  rule.port_high = 65535;
  EXPECT_EQ(call(address_of(&address), 16), 0) << "no port";
  EXPECT_EQ(call(address_of(&address), 1), 0) << "too short for one";
}

TEST_F(SimCodeTest, SkipAndOnlySayWhatIsRecorded) {
  add_rule(Action::skip, if_pid).pid = 100;
  call();
  EXPECT_TRUE(read().empty());
  pages->rules[0].pid = 99;
  call();
  EXPECT_EQ(read().size(), 1);
  stub[STUB_SKIP] = 1; // only what rules ask for
  call();
  EXPECT_TRUE(read().empty());
  pages->rules[0].action = Action::record;
  pages->rules[0].pid = 100;
  call();
  EXPECT_EQ(read().size(), 1);
}

TEST_F(SimCodeTest, ATooFullRingCountsWhatItLosesAndStillDecides) {
  make_path();
  set_path(add_rule(Action::deny, if_path_begins), "/usr/");
  for (int i = 0; i < 100; ++i)
    EXPECT_EQ(call(address_of(path.data())), 13);
  EXPECT_GT(pages->cpu.state.lost, 50);
  const auto lost = pages->cpu.state.lost;
  EXPECT_EQ(read().size(), 100 - lost);
  call(address_of(path.data()));
  const auto records = read();
  ASSERT_EQ(records.size(), 1);
  EXPECT_EQ(records[0].head.lost, lost);
}

TEST_F(SimCodeTest, AFillingRingRingsOncePerHalf) {
  std::uint64_t records = 0;
  for (int i = 0; i < 200; ++i) {
    call();
    records += read().size();
  }
  EXPECT_EQ(records, 200);
  EXPECT_EQ(pages->cpu.state.lost, 0);
  const auto rounds = pages->cpu.state.head / (ring_size / 2);
  EXPECT_EQ(pages->cpu.state.doorbells, rounds);
  EXPECT_GT(rounds, 2);
}

TEST_F(SimCodeTest, ACallFromElsewhereIsNone) {
  add_rule(Action::deny);
  slot[SLOT_CALLER / 8] = caller + 1;
  EXPECT_EQ(call(), 0);
  EXPECT_TRUE(read().empty());
  EXPECT_EQ(pages->cpu.state.forged, 1);
}

TEST_F(SimCodeTest, WithoutASignOfLifeTheDefaultHolds) {
  pages->config.patience = 1000;
  add_rule(Action::deny);
  EXPECT_EQ(call(), 13) << "a new sign";
  ::usleep(1000);
  EXPECT_EQ(call(), 0);
  EXPECT_EQ(pages->cpu.state.sequence, 1);
  reinterpret_cast<std::uint8_t *>(board.data())[BOARD_DEFAULT] = 1;
  EXPECT_EQ(call(), 1);
  ++board[BOARD_HEARTBEAT / 8];
  EXPECT_EQ(call(), 13);
}

TEST_F(SimCodeTest, ArgumentsComeThroughTheProcessPageTables) {
  // Four levels and two pages, each where its "physical" address is.
  struct alignas(page) Table {
    std::uint64_t entries[512] = {};
  };
  const auto tables = std::make_unique<std::array<Table, 6>>();
  auto &t = *tables;
  constexpr std::uint64_t at = 0x7ffd00001ff8; // the second string crosses pages
  const auto link = [](Table &table, std::uint64_t index, Table &to) { table.entries[index] = address_of(&to) | 1; };
  link(t[0], at >> 39 & 511, t[1]);
  link(t[1], at >> 30 & 511, t[2]);
  link(t[2], at >> 21 & 511, t[3]);
  link(t[3], at >> 12 & 511, t[4]);
  link(t[3], (at >> 12 & 511) + 1, t[5]);
  std::memcpy(reinterpret_cast<char *>(&t[4]) + 0xff8, "nc\0-l\0-p", 8);
  std::memcpy(t[5].entries, "\00081\0HOME=/\0", 11);
  Object program{}, memory{};
  memory[2] = address_of(&t[0]);
  program = {address_of(memory.data()), at, 4};
  pages->plans[0].captures[0] = {.kind = CaptureKind::user_strings,
                                 .role = Role::none,
                                 .argument = 1,
                                 .second = 0,
                                 .derefs = 0,
                                 .length = strings_limit,
                                 .offsets = {0, 8, 16}};
  call(address_of(program.data()));
  const auto records = read();
  ASSERT_EQ(records.size(), 1);
  const auto kept = captures_of(records[0]);
  ASSERT_EQ(kept.size(), 1);
  EXPECT_EQ(text_of(kept[0]), std::string("nc\0-l\0-p\00081\0", 12));
  // What is not there ends it; nothing faults.
  t[3].entries[(at >> 12 & 511) + 1] = 0;
  call(address_of(program.data()));
  EXPECT_EQ(text_of(captures_of(read().at(0)).at(0)), std::string("nc\0-l\0-p", 8));
}

} // namespace
} // namespace lararium::gate::sim
