// The monitor's code inside the guest (SIM: Sharif et al., CCS 2009): what a hooked call means, by rules in pages that
// the guest cannot write to, and a record of it in a ring that the monitor reads later. No exit, no call of the
// guest's.
//
// It is called by the trampoline with interrupts off, and is all there is of C++ in the guest: no data of its own, no
// stack protector, no vector registers; the linker script refuses anything else. What the kernel may free meanwhile it
// frees by RCU, which waits for CPUs with interrupts off.
#include "layout.h"
#include "trampoline_layout.h"

namespace lararium::gate::sim {
namespace {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr u64 error_pointers = 0xfffffffffffff000;
constexpr u64 entry_present = 1, entry_large = 1 << 7, entry_address = 0x000ffffffffff000;

struct Data { // the pages of layout.h
  Config config;
  char rest_of_config[page - sizeof(Config)];
  Plan plans[plan_limit];
  Rule rules[rule_limit];
  Texts texts;
};

template <class T> T at(u64 address) { return *reinterpret_cast<const volatile T *>(address); }
bool is_kernel(const Config &config, u64 address) { return address >= config.kernel_begin && address < error_pointers; }

u64 clock() {
  u32 low = 0, high = 0;
  asm volatile("rdtsc" : "=a"(low), "=d"(high));
  return u64{high} << 32 | low;
}

void copy(char *to, u64 from, u32 size) {
  for (; size >= 8; size -= 8, to += 8, from += 8)
    *reinterpret_cast<volatile u64 *>(to) = at<u64>(from);
  for (; size != 0; --size)
    *reinterpret_cast<volatile char *>(to++) = at<char>(from++);
}

struct Path {
  const char *text = nullptr;
  u32 length = 0;
  bool is_cut = false;
};

class Recorder {
public:
  Recorder(const Data &data, RecordHead &head)
      : data_(data), head_(head), at_(reinterpret_cast<char *>(&head + 1)),
        end_(reinterpret_cast<char *>(&head) + record_limit - sizeof(Tag)) {}

  void who();
  void capture(const Capture &what);
  [[nodiscard]] u32 close(); // gives the size without the tag

  [[nodiscard]] const Path &path() const { return path_; }
  [[nodiscard]] bool has_port() const { return has_port_; }
  [[nodiscard]] u32 port() const { return port_; }
  [[nodiscard]] u64 group() const { return head_.group; }

private:
  [[nodiscard]] u64 argument(u32 number) const { return head_.arguments[number - 1]; }
  [[nodiscard]] u32 room() const { return static_cast<u32>(end_ - at_); }
  void add(CaptureKind kind, u64 key, u32 length, bool is_cut);
  u32 assemble(u64 mount, u64 dentry, char *text, u32 limit, bool &is_cut) const;
  u32 user_bytes(u64 mm, u64 address, char *to, u32 size) const;

