#include "owners.h"

#include "text.h"

#include <fmt/format.h>

namespace lararium::cli {

void write_owners(JsonWriter &json, const std::vector<SocketOwner> &owners) {
  json.key("owners").begin_array();
  for (const SocketOwner &owner : owners)
    json.begin_object().member("pid", owner.pid).member("fd", owner.fd).member("comm", owner.comm).end_object();
  json.end_array();
}

void append_owners(std::string &out, const std::vector<SocketOwner> &owners) {
  for (const SocketOwner &owner : owners) {
    out += &owner == &owners.front() ? "" : ", ";
    append_visible(out, owner.comm);
    fmt::format_to(std::back_inserter(out), " ({}, fd {})", owner.pid, owner.fd);
  }
}

} // namespace lararium::cli
