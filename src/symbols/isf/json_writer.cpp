#include "json_writer.h"

#include <charconv>

namespace lararium::isf {
namespace {

constexpr std::size_t piece_size = 1U << 16;

template <class Number> void append_number(std::string &buffer, Number number) {
  char digits[24];
  const auto end = std::to_chars(digits, digits + sizeof digits, number).ptr;
  buffer.append(digits, end);
}

} // namespace

void JsonWriter::separate() {
  if (!after_key_ && !first_)
    buffer_ += ',';
  first_ = false;
  after_key_ = false;
}

// Names come from guests: what is not printable ASCII is escaped, bytes above it as if they were Latin-1.
void JsonWriter::quote(std::string_view text) {
  constexpr char hex[] = "0123456789abcdef";
  buffer_ += '"';
  for (const char character : text) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte == '"' || byte == '\\') {
      buffer_ += '\\';
      buffer_ += character;
    } else if (byte < 0x20 || byte >= 0x7f) {
      buffer_ += "\\u00";
      buffer_ += hex[byte >> 4];
      buffer_ += hex[byte & 15];
    } else {
      buffer_ += character;
    }
  }
  buffer_ += '"';
}

void JsonWriter::flush_if_full() {
  if (buffer_.size() < piece_size)
    return;
  if (state_)
    state_ = sink_(buffer_);
  buffer_.clear();
}

JsonWriter &JsonWriter::begin_object() {
  separate();
  buffer_ += '{';
  first_ = true;
  return *this;
}

JsonWriter &JsonWriter::end_object() {
  buffer_ += '}';
  first_ = false;
  flush_if_full();
  return *this;
}

JsonWriter &JsonWriter::key(std::string_view name) {
  separate();
  quote(name);
  buffer_ += ':';
  after_key_ = true;
  return *this;
}

JsonWriter &JsonWriter::value(std::string_view text) {
  separate();
  quote(text);
  return *this;
}

JsonWriter &JsonWriter::number(std::uint64_t number) {
  separate();
  append_number(buffer_, number);
  return *this;
}

JsonWriter &JsonWriter::number_signed(std::int64_t number) {
  separate();
  append_number(buffer_, number);
  return *this;
}

JsonWriter &JsonWriter::boolean(bool truth) {
  separate();
  buffer_ += truth ? "true" : "false";
  return *this;
}

Result<void> JsonWriter::finish() {
  if (state_ && !buffer_.empty())
    state_ = sink_(buffer_);
  buffer_.clear();
  return std::move(state_);
}

} // namespace lararium::isf
