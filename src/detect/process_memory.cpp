// What processes execute that no file stands behind: programs that were deleted or never had a name, code in memory
// that can be written, program text that is not what the file has, and a main image that is another's.

#include "lararium/detect/check.h"
#include "lararium/os/linux/program_memory.h"
#include "process_finding.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <map>
#include <set>

namespace lararium::detect {
namespace {

using linux_guest::ExecutableArea;
using linux_guest::Program;
using linux_guest::ProgramMemory;
using linux_guest::TextComparison;

// What writes code while it runs, by the name of the program or of a library that it has mapped. A name proves nothing:
// it tells which of many findings to look at last.
constexpr std::array code_generators = {
    "java",     "libjvm.so",  "node",    "libnode.so",  "libv8",     "libmozjs",       "libjavascriptcoregtk",
    "chrome",   "chromium",   "firefox", "libpcre",     "libluajit", "luajit",         "libffi.so",
    "libmono",  "libcoreclr", "dotnet",  "libclrjit",   "libLLVM",   "libruby",        "php",
    "libphp",   "opcache.so", "pypy",    "qemu-system", "qemu-",     "wine",           "libgccjit",
    "postgres", "beam.smp",   "julia",   "libjulia",    "valgrind",  "libwasmtime.so", "erl"};

std::string generator_in(std::string_view path) {
  const std::string_view name = file_name(path);
  const auto found = std::ranges::find_if(code_generators, [&](const char *each) { return name.starts_with(each); });
  return found == code_generators.end() ? std::string() : std::string(name);
}

class ProcessMemory final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    TRY_ASSIGN(const auto memory, ProgramMemory::create(scene.kernel()));
    Look look{scene, memory, findings, scene.kernel().types().field("task_struct", "ptrace"), {}};
    std::set<Gva> seen; // memory that processes share, as after vfork()
    for (const Process &process : scene.processes())
      if (process.memory && !process.kernel_thread && seen.insert(process.memory).second)
        if (const auto program = memory.program(process.memory))
          look.at(process, *program);
    look.report_generators();
    if (memory.exhausted())
      findings.add({.subject = "memory of processes",
                    .severity = Severity::medium,
                    .technique = "T1014",
                    .sentence = "the memory areas and page tables of the guest's processes are more than there can be: "
                                "not all were looked at"});
    return {};
  }

private:
  struct Generator { // a program known to write code, in all its processes
    Process first;
    std::string hint;
    std::uint64_t processes = 0, resident = 0;
    Gva address;
  };

  struct Look {
    const Scene &scene;
    const ProgramMemory &memory;
    Findings &findings;
    std::optional<FieldLocation> traced_member;
    std::map<std::string, Generator> generators; // by path

    void at(const Process &process, const Program &program) {
      look_at_executable(process, program);
      look_at_main_image(process, program);
      look_at_text(process, program);
      look_at_writable_code(process, program);
    }

    Finding &add(const Process &process, std::string_view subject, Severity severity, const char *technique,
                 std::string_view what) const {
      return add_finding(scene, findings, process, subject, severity, technique, what);
    }

    void look_at_executable(const Process &process, const Program &program) const {
      if (!process.exe_deleted)
        return;
      if (process.exe.starts_with("/memfd:")) {
        add(process, "memfd executable", Severity::high, "T1620",
            fmt::format("runs a program that never was in a file system: {}", process.exe))
            .with("path", process.exe);
      } else if (memory.was_replaced(program)) {
        add(process, "replaced executable", Severity::low, "T1070.004",
            fmt::format("runs a deleted program, and another file is {} now, as after an upgrade", process.exe))
            .with("path", process.exe);
      } else {
        add(process, "deleted executable", Severity::medium, "T1070.004",
            fmt::format("runs a program that was deleted: {}", process.exe))
            .with("path", process.exe);
      }
    }

    void look_at_main_image(const Process &process, const Program &program) const {
      if (!program.entry || !program.dentry || program.raced)
        return;
      const auto area = std::ranges::find_if(program.areas, [&](const ExecutableArea &each) {
        return program.entry >= each.begin && program.entry < each.end;
      });
      const bool is_found = area != program.areas.end();
      if (is_found && area->dentry == program.dentry)
        return;
      // Where neither memory nor file can be read (swapped out, evicted), nothing is known of a program that moved
      // itself.
      if (memory.entry_is_of_file(program).value_or(is_found))
        return;
      std::string instead = "no code";
      if (is_found) {
        const auto region = memory.describe(program, *area);
        if (!region)
          return; // another area by now
        instead = !area->file ? "memory of no file" : region->path;
      }
      add(process, "main image", Severity::high, "T1055.012",
          fmt::format("does not run what it says it runs: where {} should begin, there is {}", process.exe, instead))
          .with("address", program.entry)
          .with("expected", process.exe)
          .with("found", instead);
    }

