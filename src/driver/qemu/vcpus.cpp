// The registers of a QEMU's vCPUs: by the monitor, and what it does not show from QEMU's own memory.
#include "lararium/driver/qemu/monitor_text.h"
#include "ports.h"
#include "vcpu_state.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <fmt/format.h>
#include <optional>

namespace lararium::qemu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t piece_size = 1 << 20;            // of memory looked through at once
constexpr std::uint64_t most_searched = 1ULL << 30;    // bytes; QEMU's heap has some 10 MiB
constexpr std::uint64_t largest_anonymous = 256 << 20; // of one mapping beside the heap
constexpr std::chrono::seconds search_pause{60};       // after one that found nothing

class QemuVcpus final : public Vcpus {
public:
  QemuVcpus(std::shared_ptr<Session> session, std::vector<GuestRegion> ram)
      : session_(std::move(session)), ram_(std::move(ram)) {}

  Result<std::vector<VcpuRegisters>> registers() override {
    TRY_ASSIGN(const auto monitor, session_->open_monitor());
    TRY_ASSIGN(const auto text, monitor->hmp("info registers -a"));
    return parse_registers(text);
  }

  // Under KVM the monitor's command has QEMU ask the kernel for all registers of a vCPU, these too, and its memory
  // keeps them until it asks again; under TCG its memory is what the vCPU works with. Both ways it is read right after.
  Result<std::vector<VcpuRegisters>> registers_with_msrs() override {
    Error error;
    constexpr int most_tries = 3; // a vCPU may change its tables between the monitor's answer and the reading
    for (int i = 0; i < most_tries; i++) {
      TRY_ASSIGN(auto vcpus, registers());
      if (std::ranges::none_of(vcpus, &VcpuRegisters::runs_64_bit_kernel))
        return fail(ErrorCode::not_found, "no vCPU runs a 64-bit kernel");
      if (!host_) {
        TRY_ASSIGN(host_, HostMemory::open(session_->process));
      }
      if (places_.size() == vcpus.size() && add_msrs(vcpus))
        return vcpus;
      places_.clear();
      if (Clock::now() < next_search_)
        return std::unexpected(last_error_);
      if (auto found = search(vcpus); !found)
        error = std::move(found).error();
      else if (add_msrs(vcpus))
        return vcpus;
      else
        error = {ErrorCode::corrupt, Space::none, 0, "the vCPUs' registers change too fast to be read"};
    }
    next_search_ = Clock::now() + search_pause;
    last_error_ = session_->process.explain(std::move(error)).error();
    return std::unexpected(last_error_);
  }

  // A reset sets the registers in QEMU's memory, whoever runs the vCPU; and no two kernels that boot have their entry
  // at the same place, unless addresses are not randomised.
  std::optional<bool> not_reset_since() override {
    std::optional<bool> known;
    for (std::size_t i = 0; i < std::min(places_.size(), entries_.size()); ++i) {
      std::array<std::byte, state_header_size> header;
      std::array<std::byte, msr_run_size> run;
      if (!places_[i] || !host_->read(*places_[i], header) || !host_->read(*places_[i] + run_offset_, run))
        continue;
      known = known.value_or(false) || (has_paging(header) && read_msr_run(run)->lstar == entries_[i]);
    }
    return known;
  }

private:
  // False: a state is no longer where it was.
  bool add_msrs(std::vector<VcpuRegisters> &vcpus) {
    entries_.resize(vcpus.size());
    for (std::size_t i = 0; i < vcpus.size(); i++) {
      if (!vcpus[i].runs_64_bit_kernel())
        continue;
      std::array<std::byte, state_header_size> header;
      std::array<std::byte, msr_run_size> run;
      if (!places_[i] || !host_->read(*places_[i], header) || !is_state_of(header, vcpus[i]) ||
          !host_->read(*places_[i] + run_offset_, run))
        return false;
      vcpus[i].msrs = read_msr_run(run);
      entries_[i] = vcpus[i].msrs->lstar;
      vcpus[i].kernel_gs_base = vcpus[i].msrs->kernel_gs_base;
    }
    return true;
  }

