#include "ring.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>

namespace lararium::gate::sim {
namespace {

constexpr std::uint64_t sequences_ahead = 4096; // that are tried: what a ring holds at most

} // namespace

std::vector<KeptBytes> captures_of(const Record &record) {
  std::vector<KeptBytes> kept;
  std::size_t at = 0;
  for (std::uint8_t i = 0; i < std::min<std::size_t>(record.head.captures, capture_limit); ++i) {
    const auto head = load<CaptureHead>(record.captures, at);
    if (!head || head->length > record.captures.size() - at - sizeof *head)
      break;
    kept.push_back({*head, record.captures.subspan(at + sizeof *head, head->length)});
    at += sizeof *head + (head->length + 7) / 8 * 8;
    if (at > record.captures.size())
      break;
  }
  return kept;
}

// The key of a later record is made from ours, as the guest's was.
bool RingReader::is_genuine(Bytes record, const RecordHead &head, std::uint64_t &missing) {
  if (head.sequence < next_ || head.sequence - next_ > sequences_ahead)
    return false;
  auto key = key_;
  for (std::uint64_t i = next_; i < head.sequence; ++i) {
    const Permuted step = permuted(key[0], key[1]);
    key = {step.words[2], step.words[3]};
  }
  const std::size_t size = record.size() - sizeof(Tag);
  std::memcpy(words_.data(), record.data(), size);
  const Tag right = tag_of(words_.data(), static_cast<std::uint32_t>(size / 8), hash_->data(), key.data());
  const auto tag = load<Tag>(record, size);
  if (!tag || tag->words[0] != right.words[0] || tag->words[1] != right.words[1])
    return false;
  missing = head.sequence - next_;
  next_ = head.sequence + 1;
  key_ = key;
  return true;
}

void RingReader::read(Bytes ring, std::uint64_t head, std::vector<Record> &out, std::vector<std::string> &wrong) {
  if (head == tail_ || ring.size() != ring_size_)
    return;
  if (head < tail_ || head - tail_ > ring_size_) {
    wrong.emplace_back(head < tail_ ? "was turned back: records were removed" : "was turned ahead of what it holds");
    tail_ = head;
    ++failed_in_a_row_;
    return;
  }
  while (tail_ < head) {
    const std::uint64_t begin = begin_of_record(tail_, ring_size_);
    const auto top = begin < head ? load<RecordHead>(ring, begin & (ring_size_ - 1)) : std::nullopt;
    const bool is_possible = top && top->size % 16 == 0 && top->size >= sizeof(RecordHead) + sizeof(Tag) &&
                             top->size <= record_limit && top->size <= head - begin;
    if (!is_possible) {
      wrong.emplace_back("holds what is no record");
      ++failed_in_a_row_;
      tail_ = head;
      return;
    }
    const Bytes bytes = ring.subspan(begin & (ring_size_ - 1), top->size);
    std::uint64_t missing = 0;
    if (is_genuine(bytes, *top, missing)) {
      if (missing != 0)
        wrong.emplace_back(fmt::format("lacks {} of its records: {} removed or changed", missing,
                                       missing == 1 ? "it was" : "they were"));
      failed_in_a_row_ = 0;
      lost_ = top->lost;
      out.push_back({*top, bytes.subspan(sizeof(RecordHead), top->size - sizeof(RecordHead) - sizeof(Tag))});
    } else {
      wrong.emplace_back("holds a record that its CPU did not write, or that was changed");
      ++failed_in_a_row_;
    }
    tail_ = begin + top->size;
    if (is_out_of_step()) {
      tail_ = head;
      return;
    }
  }
}

void RingReader::restart(std::array<std::uint64_t, 2> key, std::uint64_t tail) {
  key_ = key;
  tail_ = tail;
  failed_in_a_row_ = 0;
}

} // namespace lararium::gate::sim
