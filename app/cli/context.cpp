#include "context.h"

#include "text.h"

#include <chrono>
#include <csignal>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

constexpr int guarded_signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};

sigset_t guarded_set() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : guarded_signals)
    sigaddset(&set, signal);
  return set;
}

double milliseconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

} // namespace

SignalGuard::SignalGuard() {
  const sigset_t set = guarded_set();
  sigset_t before;
  sigprocmask(SIG_BLOCK, &set, &before);
  for (const int signal : guarded_signals)
    if (sigismember(&before, signal) == 1)
      previous_ |= 1UL << static_cast<unsigned>(signal);
}

SignalGuard::~SignalGuard() {
  sigset_t release = guarded_set();
  for (const int signal : guarded_signals)
    if ((previous_ >> static_cast<unsigned>(signal) & 1) != 0)
      sigdelset(&release, signal);
  sigprocmask(SIG_UNBLOCK, &release, nullptr);
}

bool SignalGuard::pending() {
  sigset_t waiting;
  sigpending(&waiting);
  for (const int signal : guarded_signals)
    if (sigismember(&waiting, signal) == 1)
      return true;
  return false;
}

Context::~Context() {
  guest_.reset();
  pause_.reset();
  target_.reset();
}

Result<void> Context::choose_vm() {
  if (!vm_name_.empty())
    return {};
  TRY_ASSIGN(const std::vector<VmListing> vms, host.vms());
  if (vms.empty())
    return fail(ErrorCode::not_found, "no VM runs on this host that you can see; name a dump by its path");
  if (vms.size() > 1) {
    std::string message = fmt::format("{} VMs run on this host, name one:", vms.size());
    constexpr std::size_t shown = 16;
    for (std::size_t i = 0; i < vms.size() && i < shown; ++i)
      message += fmt::format("{} {} (pid {})", i == 0 ? "" : ",", visible(vms[i].identity.name), vms[i].identity.pid);
    if (vms.size() > shown)
      message += ", ...";
    return fail(ErrorCode::ambiguous, message);
  }
  const TargetIdentity &only = vms.front().identity;
  vm_name_ = std::to_string(only.pid);
  note(fmt::format("VM {} (pid {}), the only one that runs here", visible(only.name), only.pid));
  return {};
}

Result<Target *> Context::target() {
  if (target_)
    return &*target_;
  TRY(choose_vm());
  const auto begin = std::chrono::steady_clock::now();
  TRY_ASSIGN(target_, host.open(vm_name_));
  if (!target_->identity.name.empty())
    vm_name_ = target_->identity.name;
  detail(fmt::format("opened in {:.2f} ms: {}, {}", milliseconds_since(begin), target_->identity.memory_access,
                     long_bytes(target_->memory->total_size())));
  for (const std::string &limitation : target_->limitations)
    detail(visible(limitation));
  if (options.pause && target_->identity.kind == TargetKind::live) {
    if (!target_->run_control)
      return fail(ErrorCode::unsupported,
                  "this VM cannot be paused, it has no monitor that answers: leave out --pause");
    guard_.emplace();
    TRY_ASSIGN(auto pause, ScopedPause::take(*target_->run_control));
    pause_.emplace(std::move(pause));
    target_->memory->refresh();
  }
  return &*target_;
}

Result<void> Context::release_pause() {
  if (!pause_)
    return {};
  auto result = pause_->release();
  pause_.reset();
  guard_.reset();
  return result;
}

Result<Guest *> Context::attached_guest() {
  if (guest_)
    return &*guest_;
  TRY_ASSIGN(Target *const opened, target());
  const auto begin = std::chrono::steady_clock::now();
  TRY_ASSIGN(guest_, host.attach(*opened, options.guest));
  detail(fmt::format("attached in {:.2f} ms: kernel found by {}, profile from {}", milliseconds_since(begin),
                     guest_->found_by, guest_->profile_source));
  for (const std::string &text : guest_->notes)
    note(visible(text));
  return &*guest_;
}

Result<OperatingSystem *> Context::guest() {
  TRY_ASSIGN(Guest *const attached, attached_guest());
  return attached->system.get();
}

void Context::note(std::string_view text) {
  err.styled(Style::dim, fmt::format("note: {}", text));
  err.buffer() += '\n';
}

void Context::detail(std::string_view text) {
  if (options.verbose)
    note(text);
}

void Context::notes_of(const ViewStatus &status) {
  if (options.json)
    return;
  if (status.raced)
    note(fmt::format(
        "the guest changed while it was read: entries may be missing, double or stale{}; --pause gives "
        "one moment",
        status.retries == 0 ? "" : fmt::format(" ({} {})", status.retries, status.retries == 1 ? "retry" : "retries")));
  else if (status.retries > 0)
    detail(fmt::format("the guest changed while it was read; it was read again ({} times) and then stood still",
                       status.retries));
  if (status.truncated)
    note("a limit was reached: there may be more than is shown");
  for (const std::string &warning : status.warnings)
    note(visible(warning));
}

JsonWriter Context::begin_document(std::string_view view, const ViewStatus *status) {
  JsonWriter json(out.buffer());
  json.begin_object();
  if (target_) {
    json.key("vm");
    write_identity(json, target_->identity);
  }
  json.member("view", view);
  if (status != nullptr) {
    json.key("status");
    ViewStatus all = *status;
    if (guest_) // what went wrong when the kernel was found concerns each view
      for (const std::string &text : guest_->notes)
        all.warn(text);
    write_status(json, all, paused());
  }
  return json;
}

Result<void> Context::end_document(JsonWriter &json) {
  json.end_object();
  out.buffer() += '\n';
  return out.flush();
}

void write_identity(JsonWriter &json, const TargetIdentity &identity) {
  constexpr std::string_view architectures[] = {"x86_64", "aarch64", "other"};
  json.begin_object();
  json.member("kind", identity.kind == TargetKind::live ? "live" : "dump").member("name", identity.name);
  json.text_or_null("uuid", identity.uuid);
  json.key("pid");
  identity.pid > 0 ? json.value(identity.pid) : json.null();
  json.member("architecture", architectures[static_cast<std::size_t>(identity.architecture)]);
  json.text_or_null("accelerator", identity.accelerator);
  json.text_or_null("memory_access", identity.memory_access);
  json.end_object();
}

void write_status(JsonWriter &json, const ViewStatus &status, bool paused) {
  json.begin_object()
      .member("paused", paused || status.paused)
      .member("raced", status.raced)
      .member("truncated", status.truncated)
      .member("retries", status.retries)
      .list("warnings", status.warnings)
      .end_object();
}

std::string_view name_of(RunState state) {
  switch (state) {
  case RunState::running: return "running";
  case RunState::paused: return "paused";
  case RunState::shut_down: return "shut down";
  case RunState::migrating: return "migrating";
  case RunState::crashed: return "crashed";
  case RunState::unknown: return "unknown";
  }
  return "unknown";
}

} // namespace lararium::cli
