// Gives up all rights of the calling process, for a program that is about to be started in it.
#pragma once

#include <sys/types.h>

namespace lararium::policy {

struct Identity {
  uid_t user = 65534;
  gid_t group = 65534;
};

// Another user with no capability, no way to get one, no network, little memory and few descriptors, and a filter that
// refuses (EPERM) every system call but those with which a program loads itself, computes, and talks over descriptors
// that it was given. Files can be opened for reading alone, so that a descriptor of the guest's memory cannot be turned
// into one for writing. Called in a process with one thread, between fork() and exec(); 0, or an errno.
[[nodiscard]] int confine(const Identity &identity);

} // namespace lararium::policy
