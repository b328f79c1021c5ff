#include "lararium/symbols/module_file.h"
#include "lararium/symbols/module_folder.h"
#include "lararium/symbols/relocated_module.h"
#include "module_builder.h"

#include <array>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <unistd.h>

namespace lararium {
namespace {

constexpr std::uint64_t text_at = 0xffffffffc0100000, data_at = 0xffffffffc0200000, function_at = 0xffffffff81234560,
                        elsewhere = 0xffffffffa0000000;

struct Parts {
  ModuleBuilder builder;
  std::uint16_t text, data, table;
  std::uint32_t function, absent, own, data_symbol, empty, trampoline;
};

Parts parts() {
  Parts p;
  p.text = p.builder.section(".text", SHF_ALLOC | SHF_EXECINSTR, std::vector<std::byte>(64, std::byte{0x90}));
  p.data = p.builder.section(".rodata", SHF_ALLOC, std::vector<std::byte>(32, std::byte{0x11}));
  p.table = p.builder.section("__jump_table", SHF_ALLOC | SHF_WRITE, std::vector<std::byte>(16));
  p.builder.section(".modinfo", SHF_ALLOC, ModuleBuilder::texts({"license=GPL", "srcversion=ABC123", "name=sample"}));
  p.builder.section(".note.gnu.build-id", SHF_ALLOC, ModuleBuilder::build_id_note(0x5a), SHT_NOTE);
  p.function = p.builder.symbol("printk", SHN_UNDEF, 0);
  p.absent = p.builder.symbol("is_not_there", SHN_UNDEF, 0);
  p.own = p.builder.symbol("own", p.text, 0x10);
  p.data_symbol = p.builder.symbol("table", p.data, 8);
  p.empty = p.builder.symbol("in_table", p.table, 4);
  p.trampoline = p.builder.symbol("__SCT__own", p.text, 0x30);
  return p;
}

Result<RelocatedModule> relocate(const ModuleFile &file) {
  return RelocatedModule::make(
      file,
      [](std::string_view name) -> std::optional<std::uint64_t> {
        return name == ".text" ? std::optional(text_at) : name == ".rodata" ? std::optional(data_at) : std::nullopt;
      },
      [](std::string_view name) -> std::optional<std::uint64_t> {
        return name == "printk" ? std::optional(function_at) : std::nullopt;
      },
      elsewhere);
}

template <class T> T at(const RelocatedModule &module, std::uint64_t address) {
  return load<T>(module.at(address, sizeof(T)), 0).value();
}

TEST(ModuleFile, SaysWhatItIs) {
  const auto bytes = parts().builder.build();
  const auto file = ModuleFile::parse(bytes);
  ASSERT_TRUE(file) << file.error().describe();
  EXPECT_EQ(file->source_version(), "ABC123");
  EXPECT_EQ(file->build_id().hex(), "5a00000000000000000000000000000000000000");
  ASSERT_GT(file->sections().size(), 2U);
  EXPECT_EQ(file->sections()[1].name, ".text");
  EXPECT_TRUE(file->sections()[1].is_code);
  EXPECT_EQ(file->symbol(1)->name, "printk");
  EXPECT_FALSE(file->symbol(1000));
}

TEST(ModuleFile, IsUnpacked) {
  const auto packed = gzip(parts().builder.build());
  const auto file = ModuleFile::parse(packed);
  ASSERT_TRUE(file) << file.error().describe();
  EXPECT_EQ(file->source_version(), "ABC123");
}

TEST(ModuleFile, WhatIsNoModuleIsRefused) {
  EXPECT_FALSE(ModuleFile::parse({}));
  auto bytes = parts().builder.build();
  EXPECT_FALSE(ModuleFile::parse(Bytes(bytes).first(100)));
  const Elf64_Half program = ET_EXEC;
  std::memcpy(bytes.data() + offsetof(Elf64_Ehdr, e_type), &program, sizeof program);
  EXPECT_FALSE(ModuleFile::parse(bytes));
}

TEST(RelocatedModule, FillsInEveryKindOfAddress) {
  Parts p = parts();
  p.builder.relocation(p.text, 0, R_X86_64_PLT32, p.function, -4);
  p.builder.relocation(p.text, 8, R_X86_64_PC32, p.data_symbol, -4);
  p.builder.relocation(p.text, 16, R_X86_64_32S, p.own, 2);
  p.builder.relocation(p.text, 20, R_X86_64_32, p.own, 0);
  p.builder.relocation(p.text, 24, R_X86_64_NONE, p.own, 0);
  p.builder.relocation(p.data, 0, R_X86_64_64, p.own, 1);
  p.builder.relocation(p.data, 8, R_X86_64_PC64, p.function, 0);
  const auto bytes = p.builder.build();
  const auto file = ModuleFile::parse(bytes);
  ASSERT_TRUE(file);
  const auto module = relocate(*file);
  ASSERT_TRUE(module) << module.error().describe();
  EXPECT_EQ(at<std::int32_t>(*module, text_at), static_cast<std::int32_t>(function_at - 4 - text_at));
  EXPECT_EQ(at<std::int32_t>(*module, text_at + 8), static_cast<std::int32_t>(data_at + 8 - 4 - (text_at + 8)));
  EXPECT_EQ(at<std::uint32_t>(*module, text_at + 16), static_cast<std::uint32_t>(text_at + 0x10 + 2));
  EXPECT_EQ(at<std::uint32_t>(*module, text_at + 20), static_cast<std::uint32_t>(text_at + 0x10));
  EXPECT_EQ(at<std::uint32_t>(*module, text_at + 24), 0x90909090U);
  EXPECT_EQ(at<std::uint64_t>(*module, data_at), text_at + 0x10 + 1);
  EXPECT_EQ(at<std::uint64_t>(*module, data_at + 8), function_at - (data_at + 8));
  EXPECT_TRUE(module->unknown().empty());
  ASSERT_EQ(module->trampolines().size(), 1U);
  EXPECT_EQ(module->trampolines()[0], text_at + 0x30);
}

TEST(RelocatedModule, WhatIsNotKnownIsLeftAndTold) {
  Parts p = parts();
  p.builder.relocation(p.text, 40, R_X86_64_GOTPCREL, p.function, 0); // the kernel loads none of these
  p.builder.relocation(p.text, 0, R_X86_64_PLT32, p.absent, -4);
  p.builder.relocation(p.text, 8, R_X86_64_64, p.empty, 0);       // its section is nowhere in the guest
  p.builder.relocation(p.text, 16, R_X86_64_64, 1000, 0);         // no such symbol
  p.builder.relocation(p.text, 62, R_X86_64_PC32, p.function, 0); // half of it lies behind the section
  p.builder.relocation(p.text, 1 << 20, R_X86_64_64, p.function, 0);
  const auto bytes = p.builder.build();
  const auto file = ModuleFile::parse(bytes);
  ASSERT_TRUE(file);
  const auto module = relocate(*file);
  ASSERT_TRUE(module);
  std::vector<std::uint64_t> places;
  for (const RelocatedModule::Place &place : module->unknown())
    places.push_back(place.at - text_at);
  EXPECT_EQ(places, (std::vector<std::uint64_t>{0, 8, 16, 40, 62}));
  EXPECT_EQ(at<std::uint32_t>(*module, text_at), 0x90909090U);
}

TEST(RelocatedModule, TablesThatTheGuestDoesNotKeepAreReadAllTheSame) {
  Parts p = parts();
  p.builder.relocation(p.table, 0, R_X86_64_PC32, p.own, 0);
  const auto bytes = p.builder.build();
  const auto file = ModuleFile::parse(bytes);
  ASSERT_TRUE(file);
  const auto module = relocate(*file);
  ASSERT_TRUE(module);
  const LinkedSection *table = module->section("__jump_table");
  ASSERT_NE(table, nullptr);
  EXPECT_FALSE(module->is_placed(static_cast<std::size_t>(table - module->sections().data())));
  const auto distance = load<std::int32_t>(table->content, 0);
  EXPECT_EQ(table->address + static_cast<std::uint64_t>(std::int64_t{*distance}), text_at + 0x10);
}

TEST(ModuleFolder, FindsAllFilesOfAModule) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ("lararium_modules_" + std::to_string(::getpid()));
  fs::create_directories(folder / "kernel/net");
  fs::create_directories(folder / "updates");
  for (const char *name :
       {"kernel/net/nf-tables.ko.xz", "updates/nf_tables.ko", "kernel/net/tun.ko.zst", "modules.dep", "kernel/net/.ko"})
    std::ofstream(folder / name) << "x";
  const auto modules = ModuleFolder::open(folder);
  fs::remove_all(folder);
  ASSERT_TRUE(modules) << modules.error().describe();
  EXPECT_EQ(modules->size(), 3U);
  EXPECT_EQ(modules->files_of("nf_tables").size(), 2U);
  EXPECT_EQ(modules->files_of("nf-tables").size(), 2U);
  EXPECT_TRUE(modules->files_of("nf").empty());
  EXPECT_FALSE(ModuleFolder::open(folder / "kernel"));
}

} // namespace
} // namespace lararium
