#include "elf_bytes.h"
#include "lararium/symbols/isf.h"

#include "btf_builder.h"
#include "unpack.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <lzma.h>
#include <nlohmann/json.hpp>

namespace lararium {
namespace {

using nlohmann::json;
using enum TypeKind;

constexpr std::string_view example = R"({
  "metadata": {"format": "6.2.0", "producer": {"name": "dwarf2json", "version": "0.9.0"},
               "linux": {"symbols": [{"kind": "dwarf", "name": "vmlinux"}], "types": []}},
  "base_types": {
    "int": {"size": 4, "signed": true, "kind": "int", "endian": "little"},
    "unsigned int": {"size": 4, "signed": false, "kind": "int", "endian": "little"},
    "char": {"size": 1, "signed": true, "kind": "char", "endian": "little"},
    "_Bool": {"size": 1, "signed": false, "kind": "bool", "endian": "little"},
    "double": {"size": 8, "signed": true, "kind": "float", "endian": "little"},
    "pointer": {"size": 8, "signed": false, "kind": "int", "endian": "little"},
    "void": {"size": 0, "signed": false, "kind": "void", "endian": "little"}},
  "user_types": {
    "task_struct": {"kind": "struct", "size": 64, "fields": {
      "comm": {"offset": 16, "type": {"kind": "array", "count": 16, "subtype": {"kind": "base", "name": "char"}}},
      "parent": {"offset": 8, "type": {"subtype": {"name": "task_struct", "kind": "struct"}, "kind": "pointer"}},
      "unnamed_field_0": {"offset": 32, "anonymous": true, "type": {"kind": "union", "name": "unnamed_abcdef"}},
      "exiting": {"offset": 40, "type": {"kind": "bitfield", "bit_position": 3, "bit_length": 2,
                                         "type": {"kind": "base", "name": "unsigned int"}}},
      "state": {"offset": 44, "type": {"kind": "enum", "name": "states"}},
      "run": {"offset": 48, "type": {"kind": "pointer", "subtype": {"kind": "function"}}},
      "opaque": {"offset": 56, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "not_here"}}}}},
    "unnamed_abcdef": {"kind": "union", "size": 8, "fields": {
      "pid": {"offset": 0, "type": {"kind": "base", "name": "int"}},
      "real": {"offset": 0, "type": {"kind": "base", "name": "double"}}}}},
  "enums": {
    "states": {"size": 4, "base": "int", "constants": {"RUNNING": 0, "DEAD": -1}},
    "unnamed_enum": {"size": 8, "base": "unsigned int", "constants": {"HUGE": 9223372036854775807, "BIT31": 2147483648}}},
  "symbols": {
    "_text": {"address": 18446744071578845184, "type": {"kind": "base", "name": "void"}},
    "init_task": {"address": 18446744071578849280, "type": {"kind": "struct", "name": "task_struct"}},
    "schedule": {"address": 18446744071578845440, "type": {"kind": "function"}},
    "cpu_number": {"address": 4096, "type": {"kind": "base", "name": "int"}},
    "untyped": {"address": 18446744071578845441},
    "linux_banner": {"address": 18446744071578849281, "constant_data": "TGludXggdmVyc2lvbiA2LjEgdGVzdAoA",
                     "type": {"kind": "array", "count": 24, "subtype": {"kind": "base", "name": "char"}}}}})";

