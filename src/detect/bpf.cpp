// BPF programs that do what rootkits want of them, and programs and links that nobody has or that hide.
//
// What a program does is read from its machine code, which is what runs: the verifier leaves no list of the helpers
// that it let through. A security tool may do the same things lawfully; a finding names who has the program.

#include "decode.h"
#include "lararium/detect/check.h"
#include "lararium/os/linux/list.h"

#include <algorithm>
#include <fmt/format.h>
#include <map>
#include <set>
#include <unordered_set>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using Field = std::optional<FieldLocation>;

constexpr std::uint64_t program_limit = 1 << 20; // bytes of machine code of one function
constexpr std::uint64_t code_budget = 32 << 20;  // of all functions in one look
constexpr std::uint64_t function_limit =
    1024; // of one program; the kernel's own limit is 256, and 257 with the main one
constexpr std::size_t symbol_limit = 1 << 18;
constexpr std::size_t instruction_size = 8, instruction_limit = 1 << 17;

struct Layout {
  FieldLocation aux, code, code_length, length, instructions, id;
  Field jited, override_return, attach_type, functions, function_count, function_name, references, aux_program, symbol,
      symbol_node, symbol_is_program, offloaded, device_bound;

  static Result<Layout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    Layout f;
    f.aux = layout.require("bpf_prog", "aux");
    f.code = layout.require("bpf_prog", "bpf_func");
    f.code_length = layout.require("bpf_prog", "jited_len");
    f.length = layout.require("bpf_prog", "len");
    f.instructions = layout.require("bpf_prog", "insnsi");
    f.id = layout.require("bpf_prog_aux", "id");
    f.jited = layout.optional("bpf_prog", "jited");
    f.override_return = layout.optional("bpf_prog", "kprobe_override"); // 4.16, 9802d86585db
    f.attach_type = layout.optional("bpf_prog", "expected_attach_type");
    f.functions = layout.optional("bpf_prog_aux", "func");
    f.function_count = layout.optional("bpf_prog_aux", "func_cnt");
    f.function_name = layout.optional("bpf_prog_aux", "attach_func_name");
    f.references = layout.optional("bpf_prog_aux", "refcnt"); // moved here in 4.15 as atomic_t
    f.aux_program = layout.optional("bpf_prog_aux", "prog");
    f.symbol = layout.optional("bpf_prog_aux", "ksym"); // 5.8, bfea9a8574f3
    f.symbol_node = layout.optional("bpf_ksym", "lnode");
    f.symbol_is_program = layout.optional("bpf_ksym", "prog");
    f.offloaded = layout.optional("bpf_prog_aux", "offload_requested");
    f.device_bound = layout.optional("bpf_prog_aux", "dev_bound"); // 6.3, 2b3486bc2d23
    TRY(layout.check());
    return f;
  }
};

// What a program calls that matters here.
struct Uses {
  bool writes_user = false, reads_user = false, overrides = false;
};

class Bpf final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    if (!kernel.symbol("prog_idr"))
      return {}; // this kernel has no BPF system call, and nothing of the kind
    TRY_ASSIGN(const Layout *layout, kernel.layout<Layout>());
    TRY_ASSIGN(const BpfView view, scene.system().bpf());
    Look(scene, *layout, view, findings).report();
    return {};
  }

