#include "served_vm.h"

#include <chrono>
#include <fmt/format.h>

namespace lararium::cli {

using namespace std::chrono_literals;

Result<void> ServedVm::start() {
  TRY(take_up());
  is_up_ = true;
  thread_ = std::thread([this] { serve(); });
  return {};
}

void ServedVm::stop() {
  stopping_ = true;
  if (thread_.joinable())
    thread_.join();
}

void ServedVm::serve() {
  const auto end_if_gone = [this] {
    if (target_.liveness->alive())
      return false;
    Record record;
    record.type = "vm_gone";
    record.sentence = fmt::format("the VM {} ended", target_.identity.name);
    tell(std::move(record));
    ended_ = true;
    return true;
  };
  while (!stopping_ && !ended_) {
    if (!is_up_) {
      if (end_if_gone())
        break;
      is_up_ = take_up().has_value();
      if (!is_up_) {
        let_go();
        std::this_thread::sleep_for(300ms);
      }
      continue;
    }
    const auto stepped = step();
    if (stepped)
      continue;
    lose();
    let_go();
    is_up_ = false;
    if (!end_if_gone())
      tell(paused(stepped.error()));
  }
  if (is_up_)
    finish();
  let_go();
}

void ServedVm::tell(Record record) {
  std::vector<Record> one;
  one.push_back(std::move(record));
  put(one);
}

void ServedVm::put(std::vector<Record> &records) {
  for (Record &record : records)
    name_record(record, target_.identity);
  outbox_.put(records);
}

} // namespace lararium::cli
