#include "lararium/gate/memory_guard.h"

#include "lararium/os/linux.h"
#include "lararium/os/linux/modules.h"
#include "lawful_writes.h"
#include "running_kernel.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fmt/format.h>

namespace lararium::gate {
namespace {

using namespace std::chrono_literals;
using linux_guest::Kernel;
using std::chrono::microseconds;

constexpr std::size_t faults_at_once = 32, unverified_limit = 256, passing_limit = 4096, shown_bytes = 64,
                      tampered_limit = 1 << 16;
constexpr std::size_t banner_bytes = 64;
constexpr std::uint64_t largest_module_text = 64 << 20;
constexpr auto registers_limit = 2s;    // then it is told without
constexpr auto passing_limit_time = 1s; // that int3 may stand where the kernel patches
constexpr auto longest_passing = 10s;   // and as long as the kernel says that it is at it
constexpr std::uint64_t descriptor_size = 8, first_own_descriptor = 8, last_own_descriptor = 15;

std::uint64_t host_time() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count());
}

// TSS, LDT, TLS and the CPU's number: the kernel writes to these as it runs.
bool is_own_descriptor(std::uint64_t offset) {
  const std::uint64_t number = offset / descriptor_size;
  return number >= first_own_descriptor && number <= last_own_descriptor;
}

} // namespace

MemoryGuard::MemoryGuard(OperatingSystem &system, const Kernel &kernel, PhysicalMemory &memory,
                         WriteProtection &protection, GuardOptions options)
    : system_(system), kernel_(kernel), memory_(memory), protection_(protection), options_(std::move(options)) {}

MemoryGuard::~MemoryGuard() { release_all(); }

Result<void> MemoryGuard::check_ready(const OperatingSystem &system) {
  const Kernel *kernel = linux_guest::kernel_of(system);
  if (kernel == nullptr)
    return fail(ErrorCode::unsupported, "only Linux guests can be protected so far");
  TRY(find_guarded_pages(*kernel));
  return {};
}

Result<std::unique_ptr<MemoryGuard>> MemoryGuard::create(OperatingSystem &system, PhysicalMemory &memory,
                                                         WriteProtection &protection, GuardOptions options) {
  const Kernel *kernel = linux_guest::kernel_of(system);
  if (kernel == nullptr)
    return fail(ErrorCode::unsupported, "only Linux guests can be protected so far");
  auto guard = std::make_unique<MemoryGuard>(system, *kernel, memory, protection, std::move(options));
  TRY(guard->start());
  return guard;
}

Result<void> MemoryGuard::start() {
  system_.refresh();
  TRY_ASSIGN(auto pages, find_guarded_pages(kernel_));
  const auto banner = kernel_.symbol("linux_banner");
  banner_.resize(banner_bytes);
  if (!banner || !kernel_.space().read(*banner, banner_))
    return fail(ErrorCode::not_found, "the kernel's banner cannot be read");
  lawful_ = std::make_unique<LawfulWrites>(kernel_);
  if (auto added = add_pages(std::move(pages)); !added) {
    release_all();
    return added;
  }
  next_poll_ = Clock::now() + options_.timing.poll;
  return {};
}

