#include "recording.h"

#include <algorithm>
#include <memory>
#include <zstd.h>

namespace lararium::replay {
namespace {

constexpr char magic[8] = {'L', 'A', 'R', 'A', 'R', 'E', 'C', 1}; // magic_name and the version
static_assert(std::string_view(magic, sizeof(magic) - 1) == magic_name);
constexpr std::uint32_t text_limit = 1 << 20;
constexpr std::uint32_t list_limit = 1 << 20;
// A recording is made once and read in every test run, so much time may go into making it small; but a whole kernel
// image would take minutes at the highest level, for a sixth less.
constexpr int small_level = 19, large_level = 9;
constexpr std::size_t small_payload = std::size_t{8} << 20;

// Both directions go through the same functions below, so that they cannot disagree. `ok` turns false for good where
// the payload ends early or a length is beyond its limit.
class Writer {
public:
  template <class T> void number(const T &value) { append(std::as_bytes(std::span(&value, 1))); }
  void text(const std::string &value) {
    number(static_cast<std::uint32_t>(value.size()));
    append(bytes_of(value));
  }
  template <class T, class Each> void list(const std::vector<T> &values, const Each &each) {
    number(static_cast<std::uint32_t>(values.size()));
    for (const T &value : values)
      each(*this, value);
  }
  std::vector<std::byte> payload;
  bool ok = true;

private:
  void append(Bytes bytes) { payload.insert(payload.end(), bytes.begin(), bytes.end()); }
};

class Reader {
public:
  explicit Reader(Bytes payload) : payload_(payload) {}
  template <class T> void number(T &value) {
    const auto loaded = load<T>(payload_, 0);
    ok = ok && loaded.has_value();
    if (!ok)
      return;
    value = *loaded;
    payload_ = payload_.subspan(sizeof(T));
  }
  void text(std::string &value) {
    const std::uint32_t size = length(text_limit);
    if (!ok || payload_.size() < size) {
      ok = false;
      return;
    }
    value.assign(reinterpret_cast<const char *>(payload_.data()), size);
    payload_ = payload_.subspan(size);
  }
  template <class T, class Each> void list(std::vector<T> &values, const Each &each) {
    const std::uint32_t size = length(list_limit);
    // Grows with what is there, not with what is claimed.
    for (std::uint32_t i = 0; ok && i < size; ++i)
      each(*this, values.emplace_back());
  }
  [[nodiscard]] bool at_end() const { return payload_.empty(); }
  bool ok = true;

private:
  std::uint32_t length(std::uint32_t limit) {
    std::uint32_t value = 0;
    number(value);
    ok = ok && value <= limit;
    return value;
  }
  Bytes payload_;
};

constexpr auto one_text = [](auto &archive, auto &text) { archive.text(text); };
constexpr auto one_number = [](auto &archive, auto &number) { archive.number(number); };
constexpr auto one_range = [](auto &archive, auto &range) {
  archive.number(range.base);
  archive.number(range.size);
  archive.text(range.block);
};
constexpr auto one_vcpu = [](auto &archive, auto &vcpu) {
  archive.number(vcpu.index);
  std::uint8_t halted = vcpu.halted;
  archive.number(halted);
  if constexpr (requires { vcpu.halted = true; })
    vcpu.halted = halted != 0;
  archive.number(vcpu.rip);
  archive.number(vcpu.rsp);
  archive.number(vcpu.rflags);
  for (auto &value : vcpu.general)
    archive.number(value);
  archive.number(vcpu.cr0);
  archive.number(vcpu.cr2);
  archive.number(vcpu.cr3);
  archive.number(vcpu.cr4);
  archive.number(vcpu.efer);
  archive.number(vcpu.fs_base);
  archive.number(vcpu.gs_base);
  archive.number(vcpu.kernel_gs_base);
  archive.number(vcpu.idt_base);
  archive.number(vcpu.gdt_base);
  archive.number(vcpu.tr_base);
  archive.number(vcpu.idt_limit);
  archive.number(vcpu.gdt_limit);
  archive.number(vcpu.cs);
  archive.number(vcpu.ss);
};

template <class Archive, class R> void everything(Archive &archive, R &recording) {
  auto &identity = recording.identity;
  std::uint8_t small[3] = {static_cast<std::uint8_t>(identity.kind), static_cast<std::uint8_t>(identity.architecture),
                           recording.has_vcpus};
  for (std::uint8_t &value : small)
    archive.number(value);
  if constexpr (!std::is_const_v<R>) {
    archive.ok = archive.ok && small[0] <= static_cast<std::uint8_t>(TargetKind::dump) &&
                 small[1] <= static_cast<std::uint8_t>(Architecture::other) && small[2] <= 1;
    if (!archive.ok)
      return;
    identity.kind = static_cast<TargetKind>(small[0]);
    identity.architecture = static_cast<Architecture>(small[1]);
    recording.has_vcpus = small[2] != 0;
  }
  archive.text(identity.name);
  archive.text(identity.uuid);
  archive.number(identity.pid);
  archive.text(identity.accelerator);
  archive.text(identity.memory_access);
  archive.text(recording.hints.vmcoreinfo);
  archive.list(recording.limitations, one_text);
  archive.list(recording.ranges, one_range);
  archive.list(recording.vcpus, one_vcpu);
  archive.list(recording.frames, one_number);
  archive.list(recording.pages, one_number);
}

bool consistent(const Recording &recording) {
  constexpr std::uint64_t physical_limit = std::uint64_t{1} << 52;
  std::uint64_t end = 0;
  for (const RamRange &range : recording.ranges) {
    if (range.size == 0 || range.base.value < end || range.base.value > physical_limit ||
        range.size > physical_limit - range.base.value)
      return false;
    end = range.base.value + range.size;
  }
  return recording.frames.size() == recording.pages.size() &&
         std::ranges::adjacent_find(recording.frames, std::greater_equal()) == recording.frames.end() &&
         (recording.frames.empty() || recording.frames.back() < physical_limit / page_size);
}

} // namespace

Result<std::vector<std::byte>> encode(const Recording &recording) {
  Writer writer;
  everything(writer, recording);
  if (writer.payload.size() > payload_limit || !consistent(recording))
    return fail(ErrorCode::usage, "the recording is too large, or its source contradicts itself");
  const std::uint64_t size = writer.payload.size();

  const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  std::vector<std::byte> file(sizeof(magic) + sizeof(size) + ZSTD_compressBound(size));
  std::memcpy(file.data(), magic, sizeof(magic));
  std::memcpy(file.data() + sizeof(magic), &size, sizeof(size));
  const std::span<std::byte> out = std::span(file).subspan(sizeof(magic) + sizeof(size));
  if (context == nullptr)
    return fail(ErrorCode::io, "no memory to compress the recording");
  const bool small = writer.payload.size() <= small_payload;
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, small ? small_level : large_level);
  // A level's own window is a few megabytes; guests' memory repeats itself over longer distances.
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_enableLongDistanceMatching, small ? 0 : 1);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  const std::size_t compressed =
      ZSTD_compress2(context.get(), out.data(), out.size(), writer.payload.data(), writer.payload.size());
  if (ZSTD_isError(compressed) != 0)
    return fail(ErrorCode::io, "the recording cannot be compressed");
  file.resize(sizeof(magic) + sizeof(size) + compressed);
  return file;
}

