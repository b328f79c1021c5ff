#include "../context.h"
#include "../exit_codes.h"
#include "../record_output.h"
#include "../table.h"
#include "../text.h"

#include "lararium/detect/runner.h"

#include <algorithm>
#include <chrono>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

using detect::CheckEntry;
using detect::Outcome;

double milliseconds_of(std::chrono::nanoseconds time) { return static_cast<double>(time.count()) / 1e6; }

class CheckCommand final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.flag("-l,--list", "what each check compares with what, and what it cannot see; looks at no VM", list_);
    syntax.option("--only", "CHECKS", "only these, separated by commas", only_);
    syntax.option("--skip", "CHECKS", "not these", skip_);
    syntax.option(
        "--reference", "FILE",
        "vmlinuz or vmlinux of the guest's kernel, from its package: its code and read-only data are compared "
        "with it",
        reference_);
  }

  Result<void> run(Context &context) override {
    if (list_)
      return print_list(context);
    TRY_ASSIGN(Target *const target, context.target());
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    TRY_ASSIGN(auto runner, detect::Runner::create(*target, *guest,
                                                   {split_names(only_.value_or("")), split_names(skip_.value_or(""))}));
    std::optional<KernelFile> reference;
    if (reference_) {
      TRY_ASSIGN(reference, open_reference(*reference_, *guest));
      runner.reference = &*reference;
    }
    // What stands still needs no second look.
    if (context.paused() || target->identity.kind == TargetKind::dump)
      runner.looks = 1;
    const auto begin = std::chrono::steady_clock::now();
    TRY_ASSIGN(const auto outcomes, runner.run());
    const auto took = std::chrono::steady_clock::now() - begin;
    TRY(context.release_pause());
    std::size_t found = 0;
    for (const Outcome &outcome : outcomes)
      found += outcome.findings.size() + outcome.left_out;
    if (found != 0)
      context.exit_code = exit_findings;
    return context.options.json ? print_json(context, outcomes) : print(context, outcomes, found, took);
  }

private:
  static Result<KernelFile> open_reference(const std::string &path, OperatingSystem &guest) {
    auto file = KernelFile::open(path);
    if (!file) {
      file.error().message = fmt::format("{}: {}", visible(path), file.error().message);
      return file;
    }
    TRY_ASSIGN(const SystemInfo info, guest.info());
    if (file->build_id().hex() != info.build_id)
      return fail(ErrorCode::usage, fmt::format("{} is another kernel: its build id is {}, that of the guest's is {}",
                                                visible(path), file->build_id().hex(), info.build_id));
    return file;
  }

  static Result<void> print_list(Context &context) {
    const auto checks = detect::all_checks();
    if (context.options.json)
      return context.json_list("check", checks, nullptr, [](JsonWriter &json, const CheckEntry *check) {
        json.begin_object()
            .member("check", check->name)
            .member("techniques", check->techniques)
            .member("summary", check->summary)
            .member("explained", check->explained)
            .end_object();
      });
    for (const CheckEntry *check : checks) {
      context.out.styled(Style::bold, check->name);
      context.out.buffer() += fmt::format("  {} ({})\n", check->summary, check->techniques);
      context.out.buffer() += wrapped(check->explained, std::min<std::size_t>(context.out.device().columns, 100), 4);
      context.out.buffer() += '\n';
    }
    return {};
  }

  static std::string wrapped(std::string_view text, std::size_t columns, std::size_t indent) {
    std::string result;
    std::size_t column = 0;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find(' ', at), text.size());
      const std::size_t length = end - at;
      if (column == 0 || column + 1 + length > columns) {
        result += column == 0 ? "" : "\n";
        result.append(indent, ' ');
        column = indent;
      } else {
        result += ' ';
        ++column;
      }
      result += text.substr(at, length);
      column += length;
      at = end + 1;
    }
    return result + '\n';
  }

  static Result<void> print_json(Context &context, const std::vector<Outcome> &outcomes) {
    const ViewStatus status;
    JsonWriter json = context.begin_document("check", &status);
    json.key("items").begin_array();
    for (const Outcome &outcome : outcomes)
      for (const Finding &finding : outcome.findings)
        write_finding(json, finding);
    json.end_array();
    json.key("checks").begin_array();
    for (const Outcome &outcome : outcomes) {
      json.begin_object()
          .member("check", outcome.check->name)
          .member("findings", outcome.findings.size())
          .member("left_out", outcome.left_out)
          .member("looks", outcome.looks)
          .member("milliseconds", milliseconds_of(outcome.took));
      json.text_or_null("error", outcome.error ? outcome.error->describe() : "");
      json.end_object();
    }
    json.end_array();
    return context.end_document(json);
  }

  static Result<void> print(Context &context, const std::vector<Outcome> &outcomes, std::size_t found,
                            std::chrono::nanoseconds took) {
    Output &out = context.out;
    for (const Outcome &outcome : outcomes)
      for (const Finding &finding : outcome.findings) {
        out.styled(style_of(finding.severity), fmt::format("{:<8}", lararium::name_of(finding.severity)));
        out.buffer() += ' ';
        append_visible(out.buffer(), finding.sentence);
        out.styled(Style::dim, fmt::format("  {} {}", finding.check, finding.technique));
        out.buffer() += '\n';
        print_evidence(out, finding);
      }
    std::size_t made = 0;
    for (const Outcome &outcome : outcomes) {
      made += outcome.error ? 0 : 1;
      if (outcome.error)
        context.note(
            fmt::format("{} could not be checked: {}", outcome.check->name, visible(outcome.error->describe())));
      if (outcome.left_out != 0)
        context.note(fmt::format("{}: {} more findings are not shown", outcome.check->name, outcome.left_out));
    }
    if (found != 0)
      out.buffer() += '\n';
    const std::string sum = fmt::format("{} {}, {} {}, {:.0f} ms", made, made == 1 ? "check" : "checks", found,
                                        found == 1 ? "finding" : "findings", milliseconds_of(took));
    out.styled(found == 0 ? Style::green : Style::bold, sum);
    out.buffer() += '\n';
    return {};
  }

  bool list_ = false;
  std::optional<std::string> only_, skip_, reference_;
};

LARARIUM_COMMAND(CheckCommand, "check", security, vm, "looks for signs of tampering and intrusion")

} // namespace
} // namespace lararium::cli