// Protects what is new. A unit of the host's is protected when all of it is guarded; else its pages are compared.
Result<void> MemoryGuard::add_pages(std::vector<GuardedPage> pages) {
  std::map<Gpa, Unit> fresh;
  for (GuardedPage &page : pages) {
    const std::uint64_t size = protection_.unit_at(page.frame);
    const Gpa base{page.frame.value / size * size};
    if (const auto known = units_.find(base); known != units_.end()) {
      // In a huge page with others that are compared.
      Unit &unit = known->second;
      if (unit.compared && std::ranges::find(unit.pages, page.frame, &GuardedPage::frame) == unit.pages.end()) {
        unit.before.resize(unit.before.size() + page_size);
        static_cast<void>(memory_.read(page.frame, std::span(unit.before).last(page_size)));
        unit.pages.push_back(std::move(page));
      }
      continue;
    }
    Unit &unit = fresh[base];
    unit.size = size;
    const bool is_code = page.kind == PageKind::kernel_text || page.kind == PageKind::module_text;
    unit.compared = unit.compared || page.kind == PageKind::gdt || (is_code && !protection_.may_hold_code());
    unit.pages.push_back(std::move(page));
  }
  std::uint64_t too_small = 0;
  for (auto &[base, unit] : fresh)
    if (!unit.compared && unit.pages.size() * page_size < unit.size) {
      unit.compared = true;
      too_small += unit.pages.size();
    }
  if (too_small != 0 && limitations_.size() < 16)
    limitations_.push_back(
        fmt::format("{} pages share huge pages of the host's with memory that changes: they are compared "
                    "every {} ms, not protected",
                    too_small, options_.timing.poll.count()));
  const bool has_code = std::ranges::any_of(
      fresh, [](const auto &entry) { return entry.second.pages.front().kind == PageKind::kernel_text; });
  if (has_code && !protection_.may_hold_code())
    limitations_.push_back(
        fmt::format("the VM translates code (TCG): writes to code cannot be held, so code is compared "
                    "every {} ms, and who wrote is not known",
                    options_.timing.poll.count()));
  // Neighbours in one call each.
  for (auto it = fresh.begin(); it != fresh.end();) {
    auto next = std::next(it);
    if (it->second.compared) {
      it = next;
      continue;
    }
    Gpa end = it->first + it->second.size;
    while (next != fresh.end() && next->first == end && !next->second.compared) {
      end += next->second.size;
      ++next;
    }
    TRY(protection_.protect(it->first, end - it->first));
    it = next;
  }
  for (auto &[base, unit] : fresh) {
    unit.patience = options_.timing.patience;
    if (unit.compared) {
      unit.before.resize(unit.pages.size() * page_size);
      for (std::size_t i = 0; i < unit.pages.size(); ++i)
        static_cast<void>(memory_.read(unit.pages[i].frame, std::span(unit.before).subspan(i * page_size, page_size)));
    }
    units_.emplace(base, std::move(unit));
  }
  return {};
}

MemoryGuard::Clock::time_point MemoryGuard::due(Clock::time_point now) const {
  auto due = next_poll_;
  for (const Gpa base : open_)
    due = std::min(due, units_.at(base).check);
  return registers_.valid() ? std::min(due, now + 1ms) : due;
}

Result<void> MemoryGuard::step(std::chrono::milliseconds timeout, std::vector<Record> &out) {
  auto now = Clock::now();
  const auto end = now + timeout;
  do {
    const auto until = std::min(end, due(now));
    std::array<WriteFault, faults_at_once> faults;
    const auto left = std::chrono::ceil<microseconds>(std::max(until - now, Clock::duration::zero()));
    const auto count = protection_.wait(faults, left);
    if (!count)
      return std::unexpected(count.error());
    now = Clock::now();
    if (*count != 0)
      system_.refresh();
    for (std::size_t i = 0; i < *count; ++i)
      take_fault(faults[i], now);
    look_at_open(now, out);
    verify(out);
    if (now >= next_poll_ && *count == 0) {
      look_at_the_rest(now, out);
      next_poll_ = now + options_.timing.poll;
    }
    if (lost_) {
      release_all();
      return fail(ErrorCode::unknown_os, "the kernel that was guarded runs no more");
    }
  } while (now < end && out.empty());
  return {};
}

void MemoryGuard::take_fault(const WriteFault &fault, Clock::time_point now) {
  ++counts_.faults;
  const std::uint64_t size = protection_.unit_at(fault.address);
  const Gpa base{fault.address.value / size * size};
  const auto found = units_.find(base);
  if (found != units_.end() && !found->second.open && !found->second.compared) {
    Unit &unit = found->second;
    unit.before.resize(unit.size);
    if (memory_.read(base, unit.before)) {
      // Who waits here is at the very instruction: what its CPU runs now is who writes.
      unit.writer = fault;
      unit.task = fault.vcpu ? linux_guest::running_task(kernel_, *fault.vcpu) : std::nullopt;
      unit.host_time_ns = host_time();
      unit.open = true;
      unit.changed = false;
      unit.faults = 0;
      unit.last = unit.before;
      unit.opened = now;
      unit.check = now + options_.timing.quiet;
      unit.deadline = now + unit.patience;
      open_.push_back(base);
    }
  }
  if (found != units_.end())
    ++found->second.faults;
  // Also where nothing is guarded (any more): whatever happens, whoever waits goes on.
  static_cast<void>(protection_.release(base, size));
}

