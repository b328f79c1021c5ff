#include "live_records.h"

#include "json.h"
#include "record_output.h"
#include "text.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <fmt/format.h>
#include <utility>

namespace lararium::cli {

void Outbox::put(std::vector<Record> &records) {
  const std::lock_guard lock(mutex_);
  for (Record &record : records) {
    if (queue_.size() < limit)
      queue_.push_back(std::move(record));
    else
      ++left_out_;
  }
  records.clear();
}

std::deque<Record> Outbox::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(queue_, {});
}

std::uint64_t Outbox::left_out() const {
  const std::lock_guard lock(mutex_);
  return left_out_;
}

void name_record(Record &record, const TargetIdentity &identity) {
  record.vm = {identity.name, identity.uuid, identity.pid};
  if (record.host_time_ns == 0)
    record.host_time_ns = static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
            .count());
}

void print_record(Output &out, const Record &record, bool json) {
  if (json) {
    JsonWriter writer(out.buffer());
    write_record(writer, record);
    out.buffer() += '\n';
    return;
  }
  const std::uint64_t ms = record.host_time_ns / 1'000'000 % 86'400'000;
  out.styled(Style::dim,
             fmt::format("{:02}:{:02}:{:02}.{:03}", ms / 3'600'000, ms / 60'000 % 60, ms / 1000 % 60, ms % 1000));
  out.buffer() += ' ';
  out.styled(record.finding ? style_of(record.finding->severity) : Style::cyan, fmt::format("{:<18}", record.type));
  out.buffer() += ' ';
  append_visible(out.buffer(), record.sentence);
  out.buffer() += '\n';
  if (!record.finding)
    return;
  constexpr std::array shown{
      "expected_bytes",    "found_bytes", "expected", "found", "vcpu", "action", "in_memory_after_microseconds",
      "after_microseconds"};
  for (const RecordField &field : record.fields)
    if (std::ranges::find(shown, field.name) != shown.end()) {
      out.styled(Style::dim, fmt::format("             {:<28}", field.name));
      out.buffer() += fmt::format(" {}\n", text_of(field.value));
    }
}

void block_terminal_stops() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTSTP, SIGTTOU, SIGTTIN})
    sigaddset(&set, signal);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

bool interrupted_within(std::chrono::milliseconds time) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT})
    sigaddset(&set, signal);
  const timespec limit{time.count() / 1000, time.count() % 1000 * 1'000'000};
  return ::sigtimedwait(&set, nullptr, &limit) > 0;
}

} // namespace lararium::cli