void expect_example(const Profile &profile) {
  EXPECT_EQ(profile.banner(), "Linux version 6.1 test");
  EXPECT_EQ(profile.symbol("_text")->value, 0U);
  EXPECT_EQ(profile.symbol("init_task")->value, 0x1000U);
  EXPECT_EQ(profile.symbol("init_task")->base, SymbolBase::image);
  EXPECT_EQ(profile.symbol("cpu_number")->value, 0x1000U);
  EXPECT_EQ(profile.symbol("cpu_number")->base, SymbolBase::absolute);
  EXPECT_EQ(profile.nearest(0x100)->name, "schedule");

  const auto &types = profile.types();
  EXPECT_EQ(types.size_of("task_struct"), 64U);
  EXPECT_EQ(types.field("task_struct", "comm")->offset, 16U);
  EXPECT_EQ(types.field("task_struct", "comm")->size, 16U);
  EXPECT_EQ(types.field("task_struct", "pid")->offset, 32U) << "through the anonymous union";
  EXPECT_EQ(types.field("task_struct", "real")->size, 8U);
  const auto exiting = types.field("task_struct", "exiting");
  ASSERT_TRUE(exiting);
  EXPECT_EQ(exiting->bit_offset, 40U * 8 + 3);
  EXPECT_EQ(exiting->bit_size, 2U);
  EXPECT_EQ(exiting->offset, 40U);
  EXPECT_EQ(types.info(types.field("task_struct", "state")->type)->kind, enumeration);
  const auto parent = types.info(types.field("task_struct", "parent")->type);
  ASSERT_TRUE(parent);
  EXPECT_EQ(parent->kind, pointer);
  EXPECT_EQ(parent->target, types.find("task_struct"));
  const auto opaque = types.info(types.field("task_struct", "opaque")->type);
  EXPECT_EQ(types.info(opaque->target)->kind, forward);
  EXPECT_EQ(types.info(opaque->target)->name, "not_here");
  EXPECT_FALSE(types.find("unnamed_abcdef"));
  EXPECT_EQ(types.enumerator("DEAD"), -1);
  EXPECT_EQ(types.enumerator("HUGE"), INT64_MAX);
  EXPECT_EQ(types.enumerator("BIT31"), 0x80000000);
}

Result<std::string> exported(const Profile &profile) {
  std::string text;
  TRY(export_isf(profile, [&](std::string_view piece) -> Result<void> {
    text += piece;
    return {};
  }));
  return text;
}

TEST(IsfImport, ReadsEveryPartOfTheFormat) {
  const auto profile = import_isf(bytes_of(example));
  ASSERT_TRUE(profile) << profile.error().message;
  expect_example(**profile);
  EXPECT_EQ((*profile)->build_id().size, 0);
}

TEST(IsfImport, KeepsTheGivenBuildId) {
  BuildId id;
  id.size = 20;
  id.bytes[0] = 1;
  const auto profile = import_isf(bytes_of(example), id, 0x42);
  ASSERT_TRUE(profile);
  EXPECT_EQ((*profile)->build_id(), id);
  EXPECT_EQ((*profile)->build_id_offset(), 0x42U);
}

std::vector<std::byte> xz_packed(std::string_view text) {
  std::vector<std::byte> out(text.size() + 1000);
  std::size_t used = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(0, LZMA_CHECK_CRC32, nullptr, reinterpret_cast<const std::uint8_t *>(text.data()),
                                    text.size(), reinterpret_cast<std::uint8_t *>(out.data()), &used, out.size()),
            LZMA_OK);
  out.resize(used);
  return out;
}

TEST(IsfImport, UnpacksByContent) {
  for (const auto &packed : {gzip(bytes_of(example)), xz_packed(example)}) {
    const auto profile = import_isf(packed);
    ASSERT_TRUE(profile) << profile.error().message;
    expect_example(**profile);
    for (std::size_t length = 6; length < packed.size(); length += 97)
      EXPECT_FALSE(import_isf(Bytes(packed).first(length))) << length;
  }
}