void MemoryGuard::look_at_open(Clock::time_point now, std::vector<Record> &out) {
  std::vector<std::byte> current;
  for (std::size_t i = 0; i < open_.size();) {
    const Gpa base = open_[i];
    Unit &unit = units_.at(base);
    if (now < unit.check) {
      ++i;
      continue;
    }
    current.resize(unit.size);
    memory_.refresh();
    const bool readable = memory_.read(base, current);
    const bool differs = readable && current != unit.last;
    if (differs) {
      unit.last = current;
      unit.changed = true;
    }
    const auto open_for = now - unit.opened;
    const bool done = !differs && (unit.changed || now >= unit.deadline);
    if (!done && readable && open_for < options_.timing.longest) {
      // The longer it takes, the less often it is looked at.
      unit.check = now + std::clamp<Clock::duration>(open_for / 2, options_.timing.quiet, 1ms);
      ++i;
      continue;
    }
    open_[i] = open_.back();
    open_.pop_back();
    close(base, unit, now, out);
  }
}

void MemoryGuard::close(Gpa base, Unit &unit, Clock::time_point now, std::vector<Record> &out) {
  unit.open = false;
  counts_.open += now - unit.opened;
  counts_.longest_open = std::max<std::chrono::nanoseconds>(counts_.longest_open, now - unit.opened);
  // Protected first and read then: what is written from here on waits.
  if (!protection_.protect(base, unit.size)) {
    forget(base); // the memory is there no more
    return;
  }
  system_.refresh();
  std::vector<std::byte> after(unit.size);
  if (!memory_.read(base, after)) {
    forget(base);
    return;
  }
  if (after == unit.before) {
    ++counts_.unchanged;
    if (options_.revert && !tampered_.empty())
      for (const GuardedPage &page : unit.pages)
        find_tampered_again(unit, page, Bytes(after).subspan(page.frame - base, page_size));
    // Re-armed before the store, or a store of what stood there: the next time it is given longer.
    unit.patience = std::min(unit.patience * 2, options_.timing.longest);
    return;
  }
  unit.patience = options_.timing.patience;
  lawful_->read_moments();
  const std::vector<GuardedPage> pages = unit.pages;
  for (const GuardedPage &page : pages) {
    const std::uint64_t offset = page.frame - base;
    const Bytes old = Bytes(unit.before).subspan(offset, page_size),
                now_there = Bytes(after).subspan(offset, page_size);
    if (std::ranges::equal(old, now_there))
      continue;
    if (is_gone(page)) {
      ++counts_.lawful;
      forget(base);
      return;
    }
    judge(unit, page, old, now_there, out);
  }
}

// Pages of a module that is gone belong to somebody else now.
bool MemoryGuard::is_gone(const GuardedPage &page) {
  if (page.kind != PageKind::module_text)
    return false;
  const auto frame = kernel_.space().translate(page.address);
  if (!frame || frame->address.page() != page.frame || frame->writable)
    return true;
  const auto regions = linux_guest::read_module_regions(kernel_);
  return regions && std::ranges::none_of(regions->items, [&](const linux_guest::ModuleRegion &region) {
           return region.module == page.owner && page.address + page_size > region.base &&
                  page.address < region.base + region.size;
         });
}

