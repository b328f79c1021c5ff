// Who holds a socket or a BPF object open.
#pragma once

#include "json.h"
#include "lararium/os/common/views.h"

#include <string>
#include <vector>

namespace lararium::cli {

void write_owners(JsonWriter &json, const std::vector<SocketOwner> &owners);  // the member "owners"
void append_owners(std::string &out, const std::vector<SocketOwner> &owners); // "sshd (12, fd 3)"

} // namespace lararium::cli
