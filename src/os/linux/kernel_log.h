// The kernel's log, as /dev/kmsg gives it.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"

#include <vector>

namespace lararium::linux_guest {

[[nodiscard]] Result<View<LogRecord>> read_kernel_log(const Kernel &kernel);

// The decoders alone, on copies of the guest's memory.

// printk's ring of descriptors, 5.10 and later (kernel/printk/printk_ringbuffer.c).
struct LogRingLayout {
  FieldLocation state, begin, next;                                 // struct prb_desc
  FieldLocation sequence, time, text_length, facility, level;       // struct printk_info
  std::optional<FieldLocation> caller;                              //
  std::uint64_t descriptor_size = 0, info_size = 0, block_text = 0; // block_text: of prb_data_block.data
};
struct LogRing {
  Bytes descriptors, infos, data; // each a power of two of elements or bytes; what is missing counts as zeros
  std::uint32_t count_bits = 0, size_bits = 0;
  std::uint64_t tail_id = 0, head_id = 0;
};
// Every finalized record whose descriptor has the same state in `descriptors_after`, which was copied after the rest:
// such a record did not change in between. `changed` counts the others. In order of sequence.
[[nodiscard]] std::vector<LogRecord> decode_log_ring(const LogRingLayout &layout, const LogRing &ring,
                                                     Bytes descriptors_after, std::size_t &changed);

// The buffer of records of variable length, before 5.10.
struct LogBufferLayout {
  FieldLocation time, length, text_length, facility, level;
  std::optional<FieldLocation> caller; // 5.1, 15ff2069cb7f, where it was configured
  std::uint64_t header_size = 0;
};
// `complete` tells whether all records up to `next_sequence` were there.
[[nodiscard]] std::vector<LogRecord> decode_log_buffer(const LogBufferLayout &layout, Bytes buffer,
                                                       std::uint64_t first_index, std::uint64_t first_sequence,
                                                       std::uint64_t next_sequence, bool &complete);

} // namespace lararium::linux_guest