void MemoryGuard::judge(const Unit &unit, const GuardedPage &page, Bytes before, Bytes after,
                        std::vector<Record> &out) {
  constexpr std::size_t joined = 8; // what lies nearer belongs to one write
  const bool is_code = page.kind == PageKind::kernel_text || page.kind == PageKind::module_text;
  bool learned = false;
  for (std::size_t at = 0; at < page_size;) {
    if (before[at] == after[at]) {
      ++at;
      continue;
    }
    const auto judged = [&](std::size_t offset) -> Judgement {
      if (!is_code)
        return {false, false, "nothing may change it", 1};
      Judgement judgement = lawful_->judge(page.address + offset, before.subspan(offset));
      if (!judgement.lawful && page.kind == PageKind::module_text && !std::exchange(learned, true)) {
        lawful_->learn();
        judgement = lawful_->judge(page.address + offset, before.subspan(offset));
      }
      return judgement;
    };
    const Judgement first = judged(at);
    std::size_t end = std::min<std::size_t>(at + std::max<std::uint64_t>(first.length, 1), page_size);
    if (first.lawful) {
      if (first.passing && after[at] == std::byte{0xcc} && passing_.size() < passing_limit)
        passing_.push_back({page.frame + at, page.address + at, before[at],
                            Unlawful{page,
                                     page.address + at,
                                     {before[at]},
                                     {after[at]},
                                     "int3 stays where the kernel only passes",
                                     unit.writer,
                                     !unit.compared,
                                     unit.task,
                                     unit.compared ? host_time() : unit.host_time_ns,
                                     {},
                                     {}},
                            Clock::now() + passing_limit_time, Clock::now() + longest_passing});
    } else {
      // All bytes of it that no place explains.
      std::size_t last = at;
      for (std::size_t i = at + 1; i < page_size && i <= last + joined; ++i)
        if (before[i] != after[i]) {
          if (judged(i).lawful)
            break;
          last = i;
        }
      end = last + 1;
    }
    judge_run(unit, page, at, before.subspan(at, end - at), after.subspan(at, end - at), first.reason, first.lawful,
              out);
    at = end;
  }
}

void MemoryGuard::judge_run(const Unit &unit, const GuardedPage &page, std::size_t begin, Bytes before, Bytes after,
                            std::string_view reason, bool lawful, std::vector<Record> &out) {
  Unlawful write{page,
                 page.address + begin,
                 {before.begin(), before.end()},
                 {after.begin(), after.end()},
                 std::string(reason),
                 unit.writer,
                 !unit.compared,
                 unit.task,
                 unit.compared ? host_time() : unit.host_time_ns,
                 unit.compared ? microseconds{} : std::chrono::duration_cast<microseconds>(Clock::now() - unit.opened),
                 Clock::now()};
  if (puts_back(write.address, after)) {
    ++counts_.restored;
    write.reason = "what stood there before it was tampered with";
    out.push_back(record_of(write, "", nullptr));
    return;
  }
  if (lawful) {
    ++counts_.lawful;
    if (options_.lawful)
      out.push_back(record_of(write, "", nullptr));
    return;
  }
  for (std::size_t i = 0; i < before.size() && tampered_.size() < tampered_limit; ++i)
    tampered_.try_emplace(write.address + i, before[i]);
  ++counts_.unlawful;
  if (unverified_.size() < unverified_limit)
    unverified_.push_back(std::move(write));
  else
    ++counts_.left_out;
}

// Whether each byte is what it was before something unlawful was found there; then it is no more.
bool MemoryGuard::puts_back(Gva address, Bytes after) {
  for (std::size_t i = 0; i < after.size(); ++i) {
    const auto before = tampered_.find(address + i);
    if (before == tampered_.end() || before->second != after[i])
      return false;
  }
  for (std::size_t i = 0; i < after.size(); ++i)
    tampered_.erase(address + i);
  return true;
}

// What was tampered with and was about to be put back, until somebody wrote there again, and then what it was before.
void MemoryGuard::find_tampered_again(const Unit &unit, const GuardedPage &page, Bytes now_there) {
  auto at = tampered_.lower_bound(page.address);
  while (at != tampered_.end() && at->first < page.address + page_size) {
    const Gva begin = at->first;
    std::vector<std::byte> before, after;
    for (; at != tampered_.end() && at->first == begin + before.size() && at->first < page.address + page_size; ++at) {
      before.push_back(at->second);
      after.push_back(now_there[at->first - page.address]);
    }
    const bool is_waiting = std::ranges::any_of(unverified_, [&](const Unlawful &write) {
      return write.address < begin + before.size() && begin < write.address + write.after.size();
    });
    if (before == after || is_waiting || unverified_.size() >= unverified_limit)
      continue;
    ++counts_.unlawful;
    unverified_.push_back({page,
                           begin,
                           std::move(before),
                           std::move(after),
                           "it was tampered with before",
                           unit.writer,
                           true,
                           unit.task,
                           unit.host_time_ns,
                           {},
                           Clock::now()});
  }
}

