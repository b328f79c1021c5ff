#include "kernel_log.h"

#include <algorithm>

namespace lararium::linux_guest {
namespace {

constexpr int read_attempts = 4;
constexpr std::uint64_t log_size_limit = 256 << 20; // all parts together; the kernel's own default is 200 KiB

// A member of at most 8 bytes of the structure at `base`; zero where it lies outside.
std::uint64_t member(Bytes bytes, std::size_t base, const FieldLocation &field) {
  const std::uint32_t first = field.bit_size != 0 ? field.bit_offset / 8 : field.offset;
  const std::uint32_t shift = field.bit_size != 0 ? field.bit_offset % 8 : 0;
  const std::uint32_t length = field.bit_size != 0 ? (shift + field.bit_size + 7) / 8 : field.size;
  if (length == 0 || length > 8)
    return 0;
  const Bytes part = clamp_subspan(bytes, base + first, length);
  if (part.size() != length)
    return 0;
  std::uint64_t value = 0;
  std::memcpy(&value, part.data(), length);
  value >>= shift;
  return field.bit_size == 0 || field.bit_size >= 64 ? value : value & ((std::uint64_t{1} << field.bit_size) - 1);
}

std::string text_of(Bytes bytes) { return {reinterpret_cast<const char *>(bytes.data()), bytes.size()}; }

// A descriptor's state variable: two bits of state above the id that has it now.
constexpr std::uint64_t id_mask = ~std::uint64_t{0} >> 2;
constexpr std::uint64_t state_finalized = 2;

// The bytes of the data block that the positions name: id and text. Nothing when its data was given up, or the
// positions contradict each other.
std::optional<Bytes> data_block(const LogRing &ring, std::uint64_t begin, std::uint64_t next) {
  const std::uint64_t size = std::uint64_t{1} << ring.size_bits;
  const auto wraps = [&](std::uint64_t position) { return position >> ring.size_bits; };
  const auto index = [&](std::uint64_t position) { return position & (size - 1); };
  // The block ends where the next one begins, on the same round or, since 6.18 (67e1b0052f6b), exactly at its end.
  if (begin < next && wraps(begin) == wraps(next - 1)) {
    const Bytes block = clamp_subspan(ring.data, index(begin), next - begin);
    return block.size() == next - begin ? std::optional(block) : std::nullopt;
  }
  // It did not fit at the end and was put at the start.
  if (wraps(begin + size) == wraps(next)) {
    const Bytes block = clamp_subspan(ring.data, 0, index(next));
    return block.size() == index(next) ? std::optional(block) : std::nullopt;
  }
  return std::nullopt;
}

// The text of a record; nothing when it was lost.
std::optional<std::string> record_text(const LogRingLayout &layout, const LogRing &ring, std::uint64_t id,
                                       std::uint64_t begin, std::uint64_t next, std::uint64_t length) {
  constexpr std::uint64_t empty_line = 3; // NO_LPOS, later EMPTY_LINE_LPOS; other odd positions: no data
  if ((begin & 1) != 0 && (next & 1) != 0)
    return begin == empty_line && next == empty_line ? std::optional<std::string>("") : std::nullopt;
  const auto block = data_block(ring, begin, next);
  if (!block || load<std::uint64_t>(*block, 0) != id)
    return std::nullopt;
  return text_of(clamp_subspan(*block, layout.block_text, length));
}

} // namespace

std::vector<LogRecord> decode_log_ring(const LogRingLayout &layout, const LogRing &ring, Bytes descriptors_after,
                                       std::size_t &changed) {
  std::vector<LogRecord> records;
  changed = 0;
  if (ring.count_bits >= 32 || ring.size_bits >= 32 || layout.descriptor_size == 0 || layout.info_size == 0)
    return records;
  const std::uint64_t count =
      std::min<std::uint64_t>({std::uint64_t{1} << ring.count_bits, ring.descriptors.size() / layout.descriptor_size,
                               ring.infos.size() / layout.info_size});
  const std::uint64_t used = std::min(((ring.head_id - ring.tail_id) & id_mask) + 1, count);
  for (std::uint64_t i = 0; i < used; ++i) {
    const std::uint64_t id = (ring.tail_id + i) & id_mask;
    const std::uint64_t slot = id & ((std::uint64_t{1} << ring.count_bits) - 1);
    if (slot >= count)
      continue;
    const std::size_t descriptor = slot * layout.descriptor_size, info = slot * layout.info_size;
    const std::uint64_t state = member(ring.descriptors, descriptor, layout.state);
    if (state != member(descriptors_after, descriptor, layout.state)) {
      ++changed;
      continue;
    }
    if ((state & id_mask) != id || state >> 62 != state_finalized)
      continue; // being written, or to be used again
    auto text =
        record_text(layout, ring, id, member(ring.descriptors, descriptor, layout.begin),
                    member(ring.descriptors, descriptor, layout.next), member(ring.infos, info, layout.text_length));
    if (!text)
      continue;
    LogRecord &record = records.emplace_back();
    record.sequence = member(ring.infos, info, layout.sequence);
    record.time_ns = member(ring.infos, info, layout.time);
    record.level = static_cast<std::uint8_t>(member(ring.infos, info, layout.level));
    record.facility = static_cast<std::uint8_t>(member(ring.infos, info, layout.facility));
    record.text = std::move(*text);
    if (layout.caller)
      record.caller = static_cast<std::uint32_t>(member(ring.infos, info, *layout.caller));
  }
  std::ranges::stable_sort(records, {}, &LogRecord::sequence);
  return records;
}

std::vector<LogRecord> decode_log_buffer(const LogBufferLayout &layout, Bytes buffer, std::uint64_t first_index,
                                         std::uint64_t first_sequence, std::uint64_t next_sequence, bool &complete) {
  std::vector<LogRecord> records;
  complete = false;
  if (layout.header_size == 0)
    return records;
  std::uint64_t index = first_index;
  bool wrapped = false;
  for (std::uint64_t sequence = first_sequence; sequence < next_sequence; ++sequence) {
    // A record of no length says that the next one is at the start; so does the end of the buffer.
    if (index >= buffer.size() || buffer.size() - index < layout.header_size ||
        member(buffer, index, layout.length) == 0) {
      if (wrapped)
        return records;
      wrapped = true;
      index = 0;
    }
    const std::uint64_t length = member(buffer, index, layout.length);
    if (length < layout.header_size || length > buffer.size() - index)
      return records;
    LogRecord &record = records.emplace_back();
    record.sequence = sequence;
    record.time_ns = member(buffer, index, layout.time);
    record.level = static_cast<std::uint8_t>(member(buffer, index, layout.level));
    record.facility = static_cast<std::uint8_t>(member(buffer, index, layout.facility));
    record.text = text_of(
        clamp_subspan(buffer.subspan(index, length), layout.header_size, member(buffer, index, layout.text_length)));
    if (layout.caller)
      record.caller = static_cast<std::uint32_t>(member(buffer, index, *layout.caller));
    index += length;
  }
  complete = true;
  return records;
}

namespace {

struct RingLayout {
  LogRingLayout record;
  FieldLocation count_bits, descriptors, infos, head, tail, size_bits, data;

