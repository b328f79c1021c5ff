// A VM that a thread of ours serves, and which waits for nothing else: no vCPU ever waits for a terminal, a pipe or a
// monitor. Whatever the guest boots into is taken up, until the VM ends or nobody wants it any more.
#pragma once

#include "live_records.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

namespace lararium::cli {

class ServedVm {
public:
  // Both must outlive it.
  ServedVm(Target &target, Outbox &outbox) : target_(target), outbox_(outbox) {}
  ServedVm(const ServedVm &) = delete;
  ServedVm &operator=(const ServedVm &) = delete;
  virtual ~ServedVm() = default; // who derives from it calls stop()

  // Takes up the guest that runs now; an error is of that.
  [[nodiscard]] Result<void> start();
  void stop();
  [[nodiscard]] bool ended() const { return ended_; } // the VM

protected:
  // Makes all that serving takes. After an error let_go() is called.
  virtual Result<void> take_up() = 0;
  // Serves, for 50 ms at most. An error: the guest that was taken up runs no more.
  virtual Result<void> step() = 0;
  // It does not; and the VM is there, or about to be found gone.
  virtual void lose() = 0;
  [[nodiscard]] virtual Record paused(const Error &why) const = 0;
  // Nobody wants it any more.
  virtual void finish() = 0;
  // Drops what take_up() made, however far it got.
  virtual void let_go() = 0;

  void take_up_again() { is_up_ = false; } // after let_go(), within step()
  void tell(Record record);
  void put(std::vector<Record> &records);

  Target &target_;
  Outbox &outbox_;

private:
  void serve();

  std::thread thread_;
  bool is_up_ = false;
  std::atomic<bool> stopping_ = false, ended_ = false;
};

} // namespace lararium::cli
