#include "process_image.h"

#include "lararium/os/linux/tasks.h"
#include "maps.h"
#include "vfs.h"

#include <algorithm>
#include <array>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t thread_limit = 1 << 20;
constexpr std::size_t frame_words = 21; // struct pt_regs on x86-64, the same order as user_regs_struct's first part
using Frame = std::array<std::uint64_t, frame_words>;
enum FrameWord : std::size_t { // the rest is found by its distance
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
  rflags,
  rsp,
  ss
};

// Words of cs and ss carry event data in their upper bits where the CPU delivers events by FRED (6.9).
constexpr std::uint64_t selector_mask = 0xffff;

// Whether the words are those of an interrupted user program: its flat code and stack segments, and flags whose bit 1
// is always set and whose interrupt bit user code cannot clear.
bool is_user_frame(const Frame &frame) {
  const std::uint64_t code = frame[cs] & selector_mask;
  return (code == 0x33 || code == 0x23) && (frame[ss] & selector_mask) == 0x2b && (frame[rflags] & 0x202) == 0x202 &&
         frame[rip] >> 63 == 0;
}

struct RegisterLayout {
  FieldLocation stack, fs_base, gs_base, fs, gs, ds, es;
  std::optional<FieldLocation> on_cpu, cpu;
  std::vector<std::uint64_t> frame_ends; // distances of a frame's end from the stack's base that kernels use

  static Result<RegisterLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    RegisterLayout f;
    f.stack = layout.require("task_struct", "stack");
    f.fs_base = layout.require("task_struct", "thread.fsbase");
    f.gs_base = layout.require("task_struct", "thread.gsbase");
    f.fs = layout.require("task_struct", "thread.fsindex");
    f.gs = layout.require("task_struct", "thread.gsindex");
    f.ds = layout.require("task_struct", "thread.ds");
    f.es = layout.require("task_struct", "thread.es");
    f.on_cpu = layout.optional("task_struct", "on_cpu");
    f.cpu = layout.optional_any("task_struct", {"thread_info.cpu", "cpu"});
    const auto regs = layout.require_size("pt_regs");
    TRY(layout.check());
    if (regs != sizeof(Frame))
      return fail(ErrorCode::unsupported, "the kernel's struct pt_regs has an unknown form");
    // The size of a kernel stack is no type but a constant: 16 KiB, twice that with KASAN. The first task's tells. A
    // kernel that can use FRED leaves 16 bytes free above the frame (TOP_OF_KERNEL_STACK_PADDING).
    std::vector<std::uint64_t> sizes;
    const auto begin = kernel.symbol("init_stack");
    const auto end = kernel.symbol("__end_init_task");
    if (begin && end && *end - *begin >= page_size && *end - *begin <= 128 * page_size)
      sizes.push_back(*end - *begin);
    for (const std::uint64_t size : {16ull << 10, 32ull << 10})
      if (std::ranges::find(sizes, size) == sizes.end())
        sizes.push_back(size);
    const bool fred = kernel.types().size_of("fred_frame").has_value();
    for (const std::uint64_t size : sizes)
      for (const std::uint64_t padding : {fred ? 16u : 0u, fred ? 0u : 16u})
        f.frame_ends.push_back(size - padding);
    return f;
  }
};

class RegisterReader {
public:
  RegisterReader(const Kernel &kernel, const RegisterLayout &layout, std::span<const VcpuRegisters> vcpus)
      : kernel_(kernel), f_(layout), vcpus_(vcpus) {}

  // In the order of struct user_regs_struct; empty where they cannot be had.
  std::vector<std::uint64_t> read(Gva task) const {
    const bool running = f_.on_cpu && kernel_.read_field(task, *f_.on_cpu).value_or(0) != 0;
    std::optional<Frame> frame;
    std::uint64_t fs_base = kernel_.read_field(task, f_.fs_base).value_or(0);
    std::uint64_t gs_base = kernel_.read_field(task, f_.gs_base).value_or(0);
    if (!running) {
      frame = from_stack(task);
    } else if (const VcpuRegisters *vcpu = vcpu_of(task)) {
      // In the kernel GS holds the CPU's own base, and the user's is where nobody prints it.
      frame = vcpu->in_user_mode() ? from_vcpu(*vcpu) : from_stack(task);
      fs_base = vcpu->fs_base.value;
      if (vcpu->in_user_mode())
        gs_base = vcpu->gs_base.value;
    }
    if (!frame)
      return {};
    std::vector<std::uint64_t> result(frame->begin(), frame->end());
    result[cs] &= selector_mask;
    result[ss] &= selector_mask;
    result.push_back(fs_base);
    result.push_back(gs_base);
    for (const FieldLocation *selector : {&f_.ds, &f_.es, &f_.fs, &f_.gs})
      result.push_back(kernel_.read_field(task, *selector).value_or(0));
    return result;
  }

private:
  [[nodiscard]] std::optional<Frame> from_stack(Gva task) const {
    const auto stack = kernel_.read_pointer(task, f_.stack);
    if (!stack || !kernel_.is_kernel_address(*stack))
      return std::nullopt;
    for (const std::uint64_t end : f_.frame_ends) {
      Frame frame;
      if (kernel_.space().read(*stack + (end - sizeof(Frame)), std::as_writable_bytes(std::span(frame))) &&
          is_user_frame(frame))
        return frame;
    }
    return std::nullopt;
  }