  static Result<RingLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    RingLayout f;
    const auto ring = [&](std::string_view path) { return layout.require("printk_ringbuffer", path); };
    f.count_bits = ring("desc_ring.count_bits");
    f.descriptors = ring("desc_ring.descs");
    f.infos = ring("desc_ring.infos");
    f.head = ring("desc_ring.head_id");
    f.tail = ring("desc_ring.tail_id");
    f.size_bits = ring("text_data_ring.size_bits");
    f.data = ring("text_data_ring.data");
    f.record.state = layout.require("prb_desc", "state_var");
    f.record.begin = layout.require("prb_desc", "text_blk_lpos.begin");
    f.record.next = layout.require("prb_desc", "text_blk_lpos.next");
    f.record.descriptor_size = layout.require_size("prb_desc");
    f.record.sequence = layout.require("printk_info", "seq");
    f.record.time = layout.require("printk_info", "ts_nsec");
    f.record.text_length = layout.require("printk_info", "text_len");
    f.record.facility = layout.require("printk_info", "facility");
    f.record.level = layout.require("printk_info", "level");
    f.record.caller = layout.optional("printk_info", "caller_id");
    f.record.info_size = layout.require_size("printk_info");
    f.record.block_text = layout.require("prb_data_block", "data").offset;
    TRY(layout.check());
    return f;
  }
};

struct BufferLayout {
  LogBufferLayout record;
  static Result<BufferLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    BufferLayout f;
    f.record.time = layout.require("printk_log", "ts_nsec");
    f.record.length = layout.require("printk_log", "len");
    f.record.text_length = layout.require("printk_log", "text_len");
    f.record.facility = layout.require("printk_log", "facility");
    f.record.level = layout.require("printk_log", "level");
    f.record.caller = layout.optional("printk_log", "caller_id");
    f.record.header_size = layout.require_size("printk_log");
    TRY(layout.check());
    return f;
  }
};

std::unexpected<Error> too_large() {
  return fail(ErrorCode::corrupt, "the kernel's log claims to be larger than it can be");
}

