#include "process_core.h"

#include <algorithm>

namespace lararium::cli {
namespace {

// The order of the kernel's struct user_regs_struct (arch/x86/include/asm/user_64.h).
enum UserRegister : std::size_t {
  r15,
  r14,
  r13,
  r12,
  rbp,
  rbx,
  r11,
  r10,
  r9,
  r8,
  rax,
  rcx,
  rdx,
  rsi,
  rdi,
  orig_rax,
  rip,
  cs,
  eflags,
  rsp,
  ss,
  fs_base,
  gs_base,
  ds,
  es,
  fs,
  gs,
  register_count
};

ThreadState thread_state_of(const ProcessImage::Thread &thread) {
  ThreadState state;
  state.thread_id = thread.tid;
  if (thread.user_registers.size() < register_count)
    return state; // they were in a vCPU, not in memory: zeros
  const auto &values = thread.user_registers;
  constexpr UserRegister encoding_order[] = {rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi,
                                             r8,  r9,  r10, r11, r12, r13, r14, r15};
  for (std::size_t i = 0; i < std::size(encoding_order); ++i)
    state.registers.general[i] = values[encoding_order[i]];
  state.registers.rip = Gva{values[rip]};
  state.registers.rsp = Gva{values[rsp]};
  state.registers.rflags = values[eflags];
  state.registers.cs = static_cast<std::uint16_t>(values[cs]);
  state.registers.ss = static_cast<std::uint16_t>(values[ss]);
  state.registers.fs_base = Gva{values[fs_base]};
  state.registers.gs_base = Gva{values[gs_base]};
  state.orig_rax = static_cast<std::int64_t>(values[orig_rax]);
  return state;
}

} // namespace

ProcessCore process_core_of(ProcessImage image) {
  const Process &process = image.process;
  ProcessCore core;
  core.pid = process.tgid;
  core.parent = process.ppid;
  core.process_group = process.pgrp;
  core.session = process.session;
  core.uid = process.uid.real;
  core.gid = process.gid.real;
  core.state = process.state;
  core.nice = static_cast<std::int8_t>(std::clamp(process.nice, -20, 19));
  core.command = process.comm;
  for (const std::string &argument : process.arguments) {
    core.arguments += core.arguments.empty() ? "" : " ";
    core.arguments += argument;
  }
  for (const ProcessImage::Thread &thread : image.threads)
    core.threads.push_back(thread_state_of(thread));
  // Debuggers show the main thread first.
  std::ranges::stable_partition(core.threads, [&](const ThreadState &thread) { return thread.thread_id == core.pid; });
  core.auxiliary_vector = std::move(image.auxiliary_vector);
  // Guest memory may tell of regions in any order, and of overlapping ones.
  std::ranges::sort(image.regions, {}, &MemoryRegion::begin);
  Gva end{0};
  for (const MemoryRegion &region : image.regions) {
    if (region.end <= region.begin || region.begin < end || (region.begin.value | region.end.value) & page_mask)
      continue;
    end = region.end;
    core.segments.push_back(
        {region.begin, region.end - region.begin, region.readable, region.writable, region.executable});
    if (region.path.starts_with('/'))
      core.files.push_back({region.begin, region.end - region.begin, region.file_offset, region.path});
  }
  return core;
}

ProcessPage ProcessPages::read(Gva page, std::span<std::byte> out) const {
  const auto after = std::ranges::upper_bound(core_.segments, page, {}, &ProcessSegment::base);
  if (after != core_.segments.begin()) {
    const ProcessSegment &segment = *std::prev(after);
    const bool is_reserved_only = !segment.readable && !segment.writable && !segment.executable;
    if (is_reserved_only || absent_ >= most_absent)
      return {false, segment.size - std::min(segment.size, page - segment.base)};
  }
  const auto got = system_.read_process(core_.pid, page, out);
  if (got && *got == out.size())
    return {true, 0};
  ++absent_;
  return {};
}

} // namespace lararium::cli