TEST(IsfImport, ABombDoesNotFillMemory) {
  constexpr std::size_t limit = 3U << 20;
  const std::string text(2U << 20, ' ');
  auto streams = xz_packed(text); // two concatenated ones: more than the limit together
  streams.insert(streams.end(), streams.begin(), streams.end());
  for (const auto &bomb : {gzip(bytes_of(text + text)), xz_packed(text + text), streams}) {
    std::vector<std::byte> storage;
    const auto unpacked = isf::unpack(bomb, limit, storage);
    ASSERT_FALSE(unpacked);
    EXPECT_EQ(unpacked.error().message, "the ISF file unpacks to more than 3 MiB");
    EXPECT_LE(storage.size(), limit);
  }
  std::vector<std::byte> storage;
  EXPECT_EQ(isf::unpack(gzip(bytes_of(text)), limit, storage).value_or(Bytes()).size(), text.size());
}

TEST(IsfImport, RefusesWhatIsNoUsableIsf) {
  const auto refused = [](std::string_view text) { return !import_isf(bytes_of(text)); };
  EXPECT_TRUE(refused(""));
  EXPECT_TRUE(refused("{"));
  EXPECT_TRUE(refused("[]"));
  EXPECT_TRUE(refused("{}"));
  EXPECT_TRUE(refused(R"({"metadata": {"format": "2.0.0"}})"));
  EXPECT_TRUE(refused(R"({"metadata": {"format": "6.2.0"}, "symbols": {"a": {"address": 1}}})")) << "no base";
  EXPECT_FALSE(refused(R"({"metadata": {"format": "6.2.0"}})"));
  EXPECT_FALSE(
      refused(R"({"metadata": {"format": "4.0.0"}, "symbols": {"_stext": {"address": 18446744071578845184}}})"));
  EXPECT_TRUE(refused(std::string(100000, '[')));
  std::string deep = R"({"symbols": {"a": {"type": )";
  for (int i = 0; i < 1000; ++i)
    deep += R"({"kind": "pointer", "subtype": )";
  EXPECT_TRUE(refused(deep));
  EXPECT_TRUE(refused(R"({"metadata": {"format": "6.2.0"}, "user_types": {"s": {"kind": "struct", "size": 4,
    "fields": {"a": {"offset": 99999999999}}}}})"));
  EXPECT_TRUE(refused(R"({"metadata": {"format": "6.2.0"}, "user_types": {"s": {"kind": "struct", "size": 4,
    "fields": {"a": {"offset": 0, "type": {"kind": "bitfield", "bit_length": 4000000000}}}}}})"));
}

TEST(IsfExport, RoundTripsTheExample) {
  const auto profile = import_isf(bytes_of(example));
  ASSERT_TRUE(profile);
  const auto text = exported(**profile);
  ASSERT_TRUE(text);
  const auto again = import_isf(bytes_of(*text));
  ASSERT_TRUE(again) << again.error().message << *text;
  expect_example(**again);
}