  const Data &data_;
  RecordHead &head_;
  char *at_, *end_;
  Path path_;
  bool has_port_ = false;
  u32 port_ = 0;
};

void Recorder::who() {
  const Config &c = data_.config;
  u64 task = 0;
  asm volatile("mov %%gs:(%1), %0" : "=r"(task) : "r"(c.current_task));
  head_.task = task;
  head_.pid = at<u32>(task + c.task_pid);
  head_.tgid = at<u32>(task + c.task_tgid);
  head_.start_time = at<u64>(task + c.task_start_time);
  *reinterpret_cast<volatile u64 *>(head_.comm) = at<u64>(task + c.task_comm);
  *reinterpret_cast<volatile u64 *>(head_.comm + 8) = at<u64>(task + c.task_comm + 8);
  const u64 parent = at<u64>(task + c.task_parent), cred = at<u64>(task + c.task_cred), mm = at<u64>(task + c.task_mm);
  head_.parent = is_kernel(data_.config, parent) ? at<u32>(parent + c.task_tgid) : 0;
  head_.euid = is_kernel(data_.config, cred) ? at<u32>(cred + c.cred_euid) : 0;
  head_.program = is_kernel(data_.config, mm) ? at<u64>(mm + c.mm_exe_file) : 0;
  head_.cgroup = head_.group = 0;
  if (c.has_cgroups == 0)
    return;
  u64 object = at<u64>(task + c.task_cgroups);
  object = is_kernel(data_.config, object) ? at<u64>(object + c.set_cgroup) : 0;
  object = is_kernel(data_.config, object) ? at<u64>(object + c.cgroup_node) : 0;
  if (!is_kernel(data_.config, object))
    return;
  head_.group = object;
  head_.cgroup = at<u64>(object + c.node_id);
}

void Recorder::add(CaptureKind kind, u64 key, u32 length, bool is_cut) {
  auto &head = *reinterpret_cast<CaptureHead *>(at_);
  head.key = key;
  head.length = length;
  head.kind = kind;
  head.cut = is_cut ? 1 : 0;
  head.reserved = 0;
  at_ += sizeof head;
  // What is behind the last byte is part of the record, too.
  for (u32 i = length; i % 8 != 0; ++i)
    *reinterpret_cast<volatile char *>(at_ + i) = 0;
  at_ += (length + 7) & ~7U;
  ++head_.captures;
  if (is_cut)
    head_.flags |= flag_cut;
}

// The path's text begins at `text` afterwards. Collected from its end on, as the kernel's d_path() does.
u32 Recorder::assemble(u64 mount, u64 dentry, char *text, u32 limit, bool &is_cut) const {
  const Config &c = data_.config;
  u32 begin = limit;
  is_cut = true;
  for (u32 i = 0; i < component_limit; ++i) {
    if (!is_kernel(data_.config, mount) || !is_kernel(data_.config, dentry))
      break;
    if (dentry == at<u64>(mount + c.vfsmount_root)) {
      const u64 whole = mount - c.mount_vfsmount, parent = at<u64>(whole + c.mount_parent);
      if (parent == whole) {
        is_cut = false;
        break;
      }
      dentry = at<u64>(whole + c.mount_mountpoint);
      mount = parent + c.mount_vfsmount;
      continue;
    }
    const u64 parent = at<u64>(dentry + c.dentry_parent), name = at<u64>(dentry + c.dentry_name);
    const u32 length = at<u32>(dentry + c.dentry_name_length);
    if (length >= begin || !is_kernel(data_.config, name))
      break;
    begin -= length;
    copy(text + begin, name, length);
    text[--begin] = '/';
    if (parent == dentry) { // it hangs in no tree: a memory file
      is_cut = false;
      break;
    }
    dentry = parent;
  }
  const u32 length = limit - begin;
  if (length == 0) {
    text[0] = '/';
    return 1;
  }
  if (begin != 0)
    copy(text, reinterpret_cast<u64>(text + begin), length);
  return length;
}

// Through the page tables and the kernel's map of all memory: no fault can come of it.
u32 Recorder::user_bytes(u64 mm, u64 address, char *to, u32 size) const {
  const Config &c = data_.config;
  u32 got = 0;
  while (got < size) {
    u64 table = at<u64>(mm + c.mm_pgd), bits = 12 + 9 * (c.levels - 1);
    u64 physical = 0;
    if (!is_kernel(data_.config, table))
      return got;
    while (true) {
      const u64 entry = at<u64>(table + ((address >> bits & 511) << 3));
      physical = entry & entry_address;
      if ((entry & entry_present) == 0 || physical >= c.physical_limit)
        return got;
      if (bits == 12)
        break;
      if ((entry & entry_large) != 0) {
        const u64 inside = (u64{1} << bits) - 1;
        physical = (physical & ~inside) | (address & inside & ~(page - 1));
        break;
      }
      table = c.direct_map + physical;
      bits -= 9;
    }
    if (physical >= c.physical_limit)
      return got;
    const u32 offset = static_cast<u32>(address & (page - 1)), in_page = static_cast<u32>(page) - offset;
    const u32 part = size - got < in_page ? size - got : in_page;
    copy(to + got, c.direct_map + physical + offset, part);
    got += part;
    address += part;
  }
  return got;
}

void Recorder::capture(const Capture &what) {
  u64 address = argument(what.argument);
  if (what.kind == CaptureKind::user_strings) {
    if (!is_kernel(data_.config, address))
      return;
    const u64 mm = at<u64>(address + what.offsets[0]), begin = at<u64>(address + what.offsets[1]);
    if (!is_kernel(data_.config, mm) || room() < sizeof(CaptureHead) + 8)
      return;
    const u32 space = (room() - static_cast<u32>(sizeof(CaptureHead))) & ~7U;
    u32 size = what.length < space ? what.length : space;
    char *const to = at_ + sizeof(CaptureHead);
    const u32 got = user_bytes(mm, begin, to, size);
    // So many strings as there are arguments, not what lies behind them.
    u32 left = at<u32>(address + what.offsets[2]), used = 0;
    while (used < got && left != 0)
      left -= to[used++] == 0 ? 1 : 0;
    add(what.kind, begin, used, left != 0);
    return;
  }
  for (u32 i = 0; i < what.derefs; ++i) {
    if (!is_kernel(data_.config, address))
      return;
    address = at<u64>(address + what.offsets[i]);
  }
  if (!is_kernel(data_.config, address))
    return;
  address += what.offsets[what.derefs];
  if (room() < sizeof(CaptureHead) + 8) {
    head_.flags |= flag_cut;
    return;
  }
  const u32 space = (room() - static_cast<u32>(sizeof(CaptureHead))) & ~7U;
  char *const to = at_ + sizeof(CaptureHead);
  u32 length = 0;
  bool is_cut = false;
  switch (what.kind) {
  case CaptureKind::path:
  case CaptureKind::path_below: {
    const u64 mount = at<u64>(address + data_.config.path_mnt);
    const u64 dentry =
        what.kind == CaptureKind::path ? at<u64>(address + data_.config.path_dentry) : argument(what.second);
    const u32 limit = space < path_limit ? space : path_limit;
    length = assemble(mount, dentry, to, limit, is_cut);
    if (what.role == Role::path && path_.text == nullptr) {
      path_.text = to;
      path_.length = length;
      path_.is_cut = is_cut;
    }
    // Names one of several below the same directory.
    address = what.kind == CaptureKind::path ? address : dentry;
    break;
  }
  case CaptureKind::text:
    is_cut = true;
    while (length < space && length < text_limit) {
      to[length] = at<char>(address + length);
      if (to[length] == 0) {
        is_cut = false;
        break;
      }
      ++length;
    }
    break;
  case CaptureKind::counted:
  case CaptureKind::bytes: {
    length = what.length;
    if (what.kind == CaptureKind::counted) {
      const u32 said = static_cast<u32>(argument(what.second));
      length = said < length ? said : length;
    }
    length = length < space ? length : space;
    copy(to, address, length);
    constexpr u32 inet = 2, inet6 = 10;
    if (what.role == Role::socket_address && length >= 4) {
      const u32 family = *reinterpret_cast<const u16 *>(to);
      has_port_ = family == inet || family == inet6;
      port_ = static_cast<u32>(static_cast<u8>(to[2])) << 8 | static_cast<u8>(to[3]);
    } else if (what.role == Role::port && length >= 2) {
      has_port_ = true;
      port_ = *reinterpret_cast<const u16 *>(to);
    }
    break;
  }
  case CaptureKind::user_strings: return;
  }
  add(what.kind, address, length, is_cut);
}

u32 Recorder::close() {
  u32 size = static_cast<u32>(at_ - reinterpret_cast<char *>(&head_));
  if (size % 16 != 0) {
    *reinterpret_cast<volatile u64 *>(at_) = 0;
    size += 8;
  }
  head_.size = size + static_cast<u32>(sizeof(Tag));
  return size;
}

enum class Fits : u8 { no, yes, unknown };

Fits fits_path(const Data &data, const Rule &rule, const Path &path) {
  if (path.text == nullptr)
    return Fits::no;
  if (path.is_cut)
    return Fits::unknown;
  if (path.length < rule.path_length || (path.length != rule.path_length && (rule.conditions & if_path_begins) == 0))
    return Fits::no;
  const char *wanted = data.texts.text + rule.path;
  for (u32 i = 0; i < rule.path_length; ++i)
    if (path.text[i] != wanted[i])
      return Fits::no;
  return Fits::yes;
}

// Where the digits of the container's id are in the names of a control group and those around it, the innermost first;
// 0: in no container. What counts as one is what os/linux/tasks.cpp says of a group's path. A task's group stays while
// the task runs, and its name with it.
u64 container_of(const Config &c, u64 group) {
  for (u32 i = 0; i < ancestor_limit && is_kernel(c, group); ++i) {
    const u64 name = at<u64>(group + c.node_name);
    u32 end = 0;
    while (is_kernel(c, name) && end < group_name_limit && at<char>(name + end) != 0)
      ++end;
    constexpr u32 scope = 0x6f63732e, scope_end = 0x6570; // ".sco", "pe"
    if (end > 6 && at<u32>(name + end - 6) == scope && at<u16>(name + end - 2) == scope_end)
      end -= 6;
    u32 begin = end;
    while (begin != 0) {
      const char digit = at<char>(name + begin - 1);
      if ((digit < '0' || digit > '9') && (digit < 'a' || digit > 'f'))
        break;
      --begin;
    }
    const char before = begin == 0 ? '-' : at<char>(name + begin - 1);
    if (end - begin == container_digits && (before == '-' || before == ':'))
      return name + begin;
    group = at<u64>(group + c.node_parent);
  }
  return 0;
}

Fits fits_container(const Data &data, const Rule &rule, u64 group) {
  if (data.config.has_group_names == 0)
    return Fits::unknown;
  const u64 id = container_of(data.config, group);
  if ((rule.conditions & if_contained) != 0)
    return id != 0 ? Fits::yes : Fits::no;
  const u32 length = id != 0 ? container_digits : 0;
  if (length < rule.container_length ||
      (length != rule.container_length && (rule.conditions & if_container_begins) == 0))
    return Fits::no;
  for (u32 i = 0; i < rule.container_length; ++i)
    if (at<char>(id + i) != data.texts.text[rule.container + i])
      return Fits::no;
  return Fits::yes;
}

bool is_below(const Config &c, u64 task, u32 pid) {
  for (u32 i = 0; i < ancestor_limit && is_kernel(c, task); ++i) {
    const u32 id = at<u32>(task + c.task_tgid);
    if (id == pid)
      return true;
    if (id <= 1)
      return false;
    task = at<u64>(task + c.task_parent);
  }
  return false;
}

Fits fits(const Data &data, const Rule &rule, const RecordHead &head, const Recorder &recorder) {
  const u16 when = rule.conditions;
  const bool in_uids = head.euid >= rule.uid_low && head.euid <= rule.uid_high;
  if (((when & if_uid) != 0 && !in_uids) || ((when & if_uid_not) != 0 && in_uids))
    return Fits::no;
  if ((when & if_port) != 0 &&
      (!recorder.has_port() || recorder.port() < rule.port_low || recorder.port() > rule.port_high))
    return Fits::no;
  if ((when & if_pid) != 0 && head.tgid != rule.pid)
    return Fits::no;
  if ((when & if_below) != 0 && !is_below(data.config, head.task, rule.below))
    return Fits::no;
  const Fits path = (when & (if_path | if_path_begins)) != 0 ? fits_path(data, rule, recorder.path()) : Fits::yes;
  if (path == Fits::no || (when & (if_container | if_container_begins | if_contained)) == 0)
    return path;
  const Fits container = fits_container(data, rule, recorder.group());
  return container == Fits::yes ? path : container;
}

struct Decision {
  Action action;
  u8 error = 0;
  u32 rule = 0;
};

Decision decide(const Data &data, u32 first, u32 count, u32 hook, Action otherwise, const RecordHead &head,
                const Recorder &recorder) {
  for (u32 i = first; i < first + count; ++i) {
    const Rule &rule = data.rules[i];
    if ((rule.hooks & hook) == 0)
      continue;
    const Fits it = fits(data, rule, head, recorder);
    if (it == Fits::yes)
      return {rule.action, rule.error, rule.number};
    if (it == Fits::unknown && rule.action != Action::skip && rule.action != Action::record)
      return {Action::ask};
  }
  return {otherwise};
}

} // namespace

// 0: go on; an errno: refuse; -1: the monitor is to decide.
extern "C" [[gnu::section(".text.entry"), gnu::used]] int sim_event(const Data *data, const u64 *slot, const u8 *stub,
                                                                    const u64 *cpu, const u64 *board, const u8 *sites) {
  const u64 began = clock();
  auto &state = *reinterpret_cast<CpuState *>(cpu[CPU_STATE / 8]);
  const u32 hook = stub[STUB_HOOK] % hook_limit;
  ++state.calls[hook];
  const u32 bit = u32{1} << hook;
  if ((*reinterpret_cast<const u32 *>(reinterpret_cast<const u8 *>(board) + BOARD_OFF) & bit) != 0)
    return 0;
  const bool is_brief = (*reinterpret_cast<const u32 *>(reinterpret_cast<const u8 *>(board) + BOARD_BRIEF) & bit) != 0;
  if (const u64 beat = board[BOARD_HEARTBEAT / 8]; beat != state.beat) {
    state.beat = beat;
    state.beat_cycles = began;
  } else if (began - state.beat_cycles > data->config.patience) { // nobody reads, nobody's rules hold
    return static_cast<int>(reinterpret_cast<const u8 *>(board)[BOARD_DEFAULT]);
  }

  // The caller is one of those that lead to this stub.
  const u64 caller = slot[SLOT_CALLER / 8];
  bool is_known = stub[STUB_SITE_COUNT] == 0;
  for (u32 i = 0; i < stub[STUB_SITE_COUNT] && !is_known; ++i)
    is_known = *reinterpret_cast<const u64 *>(sites + 32 * (u32{stub[STUB_FIRST_SITE]} + i)) + 5 == caller;
  if (!is_known) {
    ++state.forged;
    return 0;
  }

  const u64 ring_size = data->config.ring_size, tail = *reinterpret_cast<const volatile u64 *>(cpu + CPU_TAIL / 8);
  const u64 begin = begin_of_record(state.head, ring_size);
  const bool has_room = begin + record_limit - tail <= ring_size;
  auto &head = *(has_room ? reinterpret_cast<RecordHead *>(cpu[CPU_RING / 8] + (begin & (ring_size - 1)))
                          : reinterpret_cast<RecordHead *>(cpu[CPU_STATE / 8] + offsetof(CpuPage, scratch)));
  head.stub = static_cast<u8>(slot[SLOT_STUB / 8]);
  head.captures = head.flags = 0;
  head.cycles = began;
  head.caller = caller;
  for (u32 i = 0; i < 6; ++i)
    *const_cast<volatile u64 *>(&head.arguments[i]) = slot[SLOT_ARGUMENTS / 8 + i];
  Recorder recorder(*data, head);
  recorder.who();
  const Plan &plan = data->plans[stub[STUB_PLAN] % plan_limit];
  for (u32 i = 0; i < capture_limit && !is_brief && plan.captures[i].argument != 0; ++i)
    recorder.capture(plan.captures[i]);

  const u8 mode = stub[STUB_SIM];
  const Decision decision = decide(*data, 0, data->config.verdict_rules, bit,
                                   mode == STUB_SIM_ASK ? Action::ask : Action::allow, head, recorder);
  if (decision.action == Action::ask) {
    state.cycles[hook] += clock() - began;
    return -1;
  }
  const int verdict = decision.action == Action::deny && stub[STUB_MAY_DENY] != 0 ? decision.error : 0;
  const bool is_recorded = verdict != 0 || decide(*data, data->config.verdict_rules, data->config.record_rules, bit,
                                                  stub[STUB_SKIP] != 0 ? Action::skip : Action::record, head, recorder)
                                                   .action == Action::record;
  if (is_recorded && has_room) {
    head.verdict = static_cast<u8>(verdict);
    head.rule = decision.rule;
    head.lost = static_cast<u32>(state.lost);
    head.sequence = ++state.sequence;
    const u32 size = recorder.close();
    const auto *words = reinterpret_cast<const u64 *>(&head);
    const Tag tag = tag_of(words, size / 8, data->texts.hash_key, state.key);
    auto *to = reinterpret_cast<volatile u64 *>(reinterpret_cast<char *>(&head) + size);
    to[0] = tag.words[0];
    to[1] = tag.words[1];
    const u64 before = state.head;
    asm volatile("" ::: "memory");
    *const_cast<volatile u64 *>(&state.head) = begin + head.size;
    // It fills: the monitor is woken, once for each half. The CPU waits here until the ring was read.
    if ((before ^ state.head) & (ring_size / 2)) {
      state.cycles[hook] += clock() - began;
      const u64 bell = ++state.doorbells;
      *reinterpret_cast<volatile u64 *>(cpu[CPU_DOORBELL / 8] + ((bell & 1) << 12)) = bell;
      return verdict;
    }
  } else if (is_recorded) {
    ++state.lost;
  }
  state.cycles[hook] += clock() - began;
  return verdict;
}

} // namespace lararium::gate::sim
