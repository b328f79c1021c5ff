// Findings and records as JSON and as text: the one writer for all commands that have some.
#pragma once

#include "json.h"
#include "output.h"

#include "lararium/record/record.h"

#include <string>
#include <vector>

namespace lararium::cli {

void write_finding(JsonWriter &json, const Finding &finding);
void write_record(JsonWriter &json, const Record &record);
[[nodiscard]] std::string text_of(const FieldValue &value);
[[nodiscard]] Style style_of(Severity severity);
// For people: one line for each piece of evidence, and for the process.
void print_evidence(Output &out, const Finding &finding);

// The words between commas.
[[nodiscard]] std::vector<std::string> split_names(const std::string &names);

} // namespace lararium::cli
