// Port: the physical memory of a target, live or dumped.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lararium {

// A run of guest-physical addresses that RAM answers. Ranges of one target are sorted and do not overlap.
struct RamRange {
  Gpa base;
  std::uint64_t size = 0;
  std::string block; // the RAM block's name as QEMU has it ("pc.ram"); empty where there is none
};

// RAM that can be mapped by whoever gets the descriptor, which is open for reading alone and belongs to the memory.
struct SharedRange {
  Gpa base;
  std::uint64_t size = 0;
  int descriptor = -1;
  std::uint64_t offset = 0; // of `base` in the file
};

// Reads never change the guest and never wait for it. A live guest writes while we read: a value may be torn unless it
// is aligned and at most 8 bytes, and two reads may see two moments. Not thread-safe unless a driver says so.
class PhysicalMemory {
public:
  PhysicalMemory() = default;
  PhysicalMemory(const PhysicalMemory &) = delete;
  PhysicalMemory &operator=(const PhysicalMemory &) = delete;
  virtual ~PhysicalMemory();

  // Fills `out` or fails; on failure what is in `out` is unspecified. Reading a RAM page that the host never gave the
  // guest gives zeros.
  [[nodiscard]] bool read(Gpa address, std::span<std::byte> out) const {
    for (const MappedRun &run : runs_)
      if (const std::uint64_t offset = address.value - run.base.value;
          offset < run.bytes.size() && out.size() <= run.bytes.size() - offset) {
        std::memcpy(out.data(), run.bytes.data() + offset, out.size());
        return true;
      }
    return read_unmapped(address, out);
  }

  // The guest's bytes in place from `address` to the end of their run, where the driver has them mapped; else empty.
  // They change under the reader's eyes: search in them, but copy before you decide anything twice.
  [[nodiscard]] Bytes view(Gpa address) const {
    for (const MappedRun &run : runs_)
      if (const std::uint64_t offset = address.value - run.base.value; offset < run.bytes.size())
        return run.bytes.subspan(offset);
    return {};
  }

  [[nodiscard]] const std::vector<RamRange> &ranges() const { return ranges_; }
  [[nodiscard]] std::uint64_t total_size() const;

  // Sub-ranges of [base, base + size) that may hold data, in order: what a sparse backend never gave the guest is left
  // out, so that a search or a dump does not read (and thereby allocate) it. The default is the whole.
  [[nodiscard]] virtual std::vector<RamRange> populated(Gpa base, std::uint64_t size) const;

  // Says that these addresses will be read soon, so that a driver can have them at hand by then: many at once cost less
  // than one by one. Nothing else comes of it, whatever the addresses are.
  virtual void expect(std::span<const Gpa> addresses) const;

  // A page (by its first address) that the driver copied from the guest, in the driver's own cache: what is not there
  // is copied now. Null where the driver keeps no copies of that page; view() may have it. It is good for as long as
  // copies_age() stays the same.
  [[nodiscard]] virtual const std::byte *copy_of_page(Gpa) const { return nullptr; }
  [[nodiscard]] std::uint64_t copies_age() const { return copies_age_; }

  // What of RAM can be shared with other processes; empty where the VM keeps its memory to itself.
  [[nodiscard]] virtual std::vector<SharedRange> shared_ranges() const { return {}; }

  // Drops what the driver cached of the guest's memory, so that the next reads see now. Called before each view.
  virtual void refresh() {}

protected:
  struct MappedRun {
    Gpa base;
    Bytes bytes;
  };
  // A driver lists its RAM, and what of it is mapped into this process; the latter is read with no virtual call.
  void set_ranges(std::vector<RamRange> ranges);
  void set_mapped_runs(std::vector<MappedRun> runs) { runs_ = std::move(runs); }
  // Reads that no single mapped run holds: addresses that are not mapped, and reads across runs.
  [[nodiscard]] virtual bool read_unmapped(Gpa address, std::span<std::byte> out) const;
  // For a driver that keeps copies: those handed out so far are no longer good.
  void end_copies() const { ++copies_age_; }

private:
  std::vector<RamRange> ranges_;
  std::vector<MappedRun> runs_;
  mutable std::uint64_t copies_age_ = 0;
};

} // namespace lararium
