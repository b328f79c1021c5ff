// Reads one CPU's ring. What lies there the guest's kernel can write to: each record is checked against the chain of
// keys that only it and we can make, and its number against the one before.
#pragma once

#include "layout.h"

#include "lararium/base/bytes.h"

#include <array>
#include <optional>
#include <string>
#include <vector>

namespace lararium::gate::sim {

// A record that is genuine. `captures` lies in what the reader was given to read.
struct Record {
  RecordHead head;
  Bytes captures;
};

struct KeptBytes {
  CaptureHead head;
  Bytes bytes;
};
// Those of a record, at most capture_limit; nothing behind one that does not fit.
[[nodiscard]] std::vector<KeptBytes> captures_of(const Record &record);

class RingReader {
public:
  RingReader(std::uint64_t ring_size, std::array<std::uint64_t, 2> key,
             const std::array<std::uint64_t, record_words> &hash)
      : ring_size_(ring_size), key_(key), hash_(&hash) {}

  // What was written since the last time, where the CPU says that it wrote up to `head`: at most the ring. `ring` is a
  // copy of it. What is not as it must be is said in `wrong`, a sentence each.
  void read(Bytes ring, std::uint64_t head, std::vector<Record> &out, std::vector<std::string> &wrong);

  [[nodiscard]] std::uint64_t tail() const { return tail_; }
  [[nodiscard]] std::uint64_t next_sequence() const { return next_; }
  [[nodiscard]] std::uint64_t lost() const { return lost_; }
  // Nothing that follows can be read any more: both sides need a new key (restart()).
  [[nodiscard]] bool is_out_of_step() const { return failed_in_a_row_ >= too_many; }
  void restart(std::array<std::uint64_t, 2> key, std::uint64_t tail);

private:
  static constexpr std::uint32_t too_many = 3;
  [[nodiscard]] bool is_genuine(Bytes record, const RecordHead &head, std::uint64_t &missing);

  std::uint64_t ring_size_;
  std::array<std::uint64_t, 2> key_; // of the record next_
  const std::array<std::uint64_t, record_words> *hash_;
  std::uint64_t tail_ = 0, next_ = 1, lost_ = 0;
  std::uint32_t failed_in_a_row_ = 0;
  std::array<std::uint64_t, record_words> words_{};
};

} // namespace lararium::gate::sim
