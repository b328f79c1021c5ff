#include "lararium/gate/register_guard.h"

#include "lararium/gate/gate.h"
#include "lararium/space/address_space.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::gate {
namespace {

using namespace std::chrono_literals;
using linux_guest::PageTables;
using linux_guest::RegisterDeviation;

constexpr unsigned looks_of_a_register = 3;
// Of a page table. In a storm of short-lived processes one is seen in CR3 and is gone when the lists are read, and the
// next process gets the same page again: but then it is in the lists for part of the time, and found there.
constexpr unsigned sightings_of_a_table = 5, reads_of_the_lists = 40;
constexpr std::chrono::milliseconds between_reads{10}, forgotten_after{30000};
constexpr std::size_t table_limit = 64;

std::uint64_t host_time() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count());
}

} // namespace

void RegisterGuard::look(std::span<const VcpuRegisters> vcpus, Clock::time_point now, std::vector<Record> &out) {
  ++counts_.looks;
  system_.refresh();
  bool again = false;
  // A kernel that runs virtual machines itself has their values in these registers now and then.
  std::optional<bool> hosts;
  for (const VcpuRegisters &vcpu : vcpus) {
    auto deviations = linux_guest::judge_registers(kernel_, vcpu);
    if (!deviations.empty() && !hosts)
      hosts = runs_virtual_machines();
    if (hosts.value_or(false))
      deviations.clear();
    for (auto it = suspicions_.begin(); it != suspicions_.end();) {
      const auto &[place, suspicion] = *it;
      const bool is_there = std::ranges::any_of(
          deviations, [&, name = place.second](const RegisterDeviation &deviation) { return deviation.name == name; });
      if (place.first != vcpu.index || is_there || !vcpu.runs_64_bit_kernel()) {
        ++it;
        continue;
      }
      if (suspicion.told)
        tell(vcpu.index, place.second, true, suspicion.deviation.expected, suspicion.deviation.expected,
             "is again as the kernel has it", {}, out);
      it = suspicions_.erase(it);
    }
    for (RegisterDeviation &deviation : deviations) {
      Suspicion &suspicion = suspicions_[{vcpu.index, deviation.name}];
      if (suspicion.told && suspicion.deviation.found == deviation.found)
        continue;
      const bool is_same = suspicion.looks != 0 && suspicion.deviation.found == deviation.found;
      suspicion.looks = is_same ? suspicion.looks + 1 : 1;
      suspicion.told = false;
      suspicion.deviation = std::move(deviation);
      if (suspicion.looks < looks_of_a_register) {
        again = true;
        continue;
      }
      suspicion.told = true;
      ++counts_.deviations;
      tell(vcpu.index, suspicion.deviation.name, false, suspicion.deviation.found, suspicion.deviation.expected,
           suspicion.deviation.what, {}, out);
    }
  }
  look_at_tables(vcpus, now, out);
  again |= suspects_tables();
  due_ = now + (again ? timing_.again : timing_.interval);
  between_ = now + between_reads;
}

void RegisterGuard::look_at_tables(std::span<const VcpuRegisters> vcpus, Clock::time_point now,
                                   std::vector<Record> &out) {
  const auto known = PageTables::read(kernel_);
  if (!known)
    return;
  for (auto it = tables_.begin(); it != tables_.end();) {
    StrangeTable &table = it->second;
    table.reads += known->complete() ? 1 : 0;
    const bool is_lawful = known->hold({it->first, 4});
    if (!is_lawful && now - table.last_seen < forgotten_after) {
      ++it;
      continue;
    }
    if (table.told)
      tell(table.vcpu, "CR3", true, table.cr3, 0,
           is_lawful ? "has the page table of a process" : "has left that page table", {}, out);
    it = tables_.erase(it);
  }
  for (const VcpuRegisters &vcpu : vcpus) {
    if (!vcpu.runs_64_bit_kernel() || !known->complete())
      continue;
    const auto root = x86_64::PageTableRoot::from_registers(vcpu.cr3, vcpu.five_level_paging());
    if (known->hold(root))
      continue;
    if (is_code_of_gate(kernel_, vcpu.rip))
      continue;
    const bool maps_kernel = maps_the_kernel(root);
    // Of a VM in this VM.
    if (!maps_kernel && runs_virtual_machines())
      continue;
    if (!tables_.contains(root.table) && tables_.size() >= table_limit)
      continue;
    StrangeTable &table = tables_[root.table];
    ++table.seen;
    table.vcpu = vcpu.index;
    table.cr3 = vcpu.cr3;
    table.rip = vcpu.rip;
    table.last_seen = now;
    if (table.told || table.seen < sightings_of_a_table || table.reads < reads_of_the_lists)
      continue;
    table.told = true;
    ++counts_.deviations;
    tell(vcpu.index, "CR3", false, vcpu.cr3, 0, "has a page table that belongs to no process and not to the kernel",
         {{"page_table", Gva{root.table.value}}, {"maps_the_kernel", maps_kernel}, {"rip", vcpu.rip}}, out);
  }
}

void RegisterGuard::look_between(Clock::time_point now) {
  if (now < between_ || !suspects_tables())
    return;
  between_ = now + between_reads;
  system_.refresh();
  const auto known = PageTables::read(kernel_);
  if (!known)
    return;
  std::erase_if(tables_, [&](const auto &entry) { return !entry.second.told && known->hold({entry.first, 4}); });
  if (known->complete())
    for (auto &[address, table] : tables_)
      ++table.reads;
}

bool RegisterGuard::runs_virtual_machines() {
  const auto modules = system_.modules();
  return modules && std::ranges::any_of(modules->items, [](const KernelModule &module) {
           return (module.name == "kvm_intel" || module.name == "kvm_amd") && module.references > 0;
         });
}

bool RegisterGuard::maps_the_kernel(const x86_64::PageTableRoot &root) const {
  const AddressSpace space(kernel_.memory(), root);
  const auto base = space.translate(kernel_.location().base);
  return base && base->address == kernel_.location().physical_base;
}

void RegisterGuard::tell(std::uint32_t vcpu, std::string_view name, bool lawful, std::uint64_t found,
                         std::uint64_t expected, std::string what, std::vector<RecordField> more,
                         std::vector<Record> &out) {
  Record record;
  record.kind = lawful ? RecordKind::event : RecordKind::finding;
  record.type = "register_changed";
  record.host_time_ns = host_time();
  record.sentence = lawful ? fmt::format("{} of CPU {} {}", name, vcpu, what) : fmt::format("CPU {} {}", vcpu, what);
  record.with("register", std::string(name))
      .with("vcpu", std::uint64_t{vcpu})
      .with("found", Gva{found})
      .with("lawful", lawful);
  if (expected != 0)
    record.with("expected", Gva{expected});
  std::ranges::move(more, std::back_inserter(record.fields));
  if (!lawful)
    record.finding = Finding{.check = "protect",
                             .subject = fmt::format("{} of CPU {}", name, vcpu),
                             .severity = Severity::critical,
                             .technique = "T1014",
                             .sentence = record.sentence,
                             .evidence = record.fields};
  out.push_back(std::move(record));
}

} // namespace lararium::gate
