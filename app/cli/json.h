// Writes JSON straight into a buffer: no document is built, so ten thousand processes cost their bytes and little more.
//
// Guest strings need not be UTF-8. The text is always valid UTF-8 all the same, and nothing is lost: a byte 0xNN that
// is not part of well-formed UTF-8 becomes the private-use character U+10F7NN, and such characters in the original
// become the four of their bytes; see docs/json.md. Characters that a terminal would act on are \u-escaped.
#pragma once

#include "lararium/base/address.h"

#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lararium::cli {

void append_json_string(std::string &out, std::string_view text);

class JsonWriter {
public:
  explicit JsonWriter(std::string &out) : out_(&out) {}

  JsonWriter &begin_object() { return open('{'); }
  JsonWriter &end_object() { return close('}'); }
  JsonWriter &begin_array() { return open('['); }
  JsonWriter &end_array() { return close(']'); }
  // Keys are our own: lower-case ASCII, written as they are.
  JsonWriter &key(std::string_view name) {
    separate();
    *out_ += '"';
    *out_ += name;
    *out_ += "\":";
    after_value_ = false;
    return *this;
  }

  JsonWriter &value(std::string_view text) {
    separate();
    append_json_string(*out_, text);
    return done();
  }
  JsonWriter &value(const char *text) { return value(std::string_view(text)); }
  JsonWriter &value(const std::string &text) { return value(std::string_view(text)); }
  JsonWriter &value(bool truth) { return raw(truth ? "true" : "false"); }
  template <std::integral T>
    requires(!std::same_as<T, bool> && !std::same_as<T, char>)
  JsonWriter &value(T number) {
    if constexpr (std::signed_integral<T>)
      return number < 0 ? negative(number) : unsigned_number(static_cast<std::uint64_t>(number));
    else
      return unsigned_number(number);
  }
  JsonWriter &value(double number);
  JsonWriter &null() { return raw("null"); }
  template <class Tag> JsonWriter &value(Address<Tag> address) { return hex(address.value); }
  JsonWriter &hex(std::uint64_t number); // "0x..." as a string: JSON's numbers lose bits above 2^53
  JsonWriter &time(std::uint64_t nanoseconds);
  template <class T> JsonWriter &value(const std::optional<T> &maybe) { return maybe ? value(*maybe) : null(); }

  template <class T> JsonWriter &member(std::string_view name, const T &content) { return key(name).value(content); }
  // Empty text means "not known" or "none" throughout: null.
  JsonWriter &text_or_null(std::string_view name, std::string_view text) {
    key(name);
    return text.empty() ? null() : value(text);
  }
  template <class List> JsonWriter &list(std::string_view name, const List &items) {
    key(name).begin_array();
    for (const auto &item : items)
      value(item);
    return end_array();
  }

private:
  void separate() {
    if (after_value_)
      *out_ += ',';
  }
  JsonWriter &done() {
    after_value_ = true;
    return *this;
  }
  JsonWriter &raw(std::string_view text) {
    separate();
    *out_ += text;
    return done();
  }
  JsonWriter &open(char bracket) {
    separate();
    *out_ += bracket;
    after_value_ = false;
    return *this;
  }
  JsonWriter &close(char bracket) {
    *out_ += bracket;
    return done();
  }
  JsonWriter &unsigned_number(std::uint64_t number);
  JsonWriter &negative(std::int64_t number);

  std::string *out_;
  bool after_value_ = false;
};

} // namespace lararium::cli