private:
  class Look {
  public:
    Look(const Scene &scene, const Layout &layout, const BpfView &view, Findings &findings)
        : scene_(scene), kernel_(scene.kernel()), f_(layout), view_(view), findings_(findings) {
      const auto helper = [&](const char *name, int what) {
        if (const auto address = kernel_.symbol(name))
          helpers_.emplace(*address, what);
      };
      helper("bpf_probe_write_user", writes_user);
      for (const char *name : {"bpf_probe_read_user", "bpf_probe_read_user_str", "bpf_copy_from_user",
                               "bpf_copy_from_user_task", "bpf_probe_read_compat", "bpf_probe_read_compat_str"})
        helper(name, reads_user);
      helper("bpf_override_return", overrides);
      call_base_ = kernel_.symbol("__bpf_call_base");
      // Owners are told apart from none only where all descriptors could be read.
      owners_known_ = !view.status.truncated;
    }

    void report() {
      std::multimap<std::uint32_t, const BpfLink *> links;
      for (const BpfLink &link : view_.links) {
        links.emplace(link.program_id, &link);
        report_link(link);
      }
      for (const BpfMap &map : view_.maps)
        if (!map.listed && map.id != 0)
          add(fmt::format("map {}", map.id), Severity::critical, "T1014",
              fmt::format("BPF map {} ({}, {}) is in use and not in the kernel's table of maps: it is hidden", map.id,
                          map.name, map.type),
              map.owners)
              .with("address", map.map);
      for (const BpfProgram &program : view_.programs) {
        const auto [from, to] = links.equal_range(program.id);
        std::vector<SocketOwner> owners = program.owners;
        bool pinned = !program.pinned.empty();
        for (auto link = from; program.id != 0 && link != to; ++link) {
          owners.insert(owners.end(), link->second->owners.begin(), link->second->owners.end());
          pinned |= !link->second->pinned.empty();
        }
        report_program(program, owners, pinned);
      }
      report_unlisted_code();
      if (budget_ == 0)
        add("code", Severity::medium, "T1014", "BPF programs claim more machine code than can be looked at", {});
    }

  private:
    enum : int { writes_user, reads_user, overrides };

    Finding &add(std::string subject, Severity severity, const char *technique, std::string sentence,
                 const std::vector<SocketOwner> &owners) {
      if (findings_.is_full()) {
        findings_.leave_out();
        left_out_ = {};
        return left_out_;
      }
      if (owners_known_ && !owners.empty())
        sentence += fmt::format("; process {} ({}) has it", owners.front().pid, owners.front().comm);
      Finding &finding = findings_.add({.subject = "BPF " + std::move(subject),
                                        .severity = severity,
                                        .technique = technique,
                                        .sentence = std::move(sentence)});
      if (!owners.empty())
        for (const Process &process : scene_.processes())
          if (process.tgid == owners.front().pid)
            finding.process = scene_.actor(process);
      return finding;
    }

    static std::string title_of(const BpfProgram &program) {
      std::string where;
      for (std::size_t i = 0; i < std::min<std::size_t>(program.attached_to.size(), 3); ++i)
        where += (i == 0 ? " at " : ", ") + program.attached_to[i];
      return fmt::format("BPF program {} ({}, {}){}", program.id, program.name, program.type, where);
    }

    void report_link(const BpfLink &link) {
      const std::string title =
          fmt::format("BPF link {} ({}{}{})", link.id, link.type, link.target.empty() ? "" : ", ", link.target);
      if (!link.listed && link.id != 0)
        add(fmt::format("link {}", link.id), Severity::critical, "T1014",
            title + " is in use and not in the kernel's table of links: it is hidden", link.owners)
            .with("address", link.link);
      // It lives as long as somebody holds it: by a descriptor, a file in a bpf file system, or, where neither is to be
      // seen, a message that waits in a socket.
      else if (link.listed && owners_known_ && link.owners.empty() && link.pinned.empty())
        add(fmt::format("link {} held", link.id), Severity::high, "T1014",
            title + " is alive, though no process has it and no file: it hides from those who look for its owner", {})
            .with("address", link.link)
            .with("program", std::uint64_t{link.program_id});
    }

    void report_program(const BpfProgram &program, const std::vector<SocketOwner> &owners, bool pinned) {
      const std::string title = title_of(program);
      const auto about = [&](std::string_view kind, Severity severity, const char *technique, std::string sentence) {
        add(fmt::format("program {} {}", program.id != 0 ? std::to_string(program.id) : program.tag, kind), severity,
            technique, title + " " + sentence, owners)
            .with("address", program.program)
            .with("program", std::uint64_t{program.id})
            .with("tag", program.tag)
            .with("type", program.type);
      };
      const Gva aux = kernel_.read_pointer(program.program, f_.aux).value_or(Gva{});
      if (!kernel_.is_kernel_address(aux))
        return;
      if (!program.listed && is_alive(aux) && (program.id != 0 || !is_offloaded(aux)))
        about("hidden", Severity::critical, "T1014",
              "is in use and not in the kernel's table of programs: it is hidden");

      const Uses uses = uses_of(program.program, aux);
      const bool alone = owners_known_ && owners.empty() && !pinned;
      const bool at_folders = std::ranges::any_of(program.attached_to, [](const std::string &place) {
        return place.find("getdents") != place.npos || place.find("filldir") != place.npos ||
               place.find("iterate_dir") != place.npos;
      });
      if (uses.writes_user)
        about("writes", at_folders ? Severity::critical : Severity::high, at_folders ? "T1564.001" : "T1014",
              at_folders ? "writes to the memory of programs that list folders: so files and processes are hidden"
                         : "writes to the memory of programs");
      const bool may_override =
          f_.override_return && kernel_.read_field(program.program, *f_.override_return).value_or(0) != 0;
      if (uses.overrides || may_override)
        about("overrides", Severity::high, "T1014", "decides what functions of the kernel return");
      if (const std::string function = modified_function(program, aux); !function.empty())
        about("modifies", Severity::high, "T1014", fmt::format("decides what {} returns", function));
      if (uses.reads_user && alone)
        about("reads", Severity::medium, "T1056", "reads the memory of programs, and nobody has it");
      if (program.attached_to.empty() || !owners_known_ || !owners.empty())
        return;
      if (program.type == "lsm")
        about("alone", pinned ? Severity::medium : Severity::high, "T1562.001",
              "decides what the system allows, and no process has it");
      else if (program.type == "xdp" && !pinned)
        about("alone", Severity::medium, "T1205", "sees and changes packets before all else, and no process has it");
    }

    // A program of this kind is called in place of the function that it is attached to. The kernel's own for input
    // devices is one (6.3 to 6.10, __hid_bpf_tail_call).
    [[nodiscard]] std::string modified_function(const BpfProgram &program, Gva aux) const {
      const auto modifies = kernel_.types().enumerator("BPF_MODIFY_RETURN");
      if (program.type != "tracing" || !modifies || !f_.attach_type || !f_.function_name ||
          kernel_.read_field(program.program, *f_.attach_type) != static_cast<std::uint64_t>(*modifies))
        return {};
      const auto text = kernel_.read_pointer(aux, *f_.function_name);
      std::string name = text && *text ? kernel_.space().read_c_string(*text, 128).value_or("?") : "?";
      return name.starts_with("__hid_bpf_") ? std::string() : name;
    }

    [[nodiscard]] bool is_alive(Gva aux) const {
      return !f_.references || kernel_.read_field(aux, *f_.references).value_or(0) != 0;
    }
    // Programs of a device that is gone lose their number.
    [[nodiscard]] bool is_offloaded(Gva aux) const {
      for (const Field *field : {&f_.offloaded, &f_.device_bound})
        if (*field && kernel_.read_field(aux, **field).value_or(0) != 0)
          return true;
      return false;
    }

    Uses uses_of(Gva program, Gva aux) {
      Uses uses;
      see_code(program, uses);
      for_each_function(aux, [&](Gva function) { see_code(function, uses); });
      return uses;
    }

    template <class Visit> void for_each_function(Gva aux, Visit &&visit) const {
      if (!f_.functions || !f_.function_count)
        return;
      const auto table = kernel_.read_pointer(aux, *f_.functions);
      const auto count = std::min(kernel_.read_field(aux, *f_.function_count).value_or(0), function_limit);
      if (table && kernel_.is_kernel_address(*table))
        for (std::uint64_t i = 0; i < count; ++i)
          if (const auto function = kernel_.read_pointer(*table + 8 * i);
              function && kernel_.is_kernel_address(*function))
            visit(*function);
    }

    void note(Gva target, Uses &uses) const {
      const auto helper = helpers_.find(target);
      if (helper == helpers_.end())
        return;
      uses.writes_user |= helper->second == writes_user;
      uses.reads_user |= helper->second == reads_user;
      uses.overrides |= helper->second == overrides;
    }

    void see_code(Gva program, Uses &uses) {
      if (!seen_.insert(program).second)
        return;
      const bool jited = !f_.jited || kernel_.read_field(program, *f_.jited).value_or(0) != 0;
      const auto begin = kernel_.read_pointer(program, f_.code);
      const std::uint64_t size =
          jited ? std::min({kernel_.read_field(program, f_.code_length).value_or(0), program_limit, budget_}) : 0;
      if (begin && size != 0) {
        budget_ -= size;
        std::vector<std::byte> code(size);
        code.resize(kernel_.space().read_prefix(*begin, code));
        for (std::size_t at = 0; at < code.size();) {
          const auto instruction = decoder_.decode(Bytes(code).subspan(at), *begin + at);
          if (instruction && instruction->target && (instruction->is_call || instruction->is_jump))
            note(*instruction->target, uses);
          at += instruction ? instruction->length : 1;
        }
        return;
      }
      // What the interpreter runs: calls hold the distance of the helper from a fixed place.
      const std::uint64_t count = std::min({kernel_.read_field(program, f_.length).value_or(0),
                                            std::uint64_t{instruction_limit}, budget_ / instruction_size});
      budget_ -= count * instruction_size;
      std::vector<std::byte> code(count * instruction_size);
      code.resize(kernel_.space().read_prefix(program + f_.instructions.offset, code));
      for (std::size_t at = 0; call_base_ && at + instruction_size <= code.size(); at += instruction_size) {
        constexpr std::byte call{0x85}; // BPF_JMP | BPF_CALL; the upper half of the next byte 0: a helper
        if (code[at] != call || (code[at + 1] >> 4) != std::byte{0})
          continue;
        std::int32_t distance = 0;
        std::memcpy(&distance, &code[at + 4], sizeof distance);
        note(*call_base_ + static_cast<std::uint64_t>(std::int64_t{distance}), uses);
      }
    }

    // The machine code that the kernel knows to be a program's: each must be of a program in the table, or of one of
    // its functions.
    void report_unlisted_code() {
      const auto list = kernel_.symbol("bpf_kallsyms");
      if (!list || !f_.symbol || !f_.symbol_node || !f_.symbol_is_program || !f_.aux_program)
        return;
      std::unordered_set<Gva> known;
      for (const BpfProgram &program : view_.programs) {
        known.insert(program.program); // what is not listed of these was told already
        if (const auto aux = kernel_.read_pointer(program.program, f_.aux); aux && kernel_.is_kernel_address(*aux))
          for_each_function(*aux, [&](Gva function) {
            if (known.size() < symbol_limit)
              known.insert(function);
          });
      }
      linux_guest::walk_list(kernel_, *list, symbol_limit, [&](Gva node) {
        const Gva symbol = node - f_.symbol_node->offset;
        if (kernel_.read_field(symbol, *f_.symbol_is_program).value_or(0) == 0)
          return true;
        const Gva aux = symbol - f_.symbol->offset;
        const auto program = kernel_.read_pointer(aux, *f_.aux_program);
        if (!program || !kernel_.is_kernel_address(*program) || known.contains(*program) || !is_alive(aux) ||
            is_offloaded(aux))
          return true;
        // A function of a program in the table names that program's aux, or its own; and it has no number.
        const auto id = kernel_.read_field(aux, f_.id).value_or(0);
        const auto code = kernel_.read_pointer(*program, f_.code).value_or(Gva{});
        const CodeRange *range = scene_.code().find(code);
        const std::string name = range != nullptr ? range->name : fmt::format("{:#x}", code.value);
        Finding &finding = add(fmt::format("code {:#x}", program->value), Severity::critical, "T1014",
                               fmt::format("the BPF program {} has machine code and is not in the kernel's table of "
                                           "programs: it is hidden",
                                           name),
                               {});
        finding.with("address", *program).with("program", id).with("found", code);
        return true;
      });
    }

    const Scene &scene_;
    const Kernel &kernel_;
    const Layout &f_;
    const BpfView &view_;
    Findings &findings_;
    Decoder decoder_;
    std::map<Gva, int> helpers_;
    std::optional<Gva> call_base_;
    std::unordered_set<Gva> seen_;
    std::uint64_t budget_ = code_budget;
    bool owners_known_ = false;
    Finding left_out_;
  };
};

LARARIUM_CHECK(
    Bpf, "bpf", "T1014 T1564.001 T1562.001", "BPF programs that rootkits use, that hide, or that nobody has",
    "Programs that write to user memory (bpf_probe_write_user), that decide what functions of the kernel return "
    "(bpf_override_return, fmod_ret), LSM and XDP programs and links that no process holds and no file pins, and "
    "programs, maps and links that are in use but not in the kernel's tables. What a program calls is read from its "
    "machine code. Security tools do some of it lawfully: the finding names the process that has the program, and you "
    "can --skip the check.")

} // namespace
} // namespace lararium::detect
