// Where the program writes: a buffer in front of standard output or standard error, and what is known of the terminal.
#pragma once

#include "lararium/base/result.h"

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace lararium::cli {

enum class Style : std::uint8_t { plain, bold, dim, red, green, yellow, blue, cyan };

struct Device {
  bool terminal = false;
  bool colour = false;
  bool utf8 = true;         // else tables draw with ASCII
  std::size_t columns = 80; // meaningful for a terminal
  std::size_t rows = 24;
};

class Output {
public:
  using Sink = std::function<Result<void>(std::string_view)>;

  Output(Sink sink, Device device) : sink_(std::move(sink)), device_(device) {}

  [[nodiscard]] const Device &device() const { return device_; }
  void set_colour(bool colour) { device_.colour = colour; }

  // Append here. Nothing is written before flush(), or flush_if_large() in long lists.
  [[nodiscard]] std::string &buffer() { return buffer_; }
  void begin(Style style);
  void end(Style style);
  void styled(Style style, std::string_view text);

  [[nodiscard]] Result<void> flush();
  [[nodiscard]] Result<void> flush_if_large() { return buffer_.size() < large ? Result<void>() : flush(); }

private:
  static constexpr std::size_t large = 1 << 18;
  Sink sink_;
  Device device_;
  std::string buffer_;
};

// The escape sequence that begins a style; "" for plain.
[[nodiscard]] std::string_view escape_of(Style style);
inline constexpr std::string_view style_end = "\x1b[0m";

// A sink that writes all to a descriptor. A reader that went away is ErrorCode::gone: reader_went_away().
[[nodiscard]] Output::Sink descriptor_sink(int descriptor);
[[nodiscard]] Error reader_went_away();
[[nodiscard]] bool is_reader_went_away(const Error &error);

enum class ColourChoice : std::uint8_t { automatic, always, never };
// What stands behind a descriptor; honours NO_COLOR, TERM=dumb and the locale's character set.
[[nodiscard]] Device describe_device(int descriptor);

} // namespace lararium::cli
