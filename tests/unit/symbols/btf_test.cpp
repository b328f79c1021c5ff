#include "lararium/symbols/btf.h"

#include "btf_builder.h"
#include "lararium/base/mapping.h"

#include <gtest/gtest.h>
#include <string>

namespace lararium {
namespace {

using test::BtfBuilder;
using enum TypeKind;

std::shared_ptr<const Types> parse(const BtfBuilder &builder) {
  auto types = parse_btf(builder.bytes());
  EXPECT_TRUE(types) << types.error().message;
  return types ? *types : nullptr;
}

void expect_field(const Types &types, std::string_view type, std::string_view path, std::uint32_t offset,
                  std::uint32_t size) {
  const auto field = types.field(type, path);
  ASSERT_TRUE(field) << path;
  EXPECT_EQ(field->offset, offset) << path;
  EXPECT_EQ(field->size, size) << path;
  EXPECT_EQ(field->bit_offset, offset * 8) << path;
  EXPECT_EQ(field->bit_size, 0U) << path;
}

TEST(Btf, FindsMembersThroughNestedAndAnonymousStructures) {
  BtfBuilder builder;
  const auto number = builder.integer("int", 4, true);
  const auto character = builder.integer("char", 1);
  const auto name = builder.array(character, 16);
  const auto entity = builder.structure("sched_entity", 16, {{"load", number, 0}, {"sum", number, 64}});
  const auto inner = builder.structure("", 8, {{"in_struct", number, 32}});
  const auto anonymous = builder.aggregate(union_type, "", 8, {{"in_union", number, 0}, {"", inner, 0}});
  const auto entities = builder.array(entity, 3);
  const auto grid = builder.array(builder.array(number, 5), 2);
  const auto tail = builder.array(number, 0);
  builder.structure("task", 256,
                    {{"se", entity, 0},
                     {"comm", name, 128},
                     {"", builder.refer(constant, anonymous), 256},
                     {"many", entities, 320},
                     {"next", builder.pointer(0), 704},
                     {"grid", grid, 768},
                     {"tail", tail, 1088}});
  const auto types = parse(builder);
  ASSERT_TRUE(types);

  expect_field(*types, "task", "se.sum", 8, 4);
  expect_field(*types, "task", "comm", 16, 16);
  expect_field(*types, "task", "comm[3]", 19, 1);
  expect_field(*types, "task", "in_union", 32, 4);
  expect_field(*types, "task", "in_struct", 36, 4);
  expect_field(*types, "task", "many[2].sum", 40 + 2 * 16 + 8, 4);
  expect_field(*types, "task", "next", 88, 8);
  expect_field(*types, "task", "grid[1][4]", 96 + 20 + 16, 4);
  expect_field(*types, "task", "tail[1000]", 136 + 4000, 4);
  expect_field(*types, "task", "tail", 136, 0);
  for (const char *path : {"",         ".",      "se.",    ".se",     "se.none",          "none",
                           "comm[16]", "comm[",  "comm[]", "comm[x]", "comm[1",           "comm[-1]",
                           "comm[1]x", "comm.a", "se[0]",  "next.x",  "tail[4294967295]", "tail[99999999999999999999]",
                           "[0]",      "se..sum"})
    EXPECT_FALSE(types->field("task", path)) << path;
  EXPECT_FALSE(types->field("nothing", "se"));
  EXPECT_EQ(types->size_of("task"), 256U);
  EXPECT_EQ(types->size_of(grid), 40U);
  EXPECT_FALSE(types->size_of(0));
}

TEST(Btf, WhatBeginsBehindItsStructureIsNoMember) {
  BtfBuilder builder;
  const auto number = builder.integer("int", 4, true);
  const auto inner = builder.structure("", 4, {{"inside", number, 0}});
  builder.structure("task", 8,
                    {{"first", number, 0},
                     {"tail", builder.array(number, 0), 64},
                     {"behind", number, 72},
                     {"", inner, 128},
                     {"far", number, 0xffff'fff8}});
  const auto types = parse(builder);
  ASSERT_TRUE(types);
  expect_field(*types, "task", "first", 0, 4);
  expect_field(*types, "task", "tail", 8, 0);
  for (const char *path : {"behind", "inside", "far"})
    EXPECT_FALSE(types->field("task", path)) << path;
}

TEST(Btf, MembersForANameAreThatOneAndThoseWithoutName) {
  BtfBuilder builder;
  const auto number = builder.integer("int", 4, true);
  const auto inner = builder.structure("", 8, {{"x", number, 0}});
  const auto outer = builder.structure(
      "outer", 32, {{"a", number, 0}, {"ab", number, 32}, {"", inner, 64}, {"abc", number, 128}, {"b", number, 160}});
  const auto types = parse(builder);
  ASSERT_TRUE(types);
  const auto names = [&](std::string_view name) {
    std::string text;
    for (const auto &member : types->members_for(outer, name))
      text += "<" + std::string(member.name) + ">" + std::to_string(member.bit_offset);
    return text;
  };
  EXPECT_EQ(names("ab"), "<ab>32<>64");
  EXPECT_EQ(names("abc"), "<>64<abc>128");
  EXPECT_EQ(names("nothing"), "<>64");
  EXPECT_TRUE(types->members_for(number, "a").empty());
  EXPECT_TRUE(types->members_for(0, "a").empty());
}

TEST(Btf, TellsBitFieldsOfBothEncodings) {
  BtfBuilder builder;
  const auto word = builder.integer("unsigned int", 4);
  const auto byte = builder.integer("unsigned char", 1);
  builder.structure("flagged", 12, {{"a", word, 3U << 24 | 33}, {"b", word, 1U << 24 | 63}, {"c", word, 64}}, true);
  builder.structure("packed", 8, {{"across", byte, 6U << 24 | 13}}, true);
  const auto three_bits = builder.integer("unsigned int", 4, false, 3, 2);
  builder.structure("old", 8, {{"x", builder.define("u", three_bits), 32}, {"y", word, 0}});
  const auto types = parse(builder);
  ASSERT_TRUE(types);

  const auto a = types->field("flagged", "a");
  ASSERT_TRUE(a);
  EXPECT_EQ(a->offset, 4U);
  EXPECT_EQ(a->size, 4U);
  EXPECT_EQ(a->bit_offset, 33U);
  EXPECT_EQ(a->bit_size, 3U);
  EXPECT_EQ(types->field("flagged", "b")->bit_size, 1U);
  EXPECT_EQ(types->field("flagged", "c")->bit_size, 0U);
  const auto across = types->field("packed", "across");
  ASSERT_TRUE(across);
  EXPECT_EQ(across->offset, 1U); // bits 13 to 18: more than the byte of its type
  EXPECT_EQ(across->size, 2U);
  const auto x = types->field("old", "x");
  ASSERT_TRUE(x);
  EXPECT_EQ(x->bit_offset, 34U);
  EXPECT_EQ(x->bit_size, 3U);
  EXPECT_EQ(x->offset, 4U);
  EXPECT_EQ(types->field("old", "y")->bit_size, 0U);
}

TEST(Btf, FindsStructuresBeforeEnumerationsBeforeTypedefs) {
  BtfBuilder builder;
  const auto number = builder.integer("int", 4, true);
  builder.define("thing", number);
  builder.enumeration("thing", {{"THING_A", 1}});
  builder.refer(forward, 0, "thing");
  const auto structure = builder.structure("thing", 4, {{"x", number, 0}});
  builder.structure("thing", 8, {{"y", number, 0}});
  const auto type = builder.define("number", number);
  builder.refer(forward, 0, "only_forward");
  const auto types = parse(builder);
  ASSERT_TRUE(types);
  EXPECT_EQ(types->find("thing"), structure);
  EXPECT_EQ(types->find("number"), type);
  EXPECT_FALSE(types->find("only_forward"));
  EXPECT_FALSE(types->find("int")) << "integers are not looked up by name";
  EXPECT_FALSE(types->find(""));
  EXPECT_EQ(types->strip(type), number);
}

TEST(Btf, ReadsEnumeratorsOfEveryKind) {
  BtfBuilder builder;
  builder.enumeration("e", {{"MINUS", -1}, {"ONE", 1}}, true);
  builder.enumeration("", {{"HIGH", 0x80000000}});
  const auto wide = builder.enumeration64("w", {{"WIDE", 0x123456789abcdef0}});
  const auto types = parse(builder);
  ASSERT_TRUE(types);
  EXPECT_EQ(types->enumerator("MINUS"), -1);
  EXPECT_EQ(types->enumerator("ONE"), 1);
  EXPECT_EQ(types->enumerator("HIGH"), 0x80000000);
  EXPECT_EQ(types->enumerator("WIDE"), 0x123456789abcdef0);
  EXPECT_FALSE(types->enumerator("NONE"));
  EXPECT_FALSE(types->enumerator(""));
  ASSERT_EQ(types->enumerators(wide).size(), 1U);
  EXPECT_EQ(types->enumerators(wide)[0].value, 0x123456789abcdef0);
  EXPECT_TRUE(types->enumerators(99).empty());
}

TEST(Btf, EnumerationsAreSignedWhereBtfIsTooOldToSay) {
  BtfBuilder builder;
  builder.enumeration("e", {{"MINUS", -1}});
  const auto types = parse(builder);
  ASSERT_TRUE(types);
  EXPECT_EQ(types->enumerator("MINUS"), -1);
}

TEST(Btf, ShowsEveryKind) {
  BtfBuilder builder;
  const auto number = builder.integer("int", 4, true);
  const auto prototype = builder.type("", function_prototype, false, 2, number);
  builder.word(builder.string("a"));
  builder.word(number);
  builder.word(0); // varargs
  builder.word(0);
  const auto call = builder.type("call", function, false, 1, prototype); // its count is the linkage
  const auto global = builder.variable("global", number);
  const auto section = builder.type(".data", data_section, false, 1, 4);
  builder.word(global);
  builder.word(0);
  builder.word(4);
  const auto real = builder.type("double", floating, false, 0, 8);
  const auto tag = builder.type("tagged", declaration_tag, false, 0, global);
  builder.word(0xffffffff);
  const auto user = builder.refer(type_tag, number, "user");
  const auto qualified = builder.refer(restricted, builder.refer(volatile_type, user));
  const auto types = parse(builder);
  ASSERT_TRUE(types);
  EXPECT_EQ(types->count(), qualified);
  EXPECT_EQ(types->info(call)->target, prototype);
  EXPECT_EQ(types->info(call)->count, 0U);
  EXPECT_EQ(types->info(prototype)->target, number);
  ASSERT_EQ(types->members(prototype).size(), 2U);
  EXPECT_EQ(types->members(prototype)[0].name, "a");
  EXPECT_EQ(types->info(global)->target, number);
  EXPECT_EQ(types->size_of(global), 4U);
  EXPECT_EQ(types->info(section)->count, 1U);
  EXPECT_EQ(types->size_of(real), 8U);
  EXPECT_EQ(types->info(tag)->target, global);
  EXPECT_EQ(types->strip(qualified), number);
  EXPECT_TRUE(types->info(number)->is_signed);
  EXPECT_FALSE(types->info(0));
  EXPECT_FALSE(types->info(qualified + 1));
  EXPECT_FALSE(types->info(UINT32_MAX));
}

TEST(Btf, StepsOverKindsThatOnlyTheLayoutSectionKnows) {
  std::vector<std::pair<int, int>> layout(23);
  layout[22] = {4, 12};
  BtfBuilder builder;
  builder.raw(0, 22, false, 2, 0);
  for (int i = 0; i < 7; ++i)
    builder.word(0xdddddddd);
  const auto number = builder.integer("int", 4);
  const auto types = parse_btf(builder.bytes(layout));
  ASSERT_TRUE(types) << types.error().message;
  EXPECT_EQ((*types)->info(1)->kind, none);
  EXPECT_EQ((*types)->info(number)->name, "int");
  EXPECT_FALSE(parse_btf(builder.bytes()));
  layout[22] = {3, 12};
  EXPECT_FALSE(parse_btf(builder.bytes(layout)));
}

TEST(Btf, CyclesAndBottomlessTypesEnd) {
  BtfBuilder builder;
  const auto one = builder.define("one", 2);
  builder.define("two", 1);
  builder.structure("inside_itself", 8, {{"", 3, 0}, {"", 3, 64}, {"x", 1, 0}});
  const auto array_of_itself = builder.array(4, 1000);
  const auto huge = builder.array(builder.array(builder.array(6, 1), 0x80000000), 0x80000000);
  const auto types = parse(builder);
  ASSERT_TRUE(types);
  EXPECT_EQ(types->strip(one), 0U);
  EXPECT_FALSE(types->size_of(one));
  EXPECT_FALSE(types->size_of(array_of_itself));
  EXPECT_FALSE(types->size_of(huge));
  EXPECT_FALSE(types->field("inside_itself", "y"));
  EXPECT_TRUE(types->field("inside_itself", "x"));
}

TEST(Btf, RefusesWhatRefersOutside) {
  const auto refused = [](auto &&fill) {
    BtfBuilder builder;
    builder.integer("int", 4);
    fill(builder);
    return !parse_btf(builder.bytes());
  };
  EXPECT_FALSE(refused([](BtfBuilder &) {}));
  EXPECT_TRUE(refused([](BtfBuilder &b) { b.pointer(3); }));
  EXPECT_TRUE(refused([](BtfBuilder &b) { b.array(3, 1); }));
  EXPECT_TRUE(refused([](BtfBuilder &b) { b.structure("s", 4, {{"m", 3, 0}}); }));
  EXPECT_TRUE(refused([](BtfBuilder &b) { b.raw(0xffff, 2, false, 0, 1); }));
  EXPECT_TRUE(refused([](BtfBuilder &b) { b.raw(0, 4, false, 0xffff, 1); })) << "members beyond the section";
  EXPECT_TRUE(refused([](BtfBuilder &b) { b.raw(0, 0, false, 0, 0); })) << "kind 0";
  EXPECT_TRUE(refused([](BtfBuilder &b) { b.raw(0, 20, false, 0, 0); })) << "an unknown kind";
  EXPECT_TRUE(refused([](BtfBuilder &b) { b.word(0); })) << "cut off";
  EXPECT_TRUE(refused([](BtfBuilder &b) {
    b.type("e", enumeration, false, 1, 4);
    b.word(0xffff);
    b.word(0);
  })) << "an enumerator's name";
}

TEST(Btf, RefusesHeadersThatDoNotFit) {
  BtfBuilder builder;
  builder.integer("int", 4);
  const auto good = builder.bytes();
  ASSERT_TRUE(parse_btf(good));
  const auto with = [&](std::size_t word, std::uint32_t value) {
    auto bytes = good;
    std::memcpy(bytes.data() + word * 4, &value, 4);
    return parse_btf(bytes).has_value();
  };
  EXPECT_FALSE(with(0, 0x0002eb9f)) << "version";
  EXPECT_FALSE(with(0, 0x0101eb9f)) << "flags";
  EXPECT_FALSE(with(0, 0x0001eb9e)) << "magic";
  for (const std::uint32_t length : {0U, 20U, 25U, 0xfffffff8U})
    EXPECT_FALSE(with(1, length)) << length;
  EXPECT_FALSE(with(2, 2)) << "unaligned";
  for (const std::size_t word : {2, 3, 4, 5})
    for (const std::uint32_t value : {0xfffffffcU, 0x80000000U})
      EXPECT_FALSE(with(word, value)) << word;
  EXPECT_FALSE(with(5, 0)) << "no strings";
  EXPECT_FALSE(with(5, 3)) << "strings not terminated";
  for (std::size_t length = 0; length < good.size(); ++length)
    EXPECT_FALSE(parse_btf(Bytes(good).first(length))) << length;
  auto longer = good;
  longer.resize(longer.size() + 100);
  EXPECT_TRUE(parse_btf(longer));
}

TEST(Btf, LongNamesCountAsNone) {
  BtfBuilder builder;
  const auto id = builder.structure(std::string(2000, 'x'), 4, {});
  const auto types = parse(builder);
  ASSERT_TRUE(types);
  EXPECT_EQ(types->info(id)->name, "");
  EXPECT_FALSE(types->find(std::string(2000, 'x')));
}

TEST(Btf, ModulesGoOnFromTheKernels) {
  BtfBuilder base;
  const auto number = base.integer("int", 4);
  const auto list = base.structure("list", 16, {{"next", number, 0}, {"prev", number, 64}});
  base.define("both", number);
  base.enumeration("", {{"BASE", 1}});
  const auto base_bytes = base.bytes();
  const auto base_types = parse_btf(base_bytes);
  ASSERT_TRUE(base_types);

  BtfBuilder module((*base_types)->count(), base.string_size());
  const auto own = module.structure("own", 32, {{"list", list, 128}});
  // A name from the kernel's strings: the first, at offset 1.
  const auto borrowed = module.raw(1, static_cast<std::uint32_t>(type_definition), false, 0, own);
  const auto both = module.structure("both", 4, {});
  module.structure("list", 1, {});
  module.enumeration("", {{"OWN", 2}});
  const auto types = parse_split_btf(module.bytes(), *base_types, base_bytes);
  ASSERT_TRUE(types) << types.error().message;
  EXPECT_EQ((*types)->find("own"), own);
  EXPECT_EQ((*types)->find("list"), list) << "the kernel's comes first";
  EXPECT_EQ((*types)->find("both"), both) << "a structure before a typedef";
  EXPECT_EQ((*types)->find("int"), borrowed);
  expect_field(**types, "own", "list.prev", 24, 4);
  EXPECT_EQ((*types)->enumerator("BASE"), 1);
  EXPECT_EQ((*types)->enumerator("OWN"), 2);
  EXPECT_FALSE(parse_btf(module.bytes())) << "on its own its ids lead outside";
  EXPECT_FALSE(parse_split_btf(module.bytes(), nullptr, base_bytes));
}

TEST(FindBtf, TakesTheLargestThatIsValid) {
  BtfBuilder small, large;
  small.integer("int", 4);
  large.integer("int", 4);
  large.structure("s", 4, {{"m", 1, 0}});
  auto broken = large.bytes();
  broken.resize(4096);
  const std::uint32_t strings = 4096 - 24 - 16;
  std::memcpy(broken.data() + 20, &strings, 4);
  const std::uint32_t outside = 0x00ffffff;
  std::memcpy(broken.data() + 24, &outside, 4); // the first type's name
  std::vector<std::byte> image(1000, std::byte{0x9f});
  const auto append = [&](const std::vector<std::byte> &bytes) {
    image.insert(image.end(), bytes.begin(), bytes.end());
    image.resize(image.size() + 33, std::byte{0x9f});
  };
  append(broken);
  append(small.bytes());
  const auto expected = image.size();
  append(large.bytes());
  append(small.bytes());
  const auto found = find_btf(image);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->offset, expected);
  EXPECT_EQ(found->bytes, large.bytes());
}

TEST(FindBtf, SaysWhenThereIsNone) {
  const std::vector<std::byte> image(5000);
  EXPECT_EQ(find_btf(image).error().code, ErrorCode::no_types);
  EXPECT_EQ(find_btf({}).error().code, ErrorCode::no_types);
}

TEST(Btf, ReadsThisMachinesKernel) {
  const auto *path = "/sys/kernel/btf/vmlinux";
  // sysfs files cannot be mapped before 6.16: read it.
  std::FILE *file = std::fopen(path, "rb");
  if (file == nullptr)
    GTEST_SKIP() << path << " cannot be opened: the kernel has no BTF";
  std::vector<std::byte> bytes(btf_size_limit);
  bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
  std::fclose(file);
  const auto types = parse_btf(bytes);
  ASSERT_TRUE(types) << types.error().message;
  EXPECT_GT((*types)->count(), 10000U);
  const auto comm = (*types)->field("task_struct", "comm");
  ASSERT_TRUE(comm);
  EXPECT_EQ(comm->size, 16U);
  EXPECT_EQ((*types)->field("list_head", "prev")->offset, 8U);
  EXPECT_EQ((*types)->field("sock", "__sk_common.skc_family")->size, 2U);
  EXPECT_TRUE((*types)->field("task_struct", "se.sum_exec_runtime"));
  EXPECT_EQ((*types)->enumerator("PIDTYPE_PID"), 0);
}

} // namespace
} // namespace lararium
