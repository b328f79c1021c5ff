#include "../context.h"
#include "../owners.h"
#include "../table.h"
#include "../text.h"

namespace lararium::cli {
namespace {

void append_list(std::string &out, const std::vector<std::string> &items) {
  for (const std::string &item : items) {
    out += &item == &items.front() ? "" : ", ";
    append_visible(out, item);
  }
}

void write_bpf(JsonWriter &json, const BpfView &view) {
  for (const BpfProgram &program : view.programs) {
    json.begin_object().member("kind", "program").member("id", program.id).member("type", program.type);
    json.text_or_null("name", program.name);
    json.text_or_null("tag", program.tag);
    json.member("uid", program.uid)
        .member("load_time_ns", program.load_time_ns)
        .member("run_count", program.run_count)
        .member("run_time_ns", program.run_time_ns)
        .member("instructions", program.instructions)
        .member("jited_bytes", program.jited_bytes)
        .list("map_ids", program.map_ids)
        .list("attached_to", program.attached_to)
        .list("pinned", program.pinned);
    write_owners(json, program.owners);
    json.member("program", program.program).end_object();
  }
  for (const BpfMap &map : view.maps) {
    json.begin_object().member("kind", "map").member("id", map.id).member("type", map.type);
    json.text_or_null("name", map.name);
    json.member("key_size", map.key_size)
        .member("value_size", map.value_size)
        .member("max_entries", map.max_entries)
        .member("flags", map.flags);
    write_owners(json, map.owners);
    json.member("map", map.map).end_object();
  }
  for (const BpfLink &link : view.links) {
    json.begin_object().member("kind", "link").member("id", link.id).member("program_id", link.program_id);
    json.member("type", link.type);
    json.text_or_null("target", link.target);
    write_owners(json, link.owners);
    json.member("link", link.link).end_object();
  }
}

class Bpf final : public Command {
public:
  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    TRY_ASSIGN(const BpfView view, guest->bpf());
    TRY(context.release_pause());
    if (context.options.json) {
      JsonWriter json = context.begin_document("bpf", &view.status);
      json.key("items").begin_array();
      write_bpf(json, view);
      json.end_array();
      return context.end_document(json);
    }
    Output &out = context.out;
    out.styled(Style::bold, "Programs");
    out.buffer() += '\n';
    Table programs{{"ID", Align::right},
                   {"TYPE"},
                   {"NAME"},
                   {"TAG"},
                   {"UID", Align::right},
                   {"INSNS", Align::right},
                   {"ATTACHED TO"},
                   {"PINNED", Align::left, true},
                   {"PROCESS"}};
    for (const BpfProgram &program : view.programs) {
      programs.number(std::uint64_t{program.id}).guest(program.type).guest(program.name).guest(program.tag);
      programs.number(std::uint64_t{program.uid}).number(std::uint64_t{program.instructions});
      append_list(programs.begin_cell(), program.attached_to);
      programs.end_cell();
      append_list(programs.begin_cell(), program.pinned);
      programs.end_cell();
      append_owners(programs.begin_cell(), program.owners);
      programs.end_cell();
    }
    TRY(programs.print(out));
    out.buffer() += '\n';
    out.styled(Style::bold, "Maps");
    out.buffer() += '\n';
    Table maps{{"ID", Align::right},      {"TYPE"},   {"NAME"}, {"KEY", Align::right}, {"VALUE", Align::right},
               {"ENTRIES", Align::right}, {"PROCESS"}};
    for (const BpfMap &map : view.maps) {
      maps.number(std::uint64_t{map.id}).guest(map.type).guest(map.name).number(std::uint64_t{map.key_size});
      maps.number(std::uint64_t{map.value_size}).number(std::uint64_t{map.max_entries});
      append_owners(maps.begin_cell(), map.owners);
      maps.end_cell();
    }
    TRY(maps.print(out));
    out.buffer() += '\n';
    out.styled(Style::bold, "Links");
    out.buffer() += '\n';
    Table links{{"ID", Align::right}, {"TYPE"}, {"PROGRAM", Align::right}, {"TARGET"}, {"PROCESS"}};
    for (const BpfLink &link : view.links) {
      links.number(std::uint64_t{link.id}).guest(link.type).number(std::uint64_t{link.program_id}).guest(link.target);
      append_owners(links.begin_cell(), link.owners);
      links.end_cell();
    }
    TRY(links.print(out));
    context.notes_of(view.status);
    return {};
  }
};

LARARIUM_COMMAND(Bpf, "bpf", kernel, vm, "BPF programs, maps and links, and where they are attached")

} // namespace
} // namespace lararium::cli
