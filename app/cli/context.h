// What a command works with: the target it was given, the global options, and where it writes.
#pragma once

#include "command.h"
#include "json.h"
#include "output.h"
#include "session.h"

#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace lararium::cli {

struct GlobalOptions {
  bool json = false;
  bool pause = false;
  bool verbose = false;
  GuestOptions guest;
  bool no_cache = false;
  std::string colour = "auto";
};

// Keeps the signals that end a program waiting while something must be put right first: a paused guest, a terminal in
// raw mode, half a file. They are delivered when the guard goes, so that the program still ends by its signal.
class SignalGuard {
public:
  SignalGuard();
  SignalGuard(const SignalGuard &) = delete;
  SignalGuard &operator=(const SignalGuard &) = delete;
  ~SignalGuard();
  [[nodiscard]] static bool pending();

private:
  unsigned long previous_ = 0;
};

class Context {
public:
  Context(Host &machine, Output &output, Output &errors, GlobalOptions chosen, std::string vm_name)
      : out(output), err(errors), options(std::move(chosen)), host(machine), vm_name_(std::move(vm_name)) {}
  Context(const Context &) = delete;
  Context &operator=(const Context &) = delete;
  ~Context();

  Output &out;
  Output &err;
  const GlobalOptions options;
  Host &host;
  int exit_code = 0; // of a run without errors: what a command found may be worth another than 0

  // The VM or dump that the user named, or the only one that runs. Opened at the first call, paused if asked.
  [[nodiscard]] Result<Target *> target();
  // Its operating system; attached at the first call.
  [[nodiscard]] Result<OperatingSystem *> guest();
  [[nodiscard]] Result<Guest *> attached_guest();
  // A live VM that was opened and has ended since.
  [[nodiscard]] bool target_is_gone() const { return target_ && target_->liveness && !target_->liveness->alive(); }
  [[nodiscard]] bool paused() const { return pause_.has_value(); }
  // Lets a paused guest go on before what is left to do here.
  [[nodiscard]] Result<void> release_pause();
  // What the user, or we for them, called the target; empty before there is one.
  [[nodiscard]] const std::string &vm_name() const { return vm_name_; }

  // A dim line on standard error: "note: ...".
  void note(std::string_view text);
  // The same, only with --verbose.
  void detail(std::string_view text);
  // What a reader must know of how far a view can be trusted. Not with --json, which carries the status itself.
  void notes_of(const ViewStatus &status);

  // {"vm": {...}, "view": NAME, "status": {...}, and then the caller's key.
  [[nodiscard]] JsonWriter begin_document(std::string_view view, const ViewStatus *status);
  [[nodiscard]] Result<void> end_document(JsonWriter &json);

  // The whole JSON document of a view that is a list.
  template <class Item, class Write>
  [[nodiscard]] Result<void> json_list(std::string_view view, const std::vector<Item> &items, const ViewStatus *status,
                                       Write &&write) {
    JsonWriter json = begin_document(view, status);
    json.key("items").begin_array();
    for (const Item &item : items) {
      write(json, item);
      TRY(out.flush_if_large()); // all that can fail has been done: what is written stays a document
    }
    json.end_array();
    return end_document(json);
  }

private:
  [[nodiscard]] Result<void> choose_vm();

  std::string vm_name_;
  std::optional<SignalGuard> guard_; // outlives the pause
  std::optional<Target> target_;
  std::optional<ScopedPause> pause_;
  std::optional<Guest> guest_;
};

void write_identity(JsonWriter &json, const TargetIdentity &identity);
void write_status(JsonWriter &json, const ViewStatus &status, bool paused);
[[nodiscard]] std::string_view name_of(RunState state);

} // namespace lararium::cli
