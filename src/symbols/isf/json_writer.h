// Writes JSON piece by piece, so that a file of 100 MiB needs no more memory than one of 100 bytes.
#pragma once

#include "lararium/symbols/isf.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace lararium::isf {

class JsonWriter {
public:
  explicit JsonWriter(const TextSink &sink) : sink_(sink) {}

  JsonWriter &begin_object();
  JsonWriter &end_object();
  JsonWriter &key(std::string_view name);
  JsonWriter &value(std::string_view text);
  JsonWriter &value(const char *text) { return value(std::string_view(text)); }
  JsonWriter &number(std::uint64_t number);
  JsonWriter &number_signed(std::int64_t number);
  JsonWriter &boolean(bool truth);

  // Whether the sink still takes text; a writer goes on in vain until it asks.
  [[nodiscard]] bool failed() const { return !state_; }
  [[nodiscard]] Result<void> finish();

private:
  void separate();
  void quote(std::string_view text);
  void flush_if_full();

  const TextSink &sink_;
  std::string buffer_;
  bool first_ = true; // in the current object
  bool after_key_ = false;
  Result<void> state_;
};

} // namespace lararium::isf