// What is not lawful is told, and put back, once it is known that the kernel that is guarded is the one that runs:
// after a reset its memory is anybody's.
void MemoryGuard::verify(std::vector<Record> &out) {
  if (unverified_.empty())
    return;
  std::vector<VcpuRegisters> registers;
  if (options_.registers) {
    if (!registers_.valid())
      registers_ = options_.registers();
    const bool ready = registers_.wait_for(0s) == std::future_status::ready;
    if (!ready && Clock::now() - unverified_.front().found < registers_limit)
      return;
    if (ready)
      if (auto answer = registers_.get())
        registers = std::move(*answer);
  }
  system_.refresh();
  const Sight sight = registers.empty() ? Sight::running : look_for(kernel_, registers, readings_without_kernel_);
  if (!kernel_is_there() || sight == Sight::gone) {
    lost_ = true;
    unverified_.clear();
    return;
  }
  if (sight == Sight::unclear)
    return;
  for (; !unverified_.empty(); unverified_.pop_front()) {
    const Unlawful &write = unverified_.front();
    std::string_view action = "reported";
    const Gpa place = write.page.frame + (write.address - write.page.address);
    std::vector<std::byte> now_there(write.after.size());
    // What was compared and changed again since was seen in the middle of something: a probe that is gone by now.
    if (!write.has_writer && (!memory_.read(place, now_there) || now_there != write.after)) {
      --counts_.unlawful;
      static_cast<void>(puts_back(write.address, write.before));
      expect_again(write);
      continue;
    }
    if (options_.revert) {
      action = "overtaken"; // somebody changed it since
      if (memory_.read(place, now_there) && now_there == write.after) {
        action = protection_.overwrite(place, write.before) ? "reverted" : "could not be reverted";
        if (action == "reverted") {
          ++counts_.reverted;
          static_cast<void>(puts_back(write.address, write.before));
          expect_again(write);
        }
        memory_.refresh();
      }
    }
    const VcpuRegisters *vcpu = nullptr;
    for (const VcpuRegisters &each : registers)
      if (write.writer.vcpu == each.index)
        vcpu = &each;
    out.push_back(record_of(write, action, vcpu));
  }
}

bool MemoryGuard::kernel_is_there() {
  const auto banner = kernel_.symbol("linux_banner");
  std::vector<std::byte> now_there(banner_.size());
  const auto &location = kernel_.location();
  return banner && memory_.read(location.physical_base + (*banner - location.base), now_there) &&
         (now_there == banner_ || std::ranges::any_of(unverified_, [&](const Unlawful &write) {
            return write.address < *banner + banner_.size() && write.address + write.after.size() > *banner;
          }));
}

std::string MemoryGuard::describe(Gva address, const GuardedPage &page) {
  std::string text = fmt::format("{:#x}", address.value);
  constexpr std::uint64_t reach = 1 << 20;
  if (const auto symbol = system_.symbolize(address); symbol && symbol->second < reach)
    text = symbol->second == 0 ? symbol->first.name : fmt::format("{}+{:#x}", symbol->first.name, symbol->second);
  return page.module.empty() ? text : fmt::format("{} [{}]", text, page.module);
}