Result<View<LogRecord>> read_ring(const Kernel &kernel, Gva ring) {
  TRY_ASSIGN(const auto *f, kernel.layout<RingLayout>());
  const auto number = [&](const FieldLocation &field) { return kernel.read_field(ring, field); };
  const auto count_bits = number(f->count_bits), size_bits = number(f->size_bits);
  const auto descriptors = kernel.read_pointer(ring, f->descriptors), infos = kernel.read_pointer(ring, f->infos),
             data = kernel.read_pointer(ring, f->data);
  if (!count_bits || !size_bits || !descriptors || !infos || !data)
    return fault(ring);
  if (*count_bits > 27 || *size_bits > 27)
    return too_large();
  const std::uint64_t count = std::uint64_t{1} << *count_bits, size = std::uint64_t{1} << *size_bits;
  const std::uint64_t whole = count * (2 * f->record.descriptor_size + f->record.info_size) + size;
  if (f->record.descriptor_size > 4096 || f->record.info_size > 4096 ||
      whole > std::min(log_size_limit, kernel.memory().total_size()))
    return too_large();

  std::vector<std::byte> buffer(whole);
  const auto part = [&](std::uint64_t offset, std::uint64_t length) {
    return std::span(buffer).subspan(offset, length);
  };
  const auto before = part(0, count * f->record.descriptor_size);
  const auto after = part(before.size(), before.size());
  const auto info_bytes = part(2 * before.size(), count * f->record.info_size);
  const auto data_bytes = part(2 * before.size() + info_bytes.size(), size);
  View<LogRecord> view;
  std::size_t changed = 0;
  for (int attempt = 0; attempt < read_attempts; ++attempt) {
    const auto tail = number(f->tail), head = number(f->head);
    if (!tail || !head || !kernel.space().read(*descriptors, before) || !kernel.space().read(*infos, info_bytes) ||
        !kernel.space().read(*data, data_bytes) || !kernel.space().read(*descriptors, after))
      return fail(ErrorCode::corrupt, "the kernel's log lies outside its memory");
    view.items = decode_log_ring(f->record,
                                 {before, info_bytes, data_bytes, static_cast<std::uint32_t>(*count_bits),
                                  static_cast<std::uint32_t>(*size_bits), *tail, *head},
                                 after, changed);
    if (((*head - *tail) & id_mask) >= count) {
      view.status.truncated = true;
      view.status.warn("the kernel log's first and last record are further apart than it has room for");
    }
    if (changed == 0)
      return view;
    ++view.status.retries;
  }
  view.status.raced = true;
  return view;
}

Result<View<LogRecord>> read_buffer(const Kernel &kernel, Gva pointer) {
  TRY_ASSIGN(const auto *f, kernel.layout<BufferLayout>());
  const auto variable = [&]<class T>(std::string_view name, T) -> std::optional<T> {
    const auto address = kernel.symbol(name);
    return address ? kernel.read<T>(*address) : std::nullopt;
  };
  const auto address = kernel.read_pointer(pointer);
  const auto size = variable("log_buf_len", std::uint32_t{});
  if (!address || !size)
    return fail(ErrorCode::not_found, "the kernel's log is not where this kernel should have it");
  if (*size > std::min<std::uint64_t>(log_size_limit, kernel.memory().total_size()))
    return too_large();
  std::vector<std::byte> buffer(*size);
  View<LogRecord> view;
  for (int attempt = 0; attempt < read_attempts; ++attempt) {
    const auto index = variable("log_first_idx", std::uint32_t{});
    const auto first = variable("log_first_seq", std::uint64_t{}), next = variable("log_next_seq", std::uint64_t{});
    if (!index || !first || !next || !kernel.space().read(*address, buffer))
      return fail(ErrorCode::corrupt, "the kernel's log lies outside its memory");
    bool complete = false;
    view.items = decode_log_buffer(f->record, buffer, *index, *first, *next, complete);
    // What the guest overwrote meanwhile would be read from the wrong place.
    if (complete && variable("log_first_seq", std::uint64_t{}) == first)
      return view;
    ++view.status.retries;
  }
  view.status.raced = true;
  view.status.warn("the chain of records in the kernel's log is broken");
  return view;
}

} // namespace

Result<View<LogRecord>> read_kernel_log(const Kernel &kernel) {
  if (const auto symbol = kernel.symbol("prb")) { // 5.10, 896fbe20b4e2
    const auto ring = kernel.read_pointer(*symbol);
    if (!ring)
      return fault(*symbol);
    return read_ring(kernel, *ring);
  }
  if (const auto symbol = kernel.symbol("log_buf"))
    return read_buffer(kernel, *symbol);
  return fail(ErrorCode::not_found, "the kernel has neither symbol prb nor log_buf");
}

} // namespace lararium::linux_guest