  Result<void> search(const std::vector<VcpuRegisters> &vcpus) {
    TRY_ASSIGN(const auto mappings, session_->process.mappings());
    std::vector<StatePlace> places;
    std::uint64_t searched = 0;
    // QEMU allocates vCPUs from the heap; other allocators than the C library's have mappings of their own.
    for (const bool heap : {true, false}) {
      for (const auto &mapping : mappings)
        if (may_hold_states(mapping, heap) && searched + mapping.size() <= most_searched) {
          searched += mapping.size();
          search_mapping(mapping, vcpus, places);
        }
      if (has_all(places, vcpus))
        break;
    }
    places_.assign(vcpus.size(), std::nullopt);
    for (const auto &place : places) {
      if (places_[place.vcpu])
        return failed(ErrorCode::ambiguous, fmt::format("several places of QEMU's memory look like the state of CPU {}",
                                                        vcpus[place.vcpu].index));
      places_[place.vcpu] = place.address;
    }
    std::vector<std::vector<std::byte>> copies(vcpus.size());
    std::vector<Bytes> states(vcpus.size());
    for (std::size_t i = 0; i < vcpus.size(); i++) {
      if (!vcpus[i].runs_64_bit_kernel())
        continue;
      if (!places_[i])
        return failed(ErrorCode::not_found,
                      fmt::format("the state of CPU {} is not found in QEMU's memory", vcpus[i].index));
      copies[i].resize(state_size);
      if (!host_->read(*places_[i], copies[i]))
        return failed(ErrorCode::not_found, "QEMU's memory cannot be read where the state of a CPU is");
      states[i] = copies[i];
    }
    const auto offset = find_msr_run(states, vcpus);
    if (!offset)
      return failed(offset.error().code, offset.error().message);
    run_offset_ = *offset;
    return {};
  }

  std::unexpected<Error> failed(ErrorCode code, std::string message) {
    places_.clear();
    return fail(code, std::move(message));
  }

  static bool has_all(const std::vector<StatePlace> &places, const std::vector<VcpuRegisters> &vcpus) {
    for (std::size_t i = 0; i < vcpus.size(); i++)
      if (vcpus[i].runs_64_bit_kernel() && std::ranges::find(places, i, &StatePlace::vcpu) == places.end())
        return false;
    return true;
  }

  // What the guest writes to is no place to look for what it may not write.
  bool may_hold_states(const HostMapping &mapping, bool heap) const {
    if (!mapping.readable || !mapping.writable || mapping.shared || mapping.inode != 0 ||
        (mapping.path == "[heap]") != heap || mapping.path.starts_with("[stack") ||
        (!heap && mapping.size() > largest_anonymous))
      return false;
    return std::ranges::none_of(ram_, [&](const GuestRegion &region) {
      return region.host < mapping.end && mapping.begin < region.host + region.size;
    });
  }

  void search_mapping(const HostMapping &mapping, const std::vector<VcpuRegisters> &vcpus,
                      std::vector<StatePlace> &places) const {
    std::vector<std::byte> piece;
    for (std::uint64_t at = 0; at < mapping.size(); at += piece_size) {
      const std::uint64_t begin = at - std::min<std::uint64_t>(at, state_context);
      const std::uint64_t end = std::min<std::uint64_t>(at + piece_size + state_header_size - 8, mapping.size());
      piece.resize(end - begin);
      if (host_->read(mapping.begin + begin, piece))
        for (const auto &place : find_vcpu_states(piece, mapping.begin + begin, at - begin, vcpus))
          places.push_back(place);
    }
  }

  std::shared_ptr<Session> session_;
  std::vector<GuestRegion> ram_;
  std::optional<HostMemory> host_;
  std::vector<std::optional<Hva>> places_; // of each vCPU's state; empty: not known
  std::vector<Gva> entries_;               // LSTAR of each vCPU then
  std::size_t run_offset_ = 0;             // of the MSRs, in all of them
  Clock::time_point next_search_;
  Error last_error_;
};

} // namespace

std::unique_ptr<Vcpus> make_vcpus(std::shared_ptr<Session> session, std::vector<GuestRegion> ram) {
  return std::make_unique<QemuVcpus>(std::move(session), std::move(ram));
}

} // namespace lararium::qemu