Record MemoryGuard::record_of(const Unlawful &write, std::string_view action, const VcpuRegisters *registers) {
  const bool lawful = action.empty();
  const std::string symbol = describe(write.address, write.page);
  Record record;
  record.kind = lawful ? RecordKind::event : RecordKind::finding;
  record.type = "memory_written";
  record.host_time_ns = write.host_time_ns;
  const std::string who = write.task ? fmt::format("{} ({})", write.task->comm, write.task->pid)
                          : write.has_writer && !write.writer.vcpu ? std::string("a device, or an unknown vCPU")
                                                                   : std::string("somebody");
  record.sentence =
      lawful ? fmt::format("{} changed {} in {}: {}", who, symbol, name_of(write.page.kind), write.reason)
             : fmt::format("{} wrote {} {} to {} in {}: {}", who, write.after.size(),
                           write.after.size() == 1 ? "byte" : "bytes", symbol, name_of(write.page.kind), write.reason);
  if (write.task && write.task->pid != 0) {
    record.actor = Actor{write.task->tgid, write.task->ppid, write.task->uid, write.task->comm, {}, {}, {}};
    if (!lawful)
      if (const auto view = system_.processes({.only_pids = {write.task->tgid}}); view && !view->items.empty()) {
        const Process &process = view->items.front();
        if (process.task == write.task->task || process.tgid == write.task->tgid)
          record.actor = Actor{process.tgid, process.ppid,         process.uid.effective, process.comm,
                               process.exe,  process.container_id, process.start_time_ns};
      }
  }
  const auto shown = [](const std::vector<std::byte> &bytes) {
    return std::vector<std::byte>(bytes.begin(),
                                  bytes.begin() + static_cast<std::ptrdiff_t>(std::min(bytes.size(), shown_bytes)));
  };
  std::vector<RecordField> fields;
  const auto add = [&](std::string name, FieldValue value) { fields.push_back({std::move(name), std::move(value)}); };
  add("address", write.address);
  add("symbol", symbol);
  add("memory", std::string(name_of(write.page.kind)));
  if (!write.page.module.empty())
    add("module", write.page.module);
  add("size", std::uint64_t{write.after.size()});
  add("expected_bytes", shown(write.before));
  add("found_bytes", shown(write.after));
  add("lawful", lawful);
  add("reason", write.reason);
  if (write.has_writer) {
    if (write.writer.vcpu)
      add("vcpu", std::uint64_t{*write.writer.vcpu});
    add("thread", static_cast<std::uint64_t>(write.writer.thread));
    add("open_microseconds", static_cast<std::uint64_t>(write.open.count()));
  }
  if (registers != nullptr && !registers->in_user_mode())
    add("vcpu_afterwards_at", describe(registers->rip, {}));
  if (!lawful) {
    add("action", std::string(action));
    Finding finding{.check = "protect",
                    .subject = symbol,
                    .severity = Severity::critical,
                    .technique = "T1014",
                    .sentence = record.sentence,
                    .evidence = fields,
                    .process = record.actor};
    record.finding = std::move(finding);
  }
  record.fields = std::move(fields);
  return record;
}

void MemoryGuard::look_at_the_rest(Clock::time_point now, std::vector<Record> &out) {
  system_.refresh();
  if (!kernel_is_there()) {
    lost_ = true;
    return;
  }
  look_at_modules();
  look_at_compared(out);
  look_at_passing(now);
}

void MemoryGuard::look_at_modules() {
  const auto regions = linux_guest::read_module_regions(kernel_);
  if (!regions || !regions->walk.consistent())
    return;
  std::vector<ModuleText> modules;
  for (const auto &region : regions->items)
    if (region.kind == linux_guest::ModuleRegion::Kind::text) {
      // A module that came again lies where it lay, but in other frames.
      ModuleText text{region.module, region.base, 0};
      for (std::uint64_t at = 0; at < std::min(region.size, largest_module_text); at += page_size) {
        const auto frame = kernel_.space().translate(region.base + at);
        text.frames = (text.frames ^ (frame ? frame->address.value + (frame->writable ? 1 : 0) : 0)) * 0x100000001b3;
      }
      modules.push_back(text);
    }
  if (modules == modules_)
    return;
  auto pages = find_module_pages(kernel_);
  // Those that are gone: their memory is free.
  forget_pages([&](const GuardedPage &page) {
    return page.kind == PageKind::module_text && !std::ranges::binary_search(pages, page);
  });
  lawful_->learn();
  // Text that is not read-only yet is taken when it is.
  static_cast<void>(add_pages(std::move(pages)));
  modules_ = std::move(modules);
}

void MemoryGuard::look_at_compared(std::vector<Record> &out) {
  std::array<std::byte, page_size> now_there;
  bool moments_are_fresh = false;
  std::vector<Gpa> gone; // frames
  for (auto &[base, unit] : units_) {
    if (!unit.compared)
      continue;
    for (std::size_t i = 0; i < unit.pages.size(); ++i) {
      const GuardedPage &page = unit.pages[i];
      const std::span<std::byte> before = std::span(unit.before).subspan(i * page_size, page_size);
      // Most pages are as they were: where they are mapped they need no copy.
      if (const Bytes view = memory_.view(page.frame);
          view.size() >= page_size && std::memcmp(view.data(), before.data(), page_size) == 0)
        continue;
      if (!memory_.read(page.frame, now_there))
        continue;
      if (page.kind == PageKind::gdt)
        for (std::size_t at = 0; at < page_size; ++at)
          if (is_own_descriptor(at))
            now_there[at] = before[at];
      if (std::ranges::equal(before, now_there))
        continue;
      if (is_gone(page)) {
        gone.push_back(page.frame);
        continue;
      }
      if (!std::exchange(moments_are_fresh, true))
        lawful_->read_moments();
      const std::vector<std::byte> old(before.begin(), before.end());
      std::ranges::copy(now_there, before.begin());
      judge(unit, page, old, now_there, out);
    }
  }
  if (!gone.empty())
    forget_pages([&](const GuardedPage &page) { return std::ranges::find(gone, page.frame) != gone.end(); });
}

