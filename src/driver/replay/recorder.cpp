#include "lararium/driver/replay.h"

#include "recording.h"

#include "lararium/base/mapping.h"
#include "lararium/base/unique_fd.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <fcntl.h>
#include <fmt/format.h>
#include <map>

namespace lararium {
namespace replay {
namespace {

// What the recorder and the recording memory share.
struct Tape {
  Recording header; // all but the pages
  std::map<std::uint64_t, Page> pages;
  std::size_t page_limit = 0;
  bool enabled = true, overflow = false;
};

// Calls `part(frame, offset in it, piece of out)` for every page that [address, address + out.size()) touches.
template <class Part> bool for_each_page(Gpa address, std::span<std::byte> out, const Part &part) {
  while (!out.empty()) {
    const std::size_t length = std::min<std::uint64_t>(out.size(), page_size - address.page_offset());
    if (!part(address.value / page_size, address.page_offset(), out.first(length)))
      return false;
    out = out.subspan(length);
    address += length;
  }
  return true;
}

// Has no mapped runs, so that no read passes by.
class RecordingMemory final : public PhysicalMemory {
public:
  RecordingMemory(std::unique_ptr<PhysicalMemory> source, std::shared_ptr<Tape> tape)
      : source_(std::move(source)), tape_(std::move(tape)) {
    set_ranges(source_->ranges());
  }
  [[nodiscard]] std::vector<RamRange> populated(Gpa base, std::uint64_t size) const override {
    return source_->populated(base, size);
  }
  void refresh() override { source_->refresh(); }

protected:
  [[nodiscard]] bool read_unmapped(Gpa address, std::span<std::byte> out) const override {
    return for_each_page(address, out, [&](std::uint64_t frame, std::uint64_t offset, std::span<std::byte> piece) {
      auto found = tape_->pages.find(frame);
      if (found == tape_->pages.end()) {
        if (!tape_->enabled)
          return source_->read(Gpa{frame * page_size + offset}, piece);
        if (tape_->pages.size() >= tape_->page_limit) {
          tape_->overflow = true;
          return source_->read(Gpa{frame * page_size + offset}, piece);
        }
        // A page that is not wholly RAM cannot be replayed, so it cannot be read now either.
        Page page;
        if (!source_->read(Gpa{frame * page_size}, page))
          return false;
        found = tape_->pages.emplace(frame, page).first;
      }
      std::memcpy(piece.data(), found->second.data() + offset, piece.size());
      return true;
    });
  }

private:
  std::unique_ptr<PhysicalMemory> source_;
  std::shared_ptr<Tape> tape_;
};

class FixedVcpus final : public Vcpus {
public:
  explicit FixedVcpus(std::vector<VcpuRegisters> registers) : registers_(std::move(registers)) {}
  [[nodiscard]] Result<std::vector<VcpuRegisters>> registers() override { return registers_; }

private:
  std::vector<VcpuRegisters> registers_;
};

class TapeRecorder final : public Recorder {
public:
  explicit TapeRecorder(std::shared_ptr<Tape> tape) : tape_(std::move(tape)) {}
  void set_enabled(bool enabled) override { tape_->enabled = enabled; }
  void set_hints(TargetHints hints) override { tape_->header.hints = std::move(hints); }
  [[nodiscard]] std::size_t page_count() const override { return tape_->pages.size(); }
  [[nodiscard]] Result<std::vector<std::byte>> encode() const override {
    if (tape_->overflow)
      return fail(ErrorCode::usage, fmt::format("more than {} pages were touched", tape_->page_limit));
    Recording recording = tape_->header;
    for (const auto &[frame, page] : tape_->pages) {
      recording.frames.push_back(frame);
      recording.pages.push_back(page);
    }
    return replay::encode(recording);
  }

private:
  std::shared_ptr<Tape> tape_;
};

class ReplayedMemory final : public PhysicalMemory {
public:
  ReplayedMemory(std::vector<RamRange> ranges, std::vector<std::uint64_t> frames, std::vector<Page> pages)
      : frames_(std::move(frames)), pages_(std::move(pages)) {
    set_ranges(std::move(ranges));
  }
  // Runs of recorded pages: a search looks at these alone.
  [[nodiscard]] std::vector<RamRange> populated(Gpa base, std::uint64_t size) const override {
    std::vector<RamRange> result;
    const std::uint64_t end = base.value + std::min(size, UINT64_MAX - base.value);
    for (auto frame = std::ranges::lower_bound(frames_, base.value / page_size);
         frame != frames_.end() && *frame * page_size < end; ++frame) {
      const std::uint64_t start = *frame * page_size;
      const std::uint64_t from = std::max(base.value, start), to = std::min(end, start + page_size);
      if (from >= to)
        continue;
      if (!result.empty() && result.back().base + result.back().size == Gpa{from})
        result.back().size += to - from;
      else
        result.push_back({Gpa{from}, to - from, {}});
    }
    return result;
  }

protected:
  [[nodiscard]] bool read_unmapped(Gpa address, std::span<std::byte> out) const override {
    return for_each_page(address, out, [&](std::uint64_t frame, std::uint64_t offset, std::span<std::byte> piece) {
      const auto found = std::ranges::lower_bound(frames_, frame);
      if (found == frames_.end() || *found != frame)
        return false;
      std::memcpy(piece.data(), pages_[static_cast<std::size_t>(found - frames_.begin())].data() + offset,
                  piece.size());
      return true;
    });
  }

private:
  std::vector<std::uint64_t> frames_;
  std::vector<Page> pages_;
};

} // namespace

Target make_target(Recording recording) {
  Target target;
  target.identity = std::move(recording.identity);
  target.hints = std::move(recording.hints);
  target.limitations = std::move(recording.limitations);
  target.limitations.push_back("this is a recording: only the memory that was read when it was made can be read");
  if (recording.has_vcpus)
    target.vcpus = std::make_unique<FixedVcpus>(std::move(recording.vcpus));
  target.memory = std::make_unique<ReplayedMemory>(std::move(recording.ranges), std::move(recording.frames),
                                                   std::move(recording.pages));
  return target;
}

} // namespace replay

Recorder::~Recorder() = default;

Result<std::shared_ptr<Recorder>> Recorder::start(Target &target, std::size_t page_limit) {
  auto tape = std::make_shared<replay::Tape>();
  tape->page_limit = page_limit;
  replay::Recording &header = tape->header;
  header.identity = target.identity;
  header.hints = target.hints;
  header.limitations = target.limitations;
  header.ranges = target.memory->ranges();
  if (target.vcpus != nullptr) {
    TRY_ASSIGN(header.vcpus, target.vcpus->registers());
    header.has_vcpus = true;
    target.vcpus = std::make_unique<replay::FixedVcpus>(header.vcpus);
  }
  target.memory = std::make_unique<replay::RecordingMemory>(std::move(target.memory), tape);
  return std::make_shared<replay::TapeRecorder>(std::move(tape));
}

Result<void> Recorder::save(const std::string &path) const {
  TRY_ASSIGN(const std::vector<std::byte> file, encode());
  const UniqueFd descriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!descriptor)
    return fail_errno(fmt::format("cannot create {}", path), errno);
  for (Bytes rest = file; !rest.empty();) {
    const ssize_t written = ::write(descriptor.get(), rest.data(), rest.size());
    if (written < 0 && errno == EINTR)
      continue;
    if (written <= 0)
      return fail_errno(fmt::format("cannot write {}", path), written < 0 ? errno : EIO);
    rest = rest.subspan(static_cast<std::size_t>(written));
  }
  return {};
}

Result<Target> decode_recording(Bytes file) {
  TRY_ASSIGN(replay::Recording recording, replay::decode(file));
  return replay::make_target(std::move(recording));
}

bool is_recording(const std::string &path) {
  const UniqueFd descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, replay::magic_name.size()> head{};
  return descriptor && ::pread(descriptor.get(), head.data(), head.size(), 0) == ssize_t{head.size()} &&
         std::string_view(head.data(), head.size()) == replay::magic_name;
}

Result<Target> open_recording(const std::string &path) {
  TRY_ASSIGN(const Mapping mapping, map_whole_file(path));
  auto target = decode_recording(mapping.bytes());
  if (!target)
    return wrap(std::move(target).error(), path);
  return target;
}

} // namespace lararium
