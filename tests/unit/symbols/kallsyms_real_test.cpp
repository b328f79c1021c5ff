// Carves real kernels. Off unless LARARIUM_KERNELS names a directory with a folder for each kernel:
//   NAME/vmlinux     the ELF file inside a vmlinuz; symbols are not needed
//   NAME/System.map  optional, to compare with: from the kernel's package, or from nm -n of its debug vmlinux
#include "lararium/base/mapping.h"
#include "lararium/symbols/elf_note.h"
#include "lararium/symbols/kallsyms.h"
#include "lararium/symbols/linux_banner.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <elf.h>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <set>
#include <sstream>

namespace lararium {
namespace {

struct LoadedKernel {
  std::vector<std::byte> image;
  Gva base;
};

// As the boot code lays it out: each segment at its physical address. (Not at its virtual one: that of x86's per-CPU
// segment is 0 before 6.15.)
LoadedKernel load_vmlinux(const std::filesystem::path &file) {
  LoadedKernel kernel;
  const auto mapping = map_whole_file(file);
  if (!mapping)
    return kernel;
  const Bytes bytes = mapping->bytes();
  const auto header = load<Elf64_Ehdr>(bytes, 0).value();
  std::uint64_t first = UINT64_MAX;
  for (const bool measure : {true, false})
    for (unsigned i = 0; i < header.e_phnum; ++i) {
      const auto segment = load<Elf64_Phdr>(bytes, header.e_phoff + i * sizeof(Elf64_Phdr)).value();
      if (segment.p_type != PT_LOAD)
        continue;
      if (measure) {
        if (segment.p_paddr < first) {
          first = segment.p_paddr;
          kernel.base = Gva{segment.p_vaddr};
        }
        kernel.image.resize(std::max<std::size_t>(kernel.image.size(), segment.p_paddr - first + segment.p_memsz));
      } else {
        const Bytes content = clamp_subspan(bytes, segment.p_offset, segment.p_filesz);
        std::ranges::copy(content, kernel.image.begin() + static_cast<std::ptrdiff_t>(segment.p_paddr - first));
      }
    }
  return kernel;
}

template <class Function> auto timed(double &milliseconds, Function &&function) {
  const auto start = std::chrono::steady_clock::now();
  auto result = function();
  milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return result;
}

// What scripts/kallsyms.c leaves out, in any of its versions.
bool left_out(const std::string &name, char type) {
  if (std::string_view("AaUuNn").find(type) != std::string_view::npos)
    return true;
  for (const char *prefix : {"kallsyms_", ".L", "$", "__kstrtab", "__crc_", "__ksymtab", "__kcfi_typeid_", "__pi_"})
    if (name.starts_with(prefix))
      return true;
  return name == "_SDA_BASE_" || name == "_SDA2_BASE_";
}

using Names = std::set<std::pair<std::string, std::uint64_t>>;

void compare(const Kallsyms &kallsyms, const std::filesystem::path &map_file) {
  std::ifstream file(map_file);
  Names all, expected;
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::uint64_t value = 0;
    char type = 0;
    std::string name;
    if (!(fields >> std::hex >> value >> type >> name))
      continue;
    all.emplace(name, value);
    if (!left_out(name, type))
      expected.emplace(name, value);
  }
  if (all.size() < 1000)
    return; // Debian's says only where to find it
  std::size_t unknown = 0;
  for (std::size_t i = 0; i < kallsyms.size(); ++i) {
    const auto symbol = kallsyms[i];
    const std::pair<std::string, std::uint64_t> key(symbol.name, symbol.value);
    expected.erase(key);
    // scripts/mksysmap used to leave out what matches " .L", not only what starts with ".L".
    if (!all.contains(key) && symbol.name.substr(1, 1) != "L" && ++unknown <= 10)
      std::cout << "    not in System.map: " << symbol.name << " " << std::hex << symbol.value << std::dec << "\n";
  }
  std::cout << "  System.map: " << all.size() << " symbols; " << unknown << " of kallsyms not in it; "
            << expected.size() << " of it not in kallsyms\n";
  int shown = 0;
  for (const auto &[name, value] : expected)
    if (++shown <= 10)
      std::cout << "    not in kallsyms: " << name << " " << std::hex << value << std::dec << "\n";
  EXPECT_EQ(unknown, 0U);
  EXPECT_EQ(expected.size(), 0U);
}

TEST(KallsymsReal, CarvesEveryKernelGiven) {
  const char *directory = std::getenv("LARARIUM_KERNELS");
  if (directory == nullptr)
    GTEST_SKIP() << "LARARIUM_KERNELS is not set";
  std::set<std::filesystem::path> kernels;
  for (const auto &entry : std::filesystem::directory_iterator(directory))
    kernels.insert(entry.path());
  for (const auto &path : kernels) {
    SCOPED_TRACE(path.string());
    const auto kernel = load_vmlinux(path / "vmlinux");
    if (kernel.image.empty())
      continue;
    double carve_time = 0, notes_time = 0, banner_time = 0;
    const auto banner = timed(banner_time, [&] { return find_linux_banner(kernel.image); });
    const auto notes = timed(notes_time, [&] { return find_build_ids(kernel.image); });
    const auto kallsyms = timed(carve_time, [&] { return Kallsyms::carve(kernel.image, kernel.base); });
    std::cout << path.filename().string() << ": image " << (kernel.image.size() >> 20) << " MiB, banner " << banner_time
              << " ms, notes " << notes_time << " ms, carve " << carve_time << " ms\n";
    EXPECT_TRUE(banner);
    if (banner)
      std::cout << "  " << banner->text << "\n";
    for (const auto &note : notes)
      std::cout << "  build id " << note.id.hex() << " at " << std::hex << note.offset << std::dec
                << (note.in_elf_file ? ", in an ELF file" : "") << (note.beside_linux ? ", beside Linux" : "") << "\n";
    const auto *chosen = choose_build_id(notes);
    EXPECT_NE(chosen, nullptr);
    if (chosen != nullptr)
      std::cout << "  chosen: " << chosen->id.hex() << "\n";
    if (!kallsyms) {
      ADD_FAILURE() << kallsyms.error().describe();
      continue;
    }
    const auto &layout = kallsyms->layout();
    std::cout << "  " << kallsyms->size() << " symbols, " << name_of(layout.addresses)
              << (layout.addresses_last ? ", addresses last" : ", addresses first") << ", markers of "
              << int{layout.marker_size} << (layout.two_byte_lengths ? ", two-byte lengths" : ", one-byte lengths")
              << ", between markers and tokens " << layout.token_table - layout.markers << " bytes, index at +"
              << layout.token_index - layout.token_table << (kallsyms->has_data_symbols() ? ", with data" : ", no data")
              << "\n";
    compare(*kallsyms, path / "System.map");
  }
}

} // namespace
} // namespace lararium
