// How records name a process.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/record/record.h"

namespace lararium {

[[nodiscard]] inline Actor actor_of(const Process &process) {
  return {process.tgid, process.ppid,         process.uid.effective, process.comm,
          process.exe,  process.container_id, process.start_time_ns};
}

} // namespace lararium
