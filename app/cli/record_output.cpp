#include "record_output.h"

#include "text.h"

#include <fmt/format.h>
#include <sstream>

namespace lararium::cli {
namespace {

struct ValueWriter {
  JsonWriter &json;
  void operator()(const std::string &text) const { json.value(text); }
  void operator()(std::uint64_t number) const { json.value(number); }
  void operator()(bool truth) const { json.value(truth); }
  void operator()(Gva address) const { json.value(address); }
  void operator()(const std::vector<std::byte> &bytes) const { json.value(hex(bytes)); }

  static std::string hex(const std::vector<std::byte> &bytes) {
    std::string text;
    for (const std::byte byte : bytes)
      text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
    return text;
  }
};

void write_fields(JsonWriter &json, const std::vector<RecordField> &fields) {
  json.begin_object();
  for (const RecordField &field : fields) {
    json.key(field.name);
    std::visit(ValueWriter{json}, field.value);
  }
  json.end_object();
}

void write_actor(JsonWriter &json, const std::optional<Actor> &actor) {
  if (!actor) {
    json.null();
    return;
  }
  json.begin_object().member("pid", actor->pid).member("ppid", actor->ppid).member("uid", actor->uid);
  json.member("comm", actor->comm);
  json.text_or_null("exe", actor->exe);
  json.text_or_null("container_id", actor->container_id);
  json.key("start_time");
  actor->start_time_ns ? json.time(*actor->start_time_ns) : json.null();
  json.end_object();
}

} // namespace

void write_finding(JsonWriter &json, const Finding &finding) {
  json.begin_object()
      .member("check", finding.check)
      .member("subject", finding.subject)
      .member("severity", lararium::name_of(finding.severity))
      .member("technique", finding.technique)
      .member("sentence", finding.sentence);
  json.key("evidence");
  write_fields(json, finding.evidence);
  json.key("process");
  write_actor(json, finding.process);
  json.end_object();
}

void write_record(JsonWriter &json, const Record &record) {
  json.begin_object()
      .member("version", record_version)
      .member("kind", lararium::name_of(record.kind))
      .member("type", record.type);
  json.key("vm").begin_object().member("name", record.vm.name);
  json.text_or_null("uuid", record.vm.uuid);
  json.member("pid", record.vm.pid).end_object();
  json.key("guest_time");
  record.guest_time_ns ? json.time(*record.guest_time_ns) : json.null();
  json.key("host_time").time(record.host_time_ns);
  json.member("sentence", record.sentence);
  json.key("actor");
  write_actor(json, record.actor);
  json.key("fields");
  write_fields(json, record.fields);
  json.key("finding");
  record.finding ? write_finding(json, *record.finding) : static_cast<void>(json.null());
  json.end_object();
}

std::string text_of(const FieldValue &value) {
  struct {
    std::string operator()(const std::string &text) const { return visible(text); }
    std::string operator()(std::uint64_t number) const { return fmt::format("{}", number); }
    std::string operator()(bool truth) const { return truth ? "yes" : "no"; }
    std::string operator()(Gva address) const { return fmt::format("{:#x}", address.value); }
    std::string operator()(const std::vector<std::byte> &bytes) const { return ValueWriter::hex(bytes); }
  } visitor;
  return std::visit(visitor, value);
}

void print_evidence(Output &out, const Finding &finding) {
  const auto label = [&](std::string_view name) { out.styled(Style::dim, fmt::format("         {:<12}", name)); };
  for (const RecordField &field : finding.evidence) {
    label(field.name);
    out.buffer() += fmt::format(" {}\n", text_of(field.value));
  }
  if (finding.process) {
    label("process");
    out.buffer() += fmt::format(" {} {} (uid {}) {}\n", finding.process->pid, visible(finding.process->comm),
                                finding.process->uid, visible(finding.process->exe));
  }
}

Style style_of(Severity severity) {
  return severity >= Severity::high ? Style::red : severity == Severity::medium ? Style::yellow : Style::plain;
}

std::vector<std::string> split_names(const std::string &names) {
  std::vector<std::string> result;
  std::istringstream stream(names);
  for (std::string name; std::getline(stream, name, ',');)
    if (!name.empty())
      result.push_back(name);
  return result;
}

} // namespace lararium::cli