Result<Recording> decode(Bytes file) {
  const auto size = load<std::uint64_t>(file, sizeof(magic));
  if (!size || std::memcmp(file.data(), magic, sizeof(magic)) != 0)
    return fail(ErrorCode::corrupt, "not a recording, or one of another version");
  const Bytes frame = file.subspan(sizeof(magic) + sizeof(*size));
  // The frame's own idea of its size is checked first, so that a short file cannot ask for the whole limit.
  if (*size > payload_limit || ZSTD_getFrameContentSize(frame.data(), frame.size()) != *size ||
      *size / 40'000 > frame.size()) // zstd compresses zeros by less than that
    return fail(ErrorCode::corrupt, "the recording's header is broken");
  std::vector<std::byte> payload(*size);
  if (ZSTD_decompress(payload.data(), payload.size(), frame.data(), frame.size()) != payload.size())
    return fail(ErrorCode::corrupt, "the recording is damaged");
  return decode_payload(payload);
}

Result<Recording> decode_payload(Bytes payload) {
  Recording recording;
  Reader reader(payload);
  everything(reader, recording);
  if (!reader.ok || !reader.at_end() || !consistent(recording))
    return fail(ErrorCode::corrupt, "the recording is damaged");
  return recording;
}

} // namespace lararium::replay
