// What the code of sim_code.cpp, which runs in the guest, shares with us: the monitor's side of SIM. Plain data, no
// pointers of the host's; the assembler's part of the layout is in ../trampoline_layout.h.
//
// Pages, one after the other: Config; Plans; Rules; Texts; then for each CPU a page CpuPage, and for each CPU its ring.
// The guest can write to the CPUs' pages and to the rings, and to nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lararium::gate::sim {

inline constexpr std::uint64_t page = 4096;
inline constexpr std::size_t rule_limit = 64, plan_limit = 32, capture_limit = 8, hook_limit = 32;
inline constexpr std::size_t record_limit = 1024; // bytes, with its tag
inline constexpr std::size_t record_words = record_limit / 8;
inline constexpr std::size_t path_limit = 440, text_limit = 128, strings_limit = 256; // bytes
inline constexpr std::uint32_t component_limit = 64, ancestor_limit = 32;
inline constexpr std::uint32_t container_digits = 64, group_name_limit = 255;

// Where the members are that the code reads, and what holds for all CPUs.
struct Config {
  std::uint64_t current_task;   // of a CPU: offset from its gs base
  std::uint64_t kernel_begin;   // no address of the kernel's is lower
  std::uint64_t direct_map;     // where the kernel maps physical memory
  std::uint64_t physical_limit; // no table entry leads further
  std::uint64_t patience;       // cycles; longer without a sign of the monitor: it is gone
  std::uint32_t levels;         // of page tables
  std::uint32_t ring_size;      // bytes, a power of two
  std::uint32_t verdict_rules;  // so many rules decide,
  std::uint32_t record_rules;   // and so many behind them say what is recorded
  std::uint32_t task_pid, task_tgid, task_comm, task_start_time, task_parent, task_cred, task_mm, task_cgroups;
  std::uint32_t cred_euid, mm_exe_file, mm_pgd;
  std::uint32_t set_cgroup, cgroup_node, node_id, node_parent, node_name; // css_set.dfl_cgrp, cgroup.kn, kernfs_node
  std::uint32_t path_mnt, path_dentry;
  std::uint32_t dentry_parent, dentry_name, dentry_name_length;
  std::uint32_t vfsmount_root, mount_vfsmount, mount_parent, mount_mountpoint;
  std::uint32_t has_cgroups, has_group_names;
};

// What is kept of a call. An address: an argument, at which `derefs` times what lies at an offset is followed; the last
// offset is added.
enum class CaptureKind : std::uint8_t {
  bytes,        // `length` of them
  counted,      // as many as the argument `second` says, `length` at most
  text,         // up to its NUL
  path,         // of a struct path
  path_below,   // of a struct path, and a dentry of its mount in argument `second`
  user_strings, // in the memory of the mm at the first offset, from the address at the second one on
};
enum class Role : std::uint8_t { none, path, socket_address, port }; // what rules are about

struct Capture {
  CaptureKind kind;
  Role role;
  std::uint8_t argument, second; // 1 to 6
  std::uint16_t derefs, length;
  std::uint16_t offsets[4];
};
static_assert(sizeof(Capture) == 16);

struct Plan {
  Capture captures[capture_limit];
};
static_assert(sizeof(Plan) * plan_limit == page);

enum class Action : std::uint8_t { allow, deny, ask, record, skip };

inline constexpr std::uint16_t if_uid = 1, if_uid_not = 2, if_port = 4, if_pid = 8, if_below = 16, if_path = 32,
                               if_path_begins = 64, if_container = 128, if_container_begins = 256, if_contained = 512;

// All conditions must hold.
struct Rule {
  std::uint32_t hooks; // a bit each
  std::uint16_t conditions;
  Action action;
  std::uint8_t error;
  std::uint32_t uid_low, uid_high;
  std::uint32_t port_low, port_high;
  std::uint32_t pid;                         // of the process
  std::uint32_t below;                       // the process, or one of its ancestors
  std::uint16_t path, path_length;           // in Texts
  std::uint16_t container, container_length; // there, too; no length: no container
  std::uint32_t number;                      // as it was given
  std::uint32_t reserved[5];
};
static_assert(sizeof(Rule) * rule_limit == page);

struct Texts {
  std::uint64_t hash_key[record_words];
  char text[page - record_limit];
};
static_assert(sizeof(Texts) == page);

