// What checks of processes share.
#pragma once

#include "lararium/detect/check.h"

#include <fmt/format.h>

#include <string_view>

namespace lararium::detect {

[[nodiscard]] inline std::string_view file_name(std::string_view path) { return path.substr(path.rfind('/') + 1); }

// "process 12 (bash) WHAT"
inline Finding &add_finding(const Scene &scene, Findings &findings, const Process &process, std::string_view subject,
                            Severity severity, const char *technique, std::string_view what) {
  Finding &finding = findings.add({.subject = fmt::format("pid {} {}", process.tgid, subject),
                                   .severity = severity,
                                   .technique = technique,
                                   .sentence = fmt::format("process {} ({}) {}", process.tgid, process.comm, what)});
  finding.process = scene.actor(process);
  return finding;
}

} // namespace lararium::detect