  static Frame from_vcpu(const VcpuRegisters &vcpu) {
    const auto &g = vcpu.general; // rax rcx rdx rbx rsp rbp rsi rdi r8 ..
    Frame frame{};
    frame[r15] = g[15], frame[r14] = g[14], frame[r13] = g[13], frame[r12] = g[12];
    frame[r11] = g[11], frame[r10] = g[10], frame[r9] = g[9], frame[r8] = g[8];
    frame[rax] = g[0], frame[rcx] = g[1], frame[rdx] = g[2], frame[rbx] = g[3];
    frame[rsp] = g[4], frame[rbp] = g[5], frame[rsi] = g[6], frame[rdi] = g[7];
    frame[orig_rax] = UINT64_MAX; // in no system call
    frame[rip] = vcpu.rip.value;
    frame[rflags] = vcpu.rflags;
    frame[cs] = vcpu.cs;
    frame[ss] = vcpu.ss;
    return frame;
  }

  // The vCPU that runs the task: of its CPU number, and with its address space.
  [[nodiscard]] const VcpuRegisters *vcpu_of(Gva task) const {
    const auto root = user_page_table(kernel_, task);
    const auto cpu = f_.cpu ? kernel_.read_field(task, *f_.cpu) : std::nullopt;
    if (!root || !cpu)
      return nullptr;
    for (const VcpuRegisters &vcpu : vcpus_) {
      const auto own = x86_64::PageTableRoot::from_registers(vcpu.cr3, vcpu.five_level_paging());
      if (vcpu.index == *cpu && (own.table == root->table || own.kernel_half().table == root->table))
        return &vcpu;
    }
    return nullptr;
  }

  const Kernel &kernel_;
  const RegisterLayout &f_;
  std::span<const VcpuRegisters> vcpus_;
};

// mm_struct.saved_auxv up to its end mark.
std::vector<std::byte> auxiliary_vector(const Kernel &kernel, Gva mm) {
  const auto member = kernel.types().field("mm_struct", "saved_auxv");
  if (!member)
    return {};
  std::vector<std::uint64_t> words(std::min<std::size_t>(member->size / 8, 128));
  if (!kernel.space().read(mm + member->offset, std::as_writable_bytes(std::span(words))))
    return {};
  std::size_t used = 0;
  while (used + 1 < words.size()) {
    used += 2;
    if (words[used - 2] == 0) // AT_NULL
      break;
  }
  const auto bytes = std::as_bytes(std::span(words).first(used));
  return {bytes.begin(), bytes.end()};
}

} // namespace

Result<ProcessImage> read_process_image(const Kernel &kernel, std::int32_t pid, std::span<const VcpuRegisters> vcpus) {
  ProcessImage image;
  ViewStatus &status = image.status;
  TRY_ASSIGN(const auto groups, list_task_groups(kernel, pid, status));
  const std::int32_t leader = groups.front().pid;
  ProcessQuery query;
  query.only_pids = {leader};
  query.current_directory = true;
  TRY_ASSIGN(auto processes, read_processes(kernel, query));
  image.process = std::move(processes.items.front());
  TRY_ASSIGN(auto regions, read_memory_regions(kernel, leader));
  image.regions = std::move(regions.items);
  status.raced |= regions.status.raced;
  status.truncated |= regions.status.truncated;
  for (std::string &warning : regions.status.warnings)
    status.warn(std::move(warning));
  if (const auto member = kernel.types().field("task_struct", "mm"))
    if (const auto mm = groups.front().first(kernel, *member, status, "memory"))
      image.auxiliary_vector = auxiliary_vector(kernel, *mm);
  TRY_ASSIGN(const RegisterLayout *layout, kernel.layout<RegisterLayout>());
  const RegisterReader reader(kernel, *layout, vcpus);
  const auto number = kernel.types().field("task_struct", "pid");
  for (const Gva task : groups.front().tasks) {
    if (image.threads.size() >= thread_limit || !number)
      break;
    const auto tid = kernel.read_field(task, *number);
    image.threads.push_back({static_cast<std::int32_t>(tid.value_or(0)), reader.read(task)});
  }
  return image;
}

} // namespace lararium::linux_guest
