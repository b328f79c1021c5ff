#include "left_gate.h"

#include "area_place.h"

#include "lararium/gate/gate.h"
#include "lararium/os/linux.h"

#include <cstring>
#include <fmt/format.h>
#include <thread>

namespace lararium::gate {

using namespace std::chrono_literals;
using linux_guest::Kernel;

namespace {

constexpr std::uint64_t low_pages = 256; // of the first MiB

// Puts the original calls back. A call that is not as it was left is not touched; the area must stay then.
bool restore_sites(const Kernel &kernel, CodeSession &session, const Found &area, std::vector<std::string> &left,
                   Result<void> &done) {
  bool all = true;
  const auto &location = kernel.location();
  for (const PatchedSite &site : area.sites) {
    std::array<std::byte, 5> now{};
    // The journal lies in the guest: what it names must be a call of this kernel that leads to us.
    const Gva leads_to = site.address + 5 + static_cast<std::uint64_t>(std::int64_t{site.patched});
    const bool is_text = site.address >= location.base && site.address - location.base < location.size &&
                         site.physical == location.physical_base + (site.address - location.base) &&
                         area.holds(leads_to);
    if (!is_text || !kernel.memory().read(site.physical, now)) {
      left.push_back(fmt::format("the call at {:#x} cannot be read: it is left alone", site.address.value));
      all = false;
      continue;
    }
    std::int32_t distance = 0;
    std::memcpy(&distance, now.data() + 1, sizeof distance);
    if (now[0] == std::byte{0xcc}) {
      left.push_back(fmt::format("a probe of the guest's stands on the call at {:#x} and has a copy of it: the hooks' "
                                 "pages stay in the guest, and do nothing",
                                 site.address.value));
      all = false;
    }
    if (distance == site.original)
      continue;
    if (distance != site.patched) {
      left.push_back(
          fmt::format("the call at {:#x} was changed by somebody else: it is left alone", site.address.value));
      all = false;
      continue;
    }
    if (done)
      done = session.write(site.physical + 1, std::as_bytes(std::span(&site.original, 1)));
  }
  return all && done.has_value();
}

// The board lies in the guest: what it names must be one of the windows that rings may be in.
void find_rings(const Kernel &kernel, Found &found) {
  Gva window;
  if (!kernel.memory().read(found.frames.front() + GATE_BOARD + BOARD_RINGS, writable_bytes_of(window.value)))
    return;
  for (const Gva each : area_windows())
    if (const auto entry = each == window && each != found.window ? window_entry(kernel, each) : std::nullopt) {
      std::uint64_t value = 0;
      if (!kernel.memory().read(*entry, writable_bytes_of(value)))
        return;
      const Gpa memory{value & x86_64::entry::address_mask & ~(rings_room - 1)};
      if (value == rings_directory_entry(memory)) {
        found.rings_window = window;
        found.rings_entry = *entry;
        found.rings_memory = memory;
      }
    }
}

} // namespace

// Ours is an entry of these whose table lies in low memory and maps nothing but low memory at its own place.
std::optional<Found> find_area(const Kernel &kernel) {
  constexpr Gpa low_end{1 << 20};
  for (const Gva window : area_windows()) {
    const auto entry = window_entry(kernel, window);
    std::uint64_t value = 0;
    if (!entry || !kernel.memory().read(*entry, writable_bytes_of(value)) || (value & x86_64::entry::present) == 0 ||
        (value & x86_64::entry::large) != 0)
      continue;
    Found found{.window = window,
                .entry = *entry,
                .table = Gpa{value & x86_64::entry::address_mask},
                .frames = {},
                .sites = {}};
    std::array<std::uint64_t, page_size / 8> table{};
    if (found.table >= low_end || !kernel.memory().read(found.table, std::as_writable_bytes(std::span(table))))
      continue;
    bool is_ours = true;
    for (std::uint64_t i = 0; i < table.size(); ++i) {
      if (table[i] == 0)
        continue;
      is_ours = is_ours && i < low_pages && (table[i] & x86_64::entry::present) != 0 &&
                (table[i] & x86_64::entry::address_mask) == i * page_size;
      found.frames.push_back(Gpa{i * page_size});
    }
    if (!is_ours)
      continue;
    if (found.frames.empty())
      return found;
    const auto at = [&]<class T>(std::uint64_t offset, T &out) {
      return kernel.memory().read(found.frames.front() + offset, writable_bytes_of(out));
    };
    std::uint64_t magic = 0;
    std::uint32_t version = 0, count = 0;
    const bool has_board =
        at(GATE_BOARD + BOARD_MAGIC, magic) && magic == area_magic && at(GATE_BOARD + BOARD_VERSION, version);
    found.is_foreign = has_board && version != area_version;
    if (has_board && !found.is_foreign && at(GATE_BOARD + BOARD_GENERATION, found.generation) &&
        at(GATE_BOARD + BOARD_PAGES, found.pages) && at(GATE_BOARD + BOARD_SITE_COUNT, count))
      for (std::uint32_t i = 0; i < std::min<std::uint32_t>(count, site_limit); ++i)
        if (PatchedSite site; at(GATE_SITES + i * sizeof site, site))
          found.sites.push_back(site);
    if (has_board && !found.is_foreign)
      find_rings(kernel, found);
    return found;
  }
  return std::nullopt;
}

// Two stops: after the first nobody enters the area any more; at the second nobody is inside.
Result<void> take_out(OperatingSystem &system, const Kernel &kernel, CodeWriter &writer, const Found &area,
                      std::chrono::microseconds grace, std::vector<std::string> &left) {
  if (area.is_foreign)
    return fail(ErrorCode::unsupported, "another version of Lararium left hooks in this guest: only that version can "
                                        "take them out");
  bool all = false;
  {
    TRY_ASSIGN(const auto session, writer.begin());
    system.refresh();
    Result<void> done;
    all = restore_sites(kernel, *session, area, left, done);
    TRY(session->end());
    TRY(std::move(done));
  }
  if (!all)
    return {};
  for (int i = 0; i < removal_tries; ++i) {
    std::this_thread::sleep_for(grace);
    TRY_ASSIGN(const auto session, writer.begin());
    TRY_ASSIGN(const auto pointers, session->instruction_pointers());
    if (std::ranges::any_of(pointers, [&](Gva pointer) { return area.holds(pointer); }))
      continue;
    // In this order what is left can still be recognised, wherever it ends.
    const std::vector<std::byte> zeros(page_size);
    std::array<std::byte, page_size> now{};
    std::vector<Gpa> pages = area.frames;
    for (std::uint64_t n = area.frames.size();
         !area.frames.empty() && n < std::min<std::uint64_t>(area.pages, low_pages); ++n)
      if (const Gpa frame = area.frames.front() + n * page_size; frame != area.table)
        pages.push_back(frame);
    pages.push_back(area.table);
    const std::uint64_t nothing = 0;
    if (area.rings_memory) {
      TRY(session->write(area.rings_entry, std::as_bytes(std::span(&nothing, 1))));
      for (std::uint64_t offset = 0; offset < rings_room; offset += page_size)
        pages.insert(pages.begin(), area.rings_memory + offset);
    }
    for (const Gpa page : pages)
      if (!kernel.memory().read(page, now) || !std::ranges::equal(now, zeros))
        TRY(session->write(page, zeros));
    TRY(session->write(area.entry, std::as_bytes(std::span(&nothing, 1))));
    return session->end();
  }
  left.emplace_back("a vCPU stands inside the hooks' pages: they stay in the guest, and do nothing");
  return {};
}

std::optional<LeftGate> find_left_gate(const Kernel &kernel) {
  const auto area = find_area(kernel);
  return area ? std::optional(LeftGate{area->window, area->sites.size()}) : std::nullopt;
}

bool is_code_of_gate(const Kernel &kernel, Gva address) {
  const auto area = find_area(kernel);
  return area && area->holds(address);
}

Result<void> remove_left_gate(OperatingSystem &system, CodeWriter &writer, std::vector<std::string> &left) {
  const Kernel *kernel = linux_guest::kernel_of(system);
  const auto area = kernel != nullptr ? find_area(*kernel) : std::nullopt;
  if (!area)
    return {};
  constexpr auto grace = 10ms;
  return take_out(system, *kernel, writer, *area, grace, left);
}

} // namespace lararium::gate