    void look_at_text(const Process &process, const Program &program) const {
      for (const ExecutableArea &area : program.areas) {
        // A segment that is code and data at once changes lawfully.
        if (!area.file || area.shared || area.writable)
          continue;
        const TextComparison text = memory.compare(program, area);
        if (text.different == 0)
          continue;
        const auto region = memory.describe(program, area);
        if (!region)
          continue;
        const bool is_debugged =
            traced_member && scene.kernel().read_field(process.task, *traced_member).value_or(0) != 0 &&
            std::ranges::all_of(text.differences, [](const auto &each) { return each.only_breakpoints; });
        const auto &first = text.differences.front();
        const std::string place = fmt::format("{} at {:#x}", region->path, first.file_offset);
        add(process, fmt::format("text of {}", region->path), is_debugged ? Severity::low : Severity::high, "T1055",
            is_debugged ? fmt::format("holds a debugger's breakpoints in {}", place)
                        : fmt::format("executes code that differs from its file, in {}", place))
            .with("path", region->path)
            .with("address", first.address)
            .with("file_offset", first.file_offset)
            .with("expected_bytes", std::vector(first.expected.begin(), first.expected.begin() + first.shown))
            .with("found_bytes", std::vector(first.found.begin(), first.found.begin() + first.shown))
            .with("changed_bytes", std::uint64_t{first.bytes})
            .with("changed_pages", text.different);
      }
    }

    void look_at_writable_code(const Process &process, const Program &program) {
      std::uint64_t resident = 0, areas = 0;
      Gva first;
      std::array<std::byte, 16> bytes{};
      bool is_image = false, is_only_stack = true;
      for (const ExecutableArea &area : program.areas) {
        // Of files, only those without a name: others are program segments that are code and data at once.
        if (!area.writable || (area.file && !area.unlinked))
          continue;
        const auto sample = memory.sample(program, area);
        if (!sample.address)
          continue;
        const auto region = memory.describe(program, area);
        if (!region)
          continue;
        is_only_stack &= region->path == "[stack]";
        is_image |= sample.is_image;
        resident += sample.resident;
        ++areas;
        if (!first) {
          first = sample.address;
          bytes = sample.bytes;
        }
      }
      if (areas == 0)
        return;
      std::string hint = generator_in(process.exe);
      for (auto area = program.areas.begin(); hint.empty() && area != program.areas.end(); ++area)
        if (area->file && !area->unlinked && !area->writable)
          if (const auto region = memory.describe(program, *area))
            hint = generator_in(region->path);
      if (!hint.empty() && !is_image) {
        Generator &generator = generators[process.exe];
        if (generator.processes++ == 0) {
          generator.first = process;
          generator.hint = std::move(hint);
          generator.address = first;
        }
        generator.resident += resident;
        return;
      }
      const std::string what = is_image        ? "holds a whole program in memory that is writable and executable"
                               : is_only_stack ? "has an executable stack"
                                               : "has code in memory that is writable and executable";
      add(process, "writable code",
          is_image        ? Severity::high
          : is_only_stack ? Severity::low
                          : Severity::medium,
          is_image ? "T1620" : "T1055", what)
          .with("address", first)
          .with("found_bytes", std::vector(bytes.begin(), bytes.end()))
          .with("areas", areas)
          .with("resident_bytes", resident);
    }

    void report_generators() const {
      for (const auto &[path, generator] : generators) {
        Finding &finding = findings.add(
            {.subject = fmt::format("writable code of {}", path),
             .severity = Severity::low,
             .technique = "T1055",
             .sentence = fmt::format("process {} ({}) has code in memory that is writable and executable, as programs "
                                     "with {} do",
                                     generator.first.tgid, generator.first.comm, generator.hint)});
        finding.process = scene.actor(generator.first);
        finding.with("address", generator.address)
            .with("processes", generator.processes)
            .with("resident_bytes", generator.resident)
            .with("code_generator", generator.hint);
      }
    }
  };
};

LARARIUM_CHECK(
    ProcessMemory, "process_memory", "T1055 T1055.012 T1620 T1070.004", "processes that run what no file stands behind",
    "Looks at the executable areas of every process. Reports a program that was deleted (low where another file has "
    "its "
    "name now, as after an upgrade) or that lies in a memfd; anonymous memory that is writable, executable and in use "
    "(low in programs known to compile while they run, all processes of one program in one finding); pages of program "
    "text and libraries that differ from the file's pages in the page cache (the kernel's own uprobes are known; a "
    "debugger's breakpoints are low); and a main image that is not the program's: its entry point lies in memory of "
    "another file or of none, with other code than the file has. Cannot see: a file that was changed itself, pages "
    "that "
    "were swapped out or whose file was evicted, and code that was made unwritable after it was written. 32-bit "
    "libraries with relocations in their text are reported as changed.")

} // namespace
} // namespace lararium::detect
