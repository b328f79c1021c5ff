// A process as JSON and as the text of a COMMAND column; ps and top show it alike.
#pragma once

#include "json.h"
#include "lararium/os/common/views.h"

#include <string>

namespace lararium::cli {

void write_process(JsonWriter &json, const Process &process);
// The command line; in brackets the name of what has none. For one thread, its name.
void append_command(std::string &out, const Process &process, bool as_thread);
[[nodiscard]] std::string joined_arguments(const Process &process);

} // namespace lararium::cli
