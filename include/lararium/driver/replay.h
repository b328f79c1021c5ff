// Recordings: the little of a guest's memory that something read, in a file small enough to keep beside a test.
#pragma once

#include "lararium/base/result.h"
#include "lararium/vm/target.h"

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace lararium {

// Keeps what is read of a target. Not thread-safe, like the memory it watches.
class Recorder {
public:
  static constexpr std::size_t default_page_limit = 32768; // 128 MiB

  // Puts a recording memory in the place of target.memory, and reads the registers once; from then on, target.vcpus
  // gives these. Each page is read from the guest the first time that something touches it, and from the recording ever
  // after, refresh() or not: so what is done on the target now and on the recording later cannot differ. The target has
  // no mapped memory while it is recorded. Run control and statistics stay as they are and are not recorded.
  [[nodiscard]] static Result<std::shared_ptr<Recorder>> start(Target &target,
                                                               std::size_t page_limit = default_page_limit);
  virtual ~Recorder();

  // False: pages that are first touched from now on are read and not recorded. For what searches all of memory; put
  // what it found into hints.vmcoreinfo, so that the search is not needed when the recording is replayed.
  virtual void set_enabled(bool enabled) = 0;
  // What the recording will say in the place of the target's own hints.
  virtual void set_hints(TargetHints hints) = 0;
  [[nodiscard]] virtual std::size_t page_count() const = 0;

  // The recording so far. The same pages and registers give the same bytes. Fails where more pages were touched than
  // the limit.
  [[nodiscard]] virtual Result<std::vector<std::byte>> encode() const = 0;
  [[nodiscard]] Result<void> save(const std::string &path) const;
};

// Whether a file begins as a recording does, of this version or another.
[[nodiscard]] bool is_recording(const std::string &path);
// A target of which only the recorded pages can be read; all other reads fail.
[[nodiscard]] Result<Target> open_recording(const std::string &path);
[[nodiscard]] Result<Target> decode_recording(Bytes recording);

} // namespace lararium