TEST(IsfExport, WritesWhatVolatilityReads) {
  test::BtfBuilder builder;
  const auto number = builder.integer("int", 4, true);
  const auto word = builder.integer("unsigned int", 4);
  builder.integer("int", 4, true);
  const auto nameless = builder.structure("", 8, {{"inner", number, 0}});
  builder.define("thing_t", nameless);
  const auto hidden = builder.aggregate(union_type, "", 4, {{"a", number, 0}, {"b", word, 0}});
  const auto state = builder.enumeration("state", {{"ON", 1}, {"OFF", -1}}, true);
  const auto list = builder.structure("list_head", 16, {{"next", builder.pointer(8), 0}, {"prev", number, 64}});
  const auto outer =
      builder.structure("outer", 64,
                        {{"thing", nameless, 0},
                         {"", hidden, 64},
                         {"flag", word, 1U << 24 | (12 * 8 + 9)},
                         {"state", state, 128},
                         {"call", builder.pointer(builder.type("", function_prototype, false, 0, 0)), 192},
                         {"void", builder.pointer(0), 256}},
                        true);
  builder.structure("outer", 4, {{"other", number, 0}});
  builder.variable("per_cpu", outer);
  builder.refer(function, 0, "untyped_function");
  const auto btf = builder.bytes();
  ProfileSource source;
  source.btf = btf;
  source.banner = "Linux version 1 \"quoted\" \x01\xff";
  source.symbols = {{"_text", 0, SymbolBase::image, 'T'},
                    {"modules", 0x20, SymbolBase::image, 'D'},
                    {"twice", 0x30, SymbolBase::image, 'd'},
                    {"twice", 0x40, SymbolBase::image, 'd'},
                    {"per_cpu", 0x50, SymbolBase::absolute, 'D'},
                    {"untyped_function", 0x60, SymbolBase::image, 'd'},
                    {"iomem_resource", 0x70, SymbolBase::image, 'd'},
                    {"we\"ird\n\xe9", 0x80, SymbolBase::image, 'd'}};
  const auto profile = Profile::build(source);
  ASSERT_TRUE(profile) << profile.error().message;
  const auto text = exported(**profile);
  ASSERT_TRUE(text);
  const auto isf = json::parse(*text, nullptr, false);
  ASSERT_FALSE(isf.is_discarded()) << *text;

  EXPECT_EQ(isf["metadata"]["format"], "6.2.0");
  for (const char *name : {"void", "pointer", "int", "unsigned int", "char", "long unsigned int"})
    EXPECT_TRUE(isf["base_types"].contains(name)) << name;
  const auto &fields = isf["user_types"]["outer"]["fields"];
  EXPECT_EQ(fields["thing"]["type"], json::parse(R"({"kind": "struct", "name": "thing_t"})"));
  EXPECT_EQ(fields["unnamed_field_0"]["anonymous"], true);
  EXPECT_TRUE(isf["user_types"].contains(fields["unnamed_field_0"]["type"]["name"]));
  EXPECT_EQ(fields["flag"]["offset"], 12);
  EXPECT_EQ(fields["flag"]["type"]["bit_position"], 9);
  EXPECT_EQ(fields["flag"]["type"]["bit_length"], 1);
  EXPECT_EQ(fields["call"]["type"], json::parse(R"({"kind": "pointer", "subtype": {"kind": "function"}})"));
  EXPECT_EQ(fields["void"]["type"], json::parse(R"({"kind": "pointer", "subtype": {"kind": "base", "name": "void"}})"));
  EXPECT_EQ(isf["user_types"].size(), 5U) << "the second `outer` has a name of its own";
  EXPECT_EQ(isf["enums"]["state"]["constants"]["OFF"], -1);
  EXPECT_EQ(isf["enums"]["state"]["base"], "int");

  const auto &symbols = isf["symbols"];
  EXPECT_EQ(symbols["_text"]["address"], 0xffffffff81000000);
  EXPECT_EQ(symbols["_text"]["type"]["kind"], "function");
  EXPECT_EQ(symbols["modules"]["type"], json::parse(R"({"kind": "struct", "name": "list_head"})"));
  EXPECT_EQ(symbols["twice"]["address"], 0xffffffff81000030);
  EXPECT_EQ(symbols["per_cpu"]["address"], 0x50);
  EXPECT_EQ(symbols["per_cpu"]["type"]["name"], "outer");
  EXPECT_EQ(symbols["untyped_function"]["type"]["kind"], "function");
  EXPECT_EQ(symbols["iomem_resource"]["type"]["name"], "void") << "its structure is not in this BTF";
  EXPECT_EQ(symbols["linux_banner"]["constant_data"], "TGludXggdmVyc2lvbiAxICJxdW90ZWQiIAH/CgA=");
  EXPECT_EQ(symbols.size(), 8U);
  EXPECT_NE(list, 0U);
}

TEST(IsfExport, StopsWithTheSinksError) {
  const auto profile = import_isf(bytes_of(example));
  ASSERT_TRUE(profile);
  const auto done =
      export_isf(**profile, [](std::string_view) -> Result<void> { return fail(ErrorCode::io, "disk full"); });
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().message, "disk full");
}

} // namespace
} // namespace lararium
