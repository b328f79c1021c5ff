#include "../ask_guest.h"
#include "../context.h"
#include "../exit_codes.h"
#include "../record_output.h"
#include "../table.h"
#include "../text.h"

#include "lararium/detect/lies.h"
#include "lararium/detect/runner.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fmt/format.h>
#include <system_error>

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
    syntax.option("--severity", "LEAST", "only findings at least as grave; low ones mean something with other evidence",
                  severity_, {"low", "medium", "high", "critical"});
    syntax.option("--reference", "FILE",
                  "vmlinuz or vmlinux of the guest's kernel, from its package, or the folder of its modules "
                  "(lib/modules/RELEASE); may be given for each: code and read-only data are compared with theirs",
                  reference_);
    syntax.option(
        "--lies-command", "COMMAND",
        "instead, compares what the guest says of itself: a shell command that runs its input in the guest as "
        "root, such as 'ssh root@guest sh -s'",
        lies_command_);
    syntax.option("--lies-agent", "SOCKET",
                  "the same through QEMU's guest agent: the socket on this host of its serial port", lies_agent_);
    syntax.option("--lies", "FILE",
                  "the same with an answer that is in a file, or comes there within two minutes; - is standard input",
                  lies_);
    syntax.flag("--lies-script", "prints what the guest has to run for --lies; looks at no VM", lies_script_);
  }

  Result<void> run(Context &context) override {
    if (list_)
      return print_list(context);
    if (lies_script_) {
      context.out.buffer() += detect::answer_script();
      return {};
    }
    TRY_ASSIGN(Target *const target, context.target());
    if ((lies_command_ || lies_agent_) && (context.paused() || target->identity.kind == TargetKind::dump))
      return fail(ErrorCode::usage, fmt::format("only a VM that runs can be asked by {}",
                                                lies_command_ ? "--lies-command" : "--lies-agent"));
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    if (lies_ || lies_command_ || lies_agent_)
      return look_for_lies(context, *target, *guest);
    TRY_ASSIGN(auto runner, detect::Runner::create(*target, *guest,
                                                   {split_names(only_.value_or("")), split_names(skip_.value_or(""))}));
    std::optional<KernelFile> kernel;
    std::optional<ModuleFolder> modules;
    for (const std::string &path : reference_) {
      std::error_code ignored;
      const bool is_folder = std::filesystem::is_directory(path, ignored);
      if (is_folder ? modules.has_value() : kernel.has_value())
        return fail(ErrorCode::usage, fmt::format("{} is a second reference of the same kind", visible(path)));
      if (is_folder) {
        TRY_ASSIGN(modules, open_modules(path));
      } else {
        TRY_ASSIGN(kernel, open_kernel(path, *guest));
      }
    }
    runner.references = {kernel ? &*kernel : nullptr, modules ? &*modules : nullptr};
    // What stands still needs no second look.
    if (context.paused() || target->identity.kind == TargetKind::dump)
      runner.looks = 1;
    const auto begin = std::chrono::steady_clock::now();
    TRY_ASSIGN(auto outcomes, runner.run());
    const auto took = std::chrono::steady_clock::now() - begin;
    TRY(context.release_pause());
    return report(context, std::move(outcomes), took);
  }

private:
  Result<void> report(Context &context, std::vector<Outcome> outcomes, std::chrono::nanoseconds took) const {
    std::size_t found = 0, below = 0;
    for (Outcome &outcome : outcomes) {
      below += std::erase_if(outcome.findings, [&](const Finding &finding) {
        return severity_ && finding.severity < severity_named(*severity_);
      });
      found += outcome.findings.size() + outcome.left_out;
    }
    if (below != 0)
      context.detail(fmt::format("{} findings are less grave than {}", below, *severity_));
    if (found != 0)
      context.exit_code = exit_findings;
    return context.options.json ? print_json(context, outcomes) : print(context, outcomes, found, took);
  }

  static Result<ModuleFolder> open_modules(const std::string &path) {
    TRY_ASSIGN(ModuleFolder folder, ModuleFolder::open(path));
    if (folder.size() == 0)
      return fail(ErrorCode::usage,
                  fmt::format("there is no module (NAME.ko, NAME.ko.xz, .zst or .gz) in {}", visible(path)));
    return folder;
  }

  static Result<KernelFile> open_kernel(const std::string &path, OperatingSystem &guest) {
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

  // A guest that we ask is asked again while it lies: what is not told each time was a race.
  Result<void> look_for_lies(Context &context, const Target &target, OperatingSystem &guest) {
    static constexpr CheckEntry entry{"lies", "T1014 T1564.001", "what the guest says of itself", "", nullptr};
    AskLimits limits;
    limits.bytes = detect::answer_limit;
    const bool we_ask = lies_command_ || lies_agent_;
    const unsigned asked = we_ask ? 3 : 1;
    const auto begin = std::chrono::steady_clock::now();
    detect::LieDetector detector(target, guest);
    detect::Agreement agreement(asked);
    Outcome outcome;
    outcome.check = &entry;
    bool is_settled = false;
    for (unsigned round = 0; round < asked && !is_settled; ++round) {
      TRY(detector.look_before());
      std::string text;
      if (lies_command_) {
        TRY_ASSIGN(text, ask_by_command(*lies_command_, detect::answer_script(), limits));
      } else if (lies_agent_) {
        TRY_ASSIGN(text, context.host.ask_guest_agent(*lies_agent_, detect::answer_script(), limits));
      } else {
        if (!has_whole_answer(*lies_, detect::is_whole_answer, limits))
          detector.wait_for_clock();
        TRY_ASSIGN(text, read_answer(*lies_, detect::is_whole_answer, limits));
      }
      TRY_ASSIGN(const auto answer, detect::parse_answer(text));
      detect::Findings findings;
      TRY_ASSIGN(const auto time, detector.compare(answer, we_ask, findings));
      if (time == detect::AnswerTime::earlier)
        context.note("the answer is older than this look: only processes that are older still were compared");
      outcome.left_out = findings.left_out();
      is_settled = agreement.take({}, std::move(findings.items()));
    }
    outcome.findings = std::move(agreement.findings());
    outcome.looks = agreement.taken();
    outcome.took = std::chrono::steady_clock::now() - begin;
    TRY(context.release_pause());
    const auto took = outcome.took;
    std::vector<Outcome> outcomes;
    outcomes.push_back(std::move(outcome));
    return report(context, std::move(outcomes), took);
  }

  static Severity severity_named(std::string_view name) {
    for (const Severity severity : {Severity::low, Severity::medium, Severity::high})
      if (lararium::name_of(severity) == name)
        return severity;
    return Severity::critical;
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
      json.list("unseen", outcome.unseen);
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
      for (const std::string &what : outcome.unseen)
        context.note(fmt::format("{} did not see all: {}", outcome.check->name, visible(what)));
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

  bool list_ = false, lies_script_ = false;
  std::vector<std::string> reference_;
  std::optional<std::string> only_, skip_, severity_, lies_, lies_command_, lies_agent_;
};

LARARIUM_COMMAND(CheckCommand, "check", security, vm, "looks for signs of tampering and intrusion")

} // namespace
} // namespace lararium::cli