// What a page that is compared, or open just now, is compared with from now on.
void MemoryGuard::expect_again(const Unlawful &write) {
  const std::uint64_t size = protection_.unit_at(write.page.frame);
  const auto unit = units_.find(Gpa{write.page.frame.value / size * size});
  if (unit == units_.end())
    return;
  if (unit->second.open)
    std::ranges::copy(write.before,
                      unit->second.before.begin() + static_cast<std::ptrdiff_t>(write.page.frame - unit->first +
                                                                                (write.address - write.page.address)));
  if (!unit->second.compared)
    return;
  const auto &pages = unit->second.pages;
  for (std::size_t i = 0; i < pages.size(); ++i)
    if (pages[i].frame == write.page.frame)
      std::ranges::copy(write.before,
                        unit->second.before.begin() +
                            static_cast<std::ptrdiff_t>(i * page_size + (write.address - write.page.address)));
}

// The kernel writes int3, what is behind it, and then what is to stay; that takes it no second, or longer where its
// CPUs get no time. One that it toggles all the time is seen as something else in between.
void MemoryGuard::look_at_passing(Clock::time_point now) {
  if (passing_.empty())
    return;
  std::erase_if(passing_, [&](const Passing &each) {
    std::byte there{};
    return !memory_.read(each.frame, writable_bytes_of(there)) || there != std::byte{0xcc};
  });
  if (std::ranges::none_of(passing_, [&](const Passing &each) { return each.due <= now; }))
    return;
  lawful_->read_moments();
  std::erase_if(passing_, [&](Passing &each) {
    if (each.due > now || (each.latest > now && lawful_->is_being_patched(each.address)))
      return false;
    const std::array<std::byte, 1> before{each.before};
    const Judgement judgement = lawful_->judge(each.address, before);
    if (judgement.lawful && !judgement.passing)
      return true;
    ++counts_.unlawful;
    each.write.found = now;
    if (unverified_.size() < unverified_limit)
      unverified_.push_back(std::move(each.write));
    else
      ++counts_.left_out;
    return true;
  });
}

void MemoryGuard::forget(Gpa base) {
  const auto unit = units_.find(base);
  if (unit == units_.end())
    return;
  std::erase(open_, base);
  static_cast<void>(protection_.release(base, unit->second.size));
  units_.erase(unit);
  modules_.clear(); // whoever has that memory now may be a module again
}

// Other pages of the same huge page of the host's stay guarded.
void MemoryGuard::forget_pages(const std::function<bool(const GuardedPage &)> &is_gone) {
  std::vector<Gpa> empty;
  for (auto &[base, unit] : units_) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < unit.pages.size(); ++i) {
      if (is_gone(unit.pages[i]))
        continue;
      if (kept != i) {
        unit.pages[kept] = std::move(unit.pages[i]);
        if (unit.compared)
          std::memcpy(&unit.before[kept * page_size], &unit.before[i * page_size], page_size);
      }
      ++kept;
    }
    if (kept == unit.pages.size())
      continue;
    unit.pages.erase(unit.pages.begin() + static_cast<std::ptrdiff_t>(kept), unit.pages.end());
    if (unit.compared)
      unit.before.resize(kept * page_size);
    modules_.clear(); // whoever has that memory now may be a module again
    if (kept == 0 || !unit.compared)
      empty.push_back(base);
  }
  for (const Gpa base : empty)
    forget(base);
}

void MemoryGuard::release_all() {
  for (const auto &[base, unit] : units_)
    if (!unit.compared)
      static_cast<void>(protection_.release(base, unit.size));
  units_.clear();
  open_.clear();
}

GuardCounts MemoryGuard::counts() const {
  GuardCounts counts = counts_;
  for (const auto &[base, unit] : units_) {
    counts.pages += unit.pages.size();
    counts.compared_pages += unit.compared ? unit.pages.size() : 0;
  }
  return counts;
}

} // namespace lararium::gate
