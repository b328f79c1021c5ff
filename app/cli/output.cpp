#include "output.h"

#include <cerrno>
#include <cstdlib>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace lararium::cli {
namespace {

constexpr std::string_view reader_message = "the reader of the output went away";

std::string_view environment(const char *name) {
  const char *value = std::getenv(name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

bool locale_is_utf8() {
  // The order in which setlocale(3) looks. Loading the locale itself would cost more than all of our start-up.
  for (const char *name : {"LC_ALL", "LC_CTYPE", "LANG"})
    if (const std::string_view value = environment(name); !value.empty()) {
      const std::size_t dot = value.find('.');
      if (dot == value.npos)
        return false;
      const std::string charset(value.substr(dot + 1, value.find('@', dot) - dot - 1));
      return ::strcasecmp(charset.c_str(), "utf-8") == 0 || ::strcasecmp(charset.c_str(), "utf8") == 0;
    }
  return false;
}

} // namespace

std::string_view escape_of(Style style) {
  switch (style) {
  case Style::plain: return "";
  case Style::bold: return "\x1b[1m";
  case Style::dim: return "\x1b[2m";
  case Style::red: return "\x1b[31m";
  case Style::green: return "\x1b[32m";
  case Style::yellow: return "\x1b[33m";
  case Style::blue: return "\x1b[34m";
  case Style::cyan: return "\x1b[36m";
  }
  return "";
}

void Output::begin(Style style) {
  if (device_.colour)
    buffer_ += escape_of(style);
}

void Output::end(Style style) {
  if (device_.colour && style != Style::plain)
    buffer_ += style_end;
}

void Output::styled(Style style, std::string_view text) {
  begin(style);
  buffer_ += text;
  end(style);
}

Result<void> Output::flush() {
  std::string pending;
  pending.swap(buffer_); // what cannot be written is dropped, so that a second try does not fail on it again
  if (pending.empty())
    return {};
  auto result = sink_(pending);
  pending.clear();
  buffer_.swap(pending); // keeps the capacity
  return result;
}

Output::Sink descriptor_sink(int descriptor) {
  return [descriptor](std::string_view text) -> Result<void> {
    while (!text.empty()) {
      const ssize_t written = ::write(descriptor, text.data(), text.size());
      if (written >= 0)
        text.remove_prefix(static_cast<std::size_t>(written));
      else if (errno == EPIPE)
        return std::unexpected(reader_went_away());
      else if (errno != EINTR)
        return fail_errno("cannot write the output", errno);
    }
    return {};
  };
}

Error reader_went_away() { return {ErrorCode::gone, Space::none, 0, std::string(reader_message)}; }
bool is_reader_went_away(const Error &error) {
  return error.code == ErrorCode::gone && error.message == reader_message;
}

Device describe_device(int descriptor) {
  Device device;
  device.terminal = ::isatty(descriptor) == 1;
  device.utf8 = locale_is_utf8();
  device.colour = device.terminal && environment("NO_COLOR").empty() && environment("TERM") != "dumb";
  if (winsize size{}; device.terminal && ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    device.columns = size.ws_col;
    device.rows = size.ws_row;
  }
  return device;
}

} // namespace lararium::cli
