// Bounded walks through the kernel's linked lists, which a guest may have bent into anything.
#pragma once

#include "lararium/os/linux/kernel.h"

#include <cstdint>

namespace lararium::linux_guest {

enum class WalkEnd : std::uint8_t {
  complete, // came back to the head, all links agree
  stopped,  // the visitor asked to stop
  broken,   // a link cannot be read, or leads out of the kernel: a race, or tampering
  cyclic,   // the list runs in a circle that does not hold its head
  limit,    // more elements than can be
};

struct WalkResult {
  WalkEnd end = WalkEnd::complete;
  std::size_t visited = 0;
  std::size_t mismatches = 0; // places where next->prev is not where we came from: the guest changed the list meanwhile
  Gva at;                     // the element where it ended, when it did not end well
  [[nodiscard]] bool consistent() const {
    return (end == WalkEnd::complete || end == WalkEnd::stopped) && mismatches == 0;
  }
};

// Walks a doubly linked struct list_head from `head` (not visited). `visit(Gva node)` gets the address of each
// list_head and returns false to stop. Circles are found by Brent's algorithm with no memory.
template <class Visit> WalkResult walk_list(const Kernel &kernel, Gva head, std::size_t limit, Visit &&visit) {
  WalkResult result;
  Gva previous = head;
  auto node = kernel.read_pointer(head);
  Gva checkpoint = head;
  std::size_t steps = 0, power = 64;
  while (true) {
    if (!node || !kernel.is_kernel_address(*node)) {
      result.end = WalkEnd::broken;
      result.at = previous;
      return result;
    }
    struct {
      std::uint64_t next, prev;
    } links{};
    if (!kernel.space().read(*node, writable_bytes_of(links))) {
      result.end = WalkEnd::broken;
      result.at = previous;
      return result;
    }
    if (links.prev != previous.value)
      ++result.mismatches;
    if (*node == head)
      return result;
    if (*node == checkpoint) {
      result.end = WalkEnd::cyclic;
      result.at = *node;
      return result;
    }
    if (result.visited >= limit) {
      result.end = WalkEnd::limit;
      result.at = *node;
      return result;
    }
    ++result.visited;
    if (!visit(*node)) {
      result.end = WalkEnd::stopped;
      return result;
    }
    if (++steps == power) {
      power *= 2;
      steps = 0;
      checkpoint = *node;
    }
    previous = *node;
    node = Gva{links.next};
  }
}

// The same for singly linked chains that end with null or, for hlist_nulls, with an odd value. `next_offset` is where
// in a node the link lies; `first` may be null.
template <class Visit>
WalkResult walk_chain(const Kernel &kernel, Gva first, std::uint64_t next_offset, std::size_t limit, Visit &&visit) {
  WalkResult result;
  Gva node = first;
  Gva checkpoint{1};
  std::size_t steps = 0, power = 64;
  while (node && (node.value & 1) == 0) {
    if (!kernel.is_kernel_address(node)) {
      result.end = WalkEnd::broken;
      result.at = node;
      return result;
    }
    if (node == checkpoint) {
      result.end = WalkEnd::cyclic;
      result.at = node;
      return result;
    }
    if (result.visited >= limit) {
      result.end = WalkEnd::limit;
      result.at = node;
      return result;
    }
    ++result.visited;
    if (!visit(node)) {
      result.end = WalkEnd::stopped;
      return result;
    }
    if (++steps == power) {
      power *= 2;
      steps = 0;
      checkpoint = node;
    }
    const auto next = kernel.read_pointer(node + next_offset);
    if (!next) {
      result.end = WalkEnd::broken;
      result.at = node;
      return result;
    }
    node = *next;
  }
  return result;
}

} // namespace lararium::linux_guest