// In the ring. Captures follow the head, and then the tag.
struct RecordHead {
  std::uint32_t size; // with the tag; a multiple of 16
  std::uint8_t stub, verdict, captures, flags;
  std::uint64_t sequence; // of this CPU, from 1 on
  std::uint64_t cycles;   // the CPU's clock
  std::uint64_t caller;
  std::uint64_t arguments[6];
  std::uint64_t task, start_time, program; // struct task_struct; its mm's exe_file
  std::uint32_t pid, tgid, parent, euid;
  char comm[16];
  std::uint64_t cgroup, group; // its control group's number, and struct kernfs_node
  std::uint32_t rule;          // whose verdict it is, from 1 on; 0: none
  std::uint32_t lost;          // records of this CPU that had no room, so far
};
static_assert(sizeof(RecordHead) == 160);
inline constexpr std::uint8_t flag_cut = 1; // something did not fit

struct CaptureHead {
  std::uint64_t key; // the address
  std::uint32_t length;
  CaptureKind kind;
  std::uint8_t cut;
  std::uint16_t reserved;
};
static_assert(sizeof(CaptureHead) == 16);

// Carter and Wegman's way, as UMAC has it (Black et al., CRYPTO 1999): NH with a key for all records, hidden by a pad
// that is used once.
struct Tag {
  std::uint64_t words[2];
};

// What a CPU knows of its ring.
struct CpuState {
  std::uint64_t head; // bytes written since the beginning, with those left out at the ring's end
  std::uint64_t sequence;
  std::uint64_t key[2]; // of the next record's pad; each makes the next one and is gone
  std::uint64_t lost;
  std::uint64_t doorbells;
  std::uint64_t forged;            // calls that came from where no hook is
  std::uint64_t beat, beat_cycles; // what the monitor's sign of life was, and since when
  std::uint64_t reserved;
  std::uint64_t calls[hook_limit], cycles[hook_limit];
};

struct CpuPage {
  CpuState state;
  std::uint64_t scratch[record_words]; // for a record that has no room, as rules may be about it
  char stack[page - sizeof(CpuState) - record_limit];
};
static_assert(sizeof(CpuPage) == page);

// ---- what both sides compute

__extension__ using Wide = unsigned __int128; // what two words make

// Four words from four, by SipHash's rounds with what went in added at the end, so that nobody can go back.
struct Permuted {
  std::uint64_t words[4];
};
constexpr std::uint64_t rotated(std::uint64_t value, int by) { return value << by | value >> (64 - by); }
constexpr Permuted permuted(std::uint64_t a, std::uint64_t b) {
  constexpr int rounds = 6;
  std::uint64_t v0 = a ^ 0x736f6d6570736575, v1 = b ^ 0x646f72616e646f6d, v2 = a ^ 0x6c7967656e657261,
                v3 = b ^ 0x7465646279746573;
  const std::uint64_t w0 = v0, w1 = v1, w2 = v2, w3 = v3;
  for (int i = 0; i < rounds; ++i) {
    v0 += v1, v1 = rotated(v1, 13) ^ v0, v0 = rotated(v0, 32);
    v2 += v3, v3 = rotated(v3, 16) ^ v2;
    v0 += v3, v3 = rotated(v3, 21) ^ v0;
    v2 += v1, v1 = rotated(v1, 17) ^ v2, v2 = rotated(v2, 32);
  }
  return {{v0 + w0, v1 + w1, v2 + w2, v3 + w3}};
}

// `count` is even. Makes the key the next one.
constexpr Tag tag_of(const std::uint64_t *words, std::uint32_t count, const std::uint64_t *hash_key,
                     std::uint64_t *key) {
  Wide sum = 0;
  for (std::uint32_t i = 0; i < count; i += 2)
    sum += static_cast<Wide>(words[i] + hash_key[i]) * (words[i + 1] + hash_key[i + 1]);
  const Permuted next = permuted(key[0], key[1]);
  key[0] = next.words[2];
  key[1] = next.words[3];
  sum += static_cast<Wide>(next.words[1]) << 64 | next.words[0];
  return {{static_cast<std::uint64_t>(sum), static_cast<std::uint64_t>(sum >> 64)}};
}

// Where a record begins whose predecessor ended at `head`: none crosses the ring's end.
constexpr std::uint64_t begin_of_record(std::uint64_t head, std::uint64_t ring_size) {
  const std::uint64_t left = ring_size - (head & (ring_size - 1));
  return left < record_limit ? head + left : head;
}

} // namespace lararium::gate::sim
