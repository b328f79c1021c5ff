#include "../context.h"

#include "../text.h"

#include <fmt/format.h>

namespace lararium::cli {
namespace {

class Maps final : public Command {
public:
  void describe(Syntax &syntax) override { syntax.argument("PID", "the process", pid_); }

  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    TRY_ASSIGN(const auto view, guest->memory_regions(pid_));
    TRY(context.release_pause());
    if (context.options.json)
      return context.json_list("maps", view.items, &view.status, [](JsonWriter &json, const MemoryRegion &region) {
        json.begin_object()
            .member("begin", region.begin)
            .member("end", region.end)
            .member("size", region.end - region.begin)
            .member("readable", region.readable)
            .member("writable", region.writable)
            .member("executable", region.executable)
            .member("shared", region.shared);
        json.key("file_offset").hex(region.file_offset);
        json.member("device", fmt::format("{}:{}", region.device_major, region.device_minor))
            .member("inode", region.inode)
            .text_or_null("path", region.path)
            .member("deleted", region.deleted)
            .end_object();
      });
    // The format of /proc/PID/maps, so that what reads that reads this.
    for (const MemoryRegion &region : view.items) {
      std::string &out = context.out.buffer();
      const std::size_t begin = out.size();
      const bool suspicious = region.writable && region.executable;
      context.out.begin(suspicious ? Style::red : Style::plain);
      fmt::format_to(std::back_inserter(out), "{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {} ", region.begin.value,
                     region.end.value, region.readable ? 'r' : '-', region.writable ? 'w' : '-',
                     region.executable ? 'x' : '-', region.shared ? 's' : 'p', region.file_offset, region.device_major,
                     region.device_minor, region.inode);
      constexpr std::size_t path_column = 73;
      if (!region.path.empty()) {
        const std::size_t width = out.size() - begin - (suspicious && context.out.device().colour ? 5 : 0);
        out.append(width < path_column ? path_column - width : 0, ' ');
        append_visible(out, region.path);
        if (region.deleted)
          out += " (deleted)";
      }
      context.out.end(suspicious ? Style::red : Style::plain);
      out += '\n';
      TRY(context.out.flush_if_large());
    }
    context.notes_of(view.status);
    return {};
  }

private:
  std::int32_t pid_ = 0;
};

LARARIUM_COMMAND(Maps, "maps", processes, vm, "memory regions of a process, as /proc/PID/maps")

} // namespace
} // namespace lararium::cli
