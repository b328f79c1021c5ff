#include "../context.h"
#include "../table.h"
#include "../text.h"

#include <fmt/format.h>
#include <set>

namespace lararium::cli {
namespace {

void write_interface(JsonWriter &json, const NetworkInterface &interface) {
  json.begin_object()
      .member("index", interface.index)
      .member("name", interface.name)
      .text_or_null("mac", interface.mac)
      .text_or_null("kind", interface.kind)
      .member("net_namespace", interface.net_namespace)
      .member("flags", interface.flags)
      .member("mtu", interface.mtu)
      .member("up", interface.up)
      .member("running", interface.running)
      .member("promiscuous", interface.promiscuous)
      .member("xdp", interface.xdp)
      .text_or_null("master", interface.master);
  json.key("addresses").begin_array();
  for (const InterfaceAddress &address : interface.addresses)
    json.begin_object().member("address", address.address).member("prefix_length", address.prefix_length).end_object();
  json.end_array()
      .member("received_bytes", interface.received_bytes)
      .member("sent_bytes", interface.sent_bytes)
      .member("received_packets", interface.received_packets)
      .member("sent_packets", interface.sent_packets)
      .member("device", interface.device)
      .end_object();
}

class Interfaces final : public Command {
public:
  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    TRY_ASSIGN(const auto view, guest->interfaces());
    TRY(context.release_pause());
    if (context.options.json)
      return context.json_list("interfaces", view.items, &view.status, write_interface);
    std::set<std::uint32_t> namespaces;
    for (const NetworkInterface &interface : view.items)
      namespaces.insert(interface.net_namespace);
    Table table{{"NAME"},
                {"STATE"},
                {"KIND"},
                {"MAC"},
                {"MTU", Align::right},
                {"RECEIVED", Align::right},
                {"SENT", Align::right},
                {"NETNS", Align::right, true},
                {"NOTES", Align::left, true},
                {"ADDRESSES"}};
    for (const NetworkInterface &interface : view.items) {
      table.guest(interface.name, Style::bold);
      table.text(interface.up ? "up" : "down", interface.up ? Style::green : Style::dim);
      table.guest(interface.kind).guest(interface.mac).number(std::uint64_t{interface.mtu});
      table.text(short_bytes(interface.received_bytes)).text(short_bytes(interface.sent_bytes));
      namespaces.size() > 1 ? table.number(std::uint64_t{interface.net_namespace}) : table.text("");
      std::string notes;
      const auto add = [&](std::string_view text) {
        notes += notes.empty() ? "" : ", ";
        notes += visible(text);
      };
      if (interface.promiscuous)
        add("promiscuous");
      if (interface.xdp)
        add("xdp");
      if (!interface.master.empty())
        add("in " + interface.master);
      table.text(notes, interface.promiscuous ? Style::yellow : Style::plain);
      std::string &cell = table.begin_cell();
      for (const InterfaceAddress &address : interface.addresses) {
        cell += &address == &interface.addresses.front() ? "" : " ";
        append_visible(cell, address.address);
        fmt::format_to(std::back_inserter(cell), "/{}", address.prefix_length);
      }
      table.end_cell();
    }
    TRY(table.print(context.out));
    context.notes_of(view.status);
    return {};
  }
};

LARARIUM_COMMAND(Interfaces, "interfaces", network, vm, "network interfaces, their addresses and counters")

} // namespace
} // namespace lararium::cli
