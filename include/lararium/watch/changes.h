// Differences between two looks at a guest, as records. Pure: snapshots go in, records come out; no guest is read here.
//
// What one look saw and the next does not is gone, unless that look raced with the guest or met a limit: then it must
// be missing twice. The first look at anything is what there was, and makes no records. Memory is bounded: what does
// not fit is not followed, and counted.
#pragma once

#include "lararium/base/result.h"
#include "lararium/os/common/views.h"
#include "lararium/record/record.h"

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lararium::watch {

// Takes the records of one look, and no more of them than somebody could read.
class Records {
public:
  static constexpr std::size_t limit = 1024;
  Record &add(std::string type, std::string sentence);
  [[nodiscard]] std::vector<Record> &items() { return items_; }
  [[nodiscard]] std::size_t left_out() const { return left_out_; }

private:
  std::vector<Record> items_;
  Record overflow_;
  std::size_t left_out_ = 0;
};

// A guest's text as records carry it: at most 4 KiB.
[[nodiscard]] std::string clipped(std::string_view text);

using ActorByPid = std::function<std::optional<Actor>(std::int32_t)>;

// Keeps what the last look saw, by key. The part of all engines that tells gone from raced.
template <class Item> class Followed {
public:
  static constexpr std::size_t limit = 16384;

  // Calls appeared(item), changed(before, now), gone(before) as it takes over what is now. Nothing is called at the
  // first look.
  template <class Appeared, class Changed, class Gone>
  void update(std::map<std::string, Item> now, const ViewStatus &status, Appeared &&appeared, Changed &&changed,
              Gone &&gone) {
    const bool whole = !status.raced && !status.truncated;
    for (auto it = kept_.begin(); it != kept_.end();) {
      const auto same = now.find(it->first);
      if (same != now.end()) {
        changed(it->second.item, same->second);
        it->second = {std::move(same->second), false};
        now.erase(same);
        ++it;
      } else if (whole || it->second.missing) {
        gone(it->second.item);
        it = kept_.erase(it);
      } else {
        it->second.missing = true;
        ++it;
      }
    }
    for (auto &[key, item] : now) {
      if (kept_.size() >= limit) {
        ++left_out_;
        continue;
      }
      if (!first_)
        appeared(item);
      kept_.emplace(key, Kept{std::move(item), false});
    }
    first_ = false;
  }
  // How many items did not fit since the last call.
  [[nodiscard]] std::size_t take_left_out() { return std::exchange(left_out_, 0); }

private:
  struct Kept {
    Item item;
    bool missing = false; // at the last look
  };
  std::map<std::string, Kept> kept_;
  std::size_t left_out_ = 0;
  bool first_ = true, any_missing_ = false;
};

class ProcessChanges {
public:
  static constexpr std::size_t limit = 65536; // processes that are followed

  // When the process began that has this number in the guest's table of pids; nothing: none has. An error: not known.
  using StartOfPid = std::function<Result<std::optional<std::uint64_t>>(std::int32_t)>;
  // One entry for each process. Paths and arguments may be missing of those that were there before. Who is missing has
  // ended when the table of pids does not know them either; where that cannot be looked into, when they were missing in
  // a look that was whole, or in two. So a list that is broken, or that somebody was taken out of, ends nobody.
  void update(const View<Process> &now, const StartOfPid &start_of, Records &records);
  // In place of update() where a look showed the very same as the one before; not while some are missing.
  void nothing_changed() { just_ended_.clear(); }
  [[nodiscard]] bool any_missing() const { return any_missing_; }

  [[nodiscard]] std::optional<Actor> actor(std::int32_t pid) const;
  [[nodiscard]] bool knows(std::int32_t pid) const { return known_.contains(pid); }
  // The pids of those that are there, and of those that the last look found gone.
  [[nodiscard]] std::set<std::uint32_t> seen() const;
  [[nodiscard]] std::size_t take_left_out() { return std::exchange(left_out_, 0); }

private:
  struct Known {
    Actor actor;
    std::uint64_t start = 0; // since boot; with the pid this names the process
    Gva memory;
    UserIds uid, gid;
    Capabilities capabilities;
    std::uint32_t user_namespace = 0;
    bool kernel_thread = false;
    bool ended = false;   // told of, although a zombie is still listed
    bool missing = false; // at the last look
    bool seen = false;    // at the look that is under way
  };
  static bool same_credentials(const Known &known, const Process &now);
  static void take(Known &known, const Process &now);
  void started(const Process &process, Records &records) const;
  static void ended(const Known &known, Records &records);
  static void executed(const Known &before, const Process &now, Records &records);
  static void credentials_changed(const Known &before, const Process &now, Records &records);

  std::unordered_map<std::int32_t, Known> known_;
  std::vector<std::int32_t> just_ended_;
  std::size_t left_out_ = 0;
  bool first_ = true, any_missing_ = false;
};

// Counts pids that were given out and are neither in use nor were seen: processes and threads that came and went
// between two looks. Looks in this order, so that nobody is counted who could have been seen: the allocator's cursor,
// then the processes, then the pids in use.
class UnseenProcesses {
public:
  struct Range {
    std::uint32_t begin = 0, end = 0;
  };
  // The pids that were given out since the last call: none, one range, or two after a wrap. What the allocator went
  // round a whole circle for is not seen.
  [[nodiscard]] std::vector<Range> advance(const Pulse &pulse);
  // After a jump that was no progress: a snapshot was loaded.
  void forget() { cursor_.reset(); }
  [[nodiscard]] static std::uint64_t count(const std::vector<Range> &ranges, const std::vector<std::uint32_t> &in_use,
                                           std::set<std::uint32_t> seen);

private:
  std::optional<std::uint32_t> cursor_;
};

class ModuleChanges {
public:
  void update(const View<KernelModule> &now, Records &records);
  [[nodiscard]] std::size_t take_left_out() { return followed_.take_left_out(); }

private:
  Followed<KernelModule> followed_;
};

// Sockets that wait for others (listening, bound datagram, raw and packet ones), and TCP and UDP connections.
class SocketChanges {
public:
  void update(const View<Socket> &now, const ActorByPid &actor, Records &records);
  [[nodiscard]] std::size_t take_left_out() { return followed_.take_left_out(); }

private:
  struct Item {
    Socket socket;
    std::optional<Actor> owner;
    bool listening = false;
  };
  Followed<Item> followed_;
};

// Of several mount namespaces. A namespace's mounts when it comes, and when it goes as a whole, make no records.
class MountChanges {
public:
  void update(const View<Mount> &now, Records &records);
  [[nodiscard]] std::size_t take_left_out() { return followed_.take_left_out(); }

private:
  Followed<Mount> followed_;
  std::set<std::uint32_t> namespaces_;
};

class InterfaceChanges {
public:
  void update(const View<NetworkInterface> &now, Records &records);
  [[nodiscard]] std::size_t take_left_out() { return followed_.take_left_out(); }

private:
  Followed<NetworkInterface> followed_;
};

class BpfChanges {
public:
  void update(const BpfView &now, const ActorByPid &actor, Records &records);
  [[nodiscard]] std::size_t take_left_out() { return followed_.take_left_out(); }

private:
  Followed<BpfProgram> followed_;
};

// What one check found in one round. `made` false: it could not be made, and its findings stay as they were.
struct CheckRound {
  std::string check;
  bool made = true;
  std::vector<Finding> findings;
};

// Here the first look counts too: what is wrong already is news.
class FindingChanges {
public:
  static constexpr std::size_t limit = 4096;
  void update(const std::vector<CheckRound> &rounds, Records &records);
  [[nodiscard]] std::size_t take_left_out() { return std::exchange(left_out_, 0); }

private:
  std::map<std::pair<std::string, std::string>, Finding> standing_; // by check and subject
  std::size_t left_out_ = 0;
};

} // namespace lararium::watch
