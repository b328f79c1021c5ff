#include "process_json.h"

#include "text.h"

namespace lararium::cli {
namespace {

void write_ids(JsonWriter &json, std::string_view name, const UserIds &ids) {
  json.key(name)
      .begin_object()
      .member("real", ids.real)
      .member("effective", ids.effective)
      .member("saved", ids.saved)
      .member("filesystem", ids.filesystem)
      .end_object();
}

} // namespace

std::string joined_arguments(const Process &process) {
  std::string line;
  for (const std::string &argument : process.arguments) {
    if (!line.empty())
      line += ' ';
    line += argument;
  }
  return line;
}

void append_command(std::string &out, const Process &process, bool as_thread) {
  const bool is_other_thread = as_thread && process.pid != process.tgid;
  if (process.arguments.empty() || is_other_thread) {
    out += is_other_thread ? '{' : '[';
    append_visible(out, process.comm);
    out += is_other_thread ? '}' : ']';
  } else {
    bool first = true;
    for (const std::string &argument : process.arguments) {
      if (!first)
        out += ' ';
      append_visible(out, argument);
      first = false;
    }
    if (process.arguments_truncated)
      out += " ...";
  }
  if (process.exe_deleted)
    out += " (deleted)";
}

void write_process(JsonWriter &json, const Process &process) {
  json.begin_object();
  json.member("pid", process.pid)
      .member("tgid", process.tgid)
      .member("ppid", process.ppid)
      .member("pgrp", process.pgrp)
      .member("session", process.session)
      .member("namespace_pid", process.namespace_pid)
      .member("comm", process.comm);
  json.text_or_null("exe", process.exe).member("exe_deleted", process.exe_deleted);
  json.text_or_null("cmdline", joined_arguments(process));
  json.list("arguments", process.arguments).member("arguments_truncated", process.arguments_truncated);
  json.text_or_null("cwd", process.current_directory);
  json.key("state").value(std::string_view(&process.state, 1));
  json.key("start_time");
  process.start_time_ns ? json.time(*process.start_time_ns) : json.null();
  json.member("start_since_boot_ns", process.start_since_boot_ns)
      .member("user_time_ns", process.user_time_ns)
      .member("system_time_ns", process.system_time_ns)
      .member("rss_bytes", process.rss_bytes)
      .member("virtual_bytes", process.virtual_bytes)
      .member("threads", process.thread_count)
      .member("kernel_thread", process.kernel_thread)
      .member("uid", process.uid.effective)
      .member("gid", process.gid.effective);
  write_ids(json, "uids", process.uid);
  write_ids(json, "gids", process.gid);
  json.list("groups", process.groups);
  json.key("login_uid");
  process.login_uid == UINT32_MAX ? json.null() : json.value(process.login_uid);
  const Capabilities &capabilities = process.capabilities;
  json.key("capabilities").begin_object();
  json.key("inheritable").hex(capabilities.inheritable);
  json.key("permitted").hex(capabilities.permitted);
  json.key("effective").hex(capabilities.effective);
  json.key("bounding").hex(capabilities.bounding);
  json.key("ambient").hex(capabilities.ambient);
  json.end_object();
  const Namespaces &namespaces = process.namespaces;
  json.key("namespaces")
      .begin_object()
      .member("mnt", namespaces.mnt)
      .member("pid", namespaces.pid)
      .member("net", namespaces.net)
      .member("uts", namespaces.uts)
      .member("ipc", namespaces.ipc)
      .member("user", namespaces.user)
      .member("cgroup", namespaces.cgroup)
      .member("time", namespaces.time)
      .end_object();
  json.text_or_null("cgroup", process.cgroup);
  json.text_or_null("container_id", process.container_id);
  json.text_or_null("tty", process.tty);
  json.member("nice", process.nice).member("cpu", process.cpu).member("task", process.task);
  json.end_object();
}

} // namespace lararium::cli
