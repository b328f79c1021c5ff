#include "../context.h"
#include "../process_json.h"
#include "../table.h"
#include "../text.h"

#include <algorithm>
#include <unordered_map>

namespace lararium::cli {
namespace {

// What is shown of where each row stands in the tree: "│ ├─ ".
struct TreeRow {
  const Process *process;
  std::string prefix;
};

class Tree {
public:
  Tree(const std::vector<Process> &processes, bool utf8) : utf8_(utf8), children_(processes.size()) {
    std::unordered_map<std::int32_t, std::size_t> by_pid;
    by_pid.reserve(processes.size());
    for (std::size_t i = 0; i < processes.size(); ++i)
      by_pid.try_emplace(processes[i].pid, i);
    std::vector<std::size_t> roots;
    for (std::size_t i = 0; i < processes.size(); ++i) {
      // A thread hangs below its process, a process below its parent.
      const Process &process = processes[i];
      const auto parent = by_pid.find(process.pid == process.tgid ? process.ppid : process.tgid);
      if (parent == by_pid.end() || parent->second == i)
        roots.push_back(i);
      else
        children_[parent->second].push_back(i);
    }
    std::vector<bool> seen(processes.size(), false);
    for (const std::size_t root : roots)
      walk(processes, root, seen);
    // Parents that form a ring (a lie, or a race) hang below nothing: show them all the same.
    for (std::size_t i = 0; i < processes.size(); ++i)
      if (!seen[i])
        walk(processes, i, seen);
  }

  std::vector<TreeRow> rows;

private:
  // Depth is as hostile as everything else: no recursion, and no wider prefix than a screen can use.
  void walk(const std::vector<Process> &processes, std::size_t root, std::vector<bool> &seen) {
    constexpr std::size_t deepest = 64;
    struct Step {
      std::size_t index, depth;
      bool last;
      std::string indent;
    };
    std::vector<Step> stack{{root, 0, true, {}}};
    while (!stack.empty()) {
      const Step step = std::move(stack.back());
      stack.pop_back();
      if (seen[step.index])
        continue;
      seen[step.index] = true;
      std::string prefix = step.indent;
      std::string below = step.indent;
      if (step.depth > 0 && step.depth <= deepest) {
        prefix += step.last ? (utf8_ ? "└─ " : "`- ") : (utf8_ ? "├─ " : "|- ");
        below += step.last ? "   " : (utf8_ ? "│  " : "|  ");
      }
      rows.push_back({&processes[step.index], std::move(prefix)});
      const auto &children = children_[step.index];
      for (std::size_t i = children.size(); i-- > 0;)
        stack.push_back({children[i], step.depth + 1, i + 1 == children.size(), below});
    }
  }

  bool utf8_;
  std::vector<std::vector<std::size_t>> children_;
};

class Ps final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.flag("-t,--tree", "show who started whom", tree_);
    syntax.flag("-T,--threads", "one line for each thread", threads_);
    syntax.flag("-u,--user", "leave out the kernel's own threads", user_only_);
    syntax.flag("-w,--wide", "do not cut lines to the terminal's width", wide_);
    syntax.option("-p,--pid", "PID", "only this process", pid_);
  }

  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    ProcessQuery query;
    query.threads = threads_;
    if (pid_)
      query.only_pids = {*pid_};
    query.current_directory = context.options.json;
    TRY_ASSIGN(auto view, guest->processes(query));
    if (user_only_)
      std::erase_if(view.items, [](const Process &process) { return process.kernel_thread; });
    if (pid_ && view.items.empty())
      return fail(ErrorCode::not_found, "no process has pid " + std::to_string(*pid_));
    TRY(context.release_pause());
    if (context.options.json)
      return context.json_list("ps", view.items, &view.status, write_process);
    TRY(print(context, view.items));
    context.notes_of(view.status);
    return {};
  }

private:
  Result<void> print(Context &context, const std::vector<Process> &processes) {
    Table table = threads_ ? Table{{"TID", Align::right},
                                   {"PID", Align::right},
                                   {"PPID", Align::right},
                                   {"UID", Align::right},
                                   {"S"},
                                   {"START", Align::right, true},
                                   {"CPU", Align::right},
                                   {"RSS", Align::right},
                                   {"TTY", Align::left, true},
                                   {"CONTAINER", Align::left, true, 12},
                                   {"COMMAND"}}
                           : Table{{"PID", Align::right},
                                   {"PPID", Align::right},
                                   {"UID", Align::right},
                                   {"S"},
                                   {"START", Align::right, true},
                                   {"CPU", Align::right},
                                   {"RSS", Align::right},
                                   {"TTY", Align::left, true},
                                   {"CONTAINER", Align::left, true, 12},
                                   {"COMMAND"}};
    std::uint64_t latest = 0;
    for (const Process &process : processes)
      latest = std::max(latest, process.start_time_ns.value_or(0));
    if (tree_) {
      for (const TreeRow &row : Tree(processes, context.out.device().utf8).rows)
        add_row(table, *row.process, latest, row.prefix);
    } else {
      for (const Process &process : processes)
        add_row(table, process, latest, "");
    }
    return table.print(context.out, !wide_);
  }

  void add_row(Table &table, const Process &process, std::uint64_t latest, std::string_view prefix) {
    const Style style = process.kernel_thread ? Style::dim : Style::plain;
    table.number(std::int64_t{process.pid}, style);
    if (threads_)
      table.number(std::int64_t{process.tgid}, style);
    table.number(std::int64_t{process.ppid}, style).number(std::uint64_t{process.uid.effective}, style);
    table.guest({&process.state, 1}, process.state == 'R' ? Style::green : process.state == 'D' ? Style::red : style);
    table.text(process.start_time_ns ? start_time(*process.start_time_ns, latest) : "-", style);
    table.text(cpu_time(process.user_time_ns + process.system_time_ns), style);
    table.text(short_bytes(process.rss_bytes), style);
    table.guest(process.tty, style);
    table.guest(std::string_view(process.container_id).substr(0, 12), Style::cyan);
    std::string &cell = table.begin_cell();
    cell += prefix;
    append_command(cell, process, threads_);
    table.end_cell(process.exe_deleted ? Style::red : style);
  }

  bool tree_ = false, threads_ = false, user_only_ = false, wide_ = false;
  std::optional<std::int32_t> pid_;
};

LARARIUM_COMMAND(Ps, "ps", processes, vm, "processes, as a table or a tree")

} // namespace
} // namespace lararium::cli
