#include "samples.h"

#include <algorithm>
#include <bit>
#if LARARIUM_LZO
#include <lzo/lzo1x.h>
#endif
#include <snappy-c.h>
#include <zlib.h>
#include <zstd.h>

namespace lararium::samples {
namespace {

void pad(Image &image, std::size_t to) { image.resize((image.size() + to - 1) / to * to); }

Image pack(Packing packing, const Image &plain) {
  Image out(2 * plain.size() + 1024);
  const auto *input = reinterpret_cast<const unsigned char *>(plain.data());
  auto *output = reinterpret_cast<unsigned char *>(out.data());
  std::size_t size = out.size();
  switch (packing) {
  case Packing::none: return plain;
  case Packing::zlib: compress2(output, &size, input, plain.size(), 1); break;
  case Packing::lzo: {
#if LARARIUM_LZO
    Image work(LZO1X_1_MEM_COMPRESS);
    lzo1x_1_compress(input, plain.size(), output, &size, work.data());
#endif
    break;
  }
  case Packing::snappy:
    snappy_compress(reinterpret_cast<const char *>(input), plain.size(), reinterpret_cast<char *>(output), &size);
    break;
  case Packing::zstd: size = ZSTD_compress(output, size, input, plain.size(), 1); break;
  }
  out.resize(size);
  return out;
}

std::uint32_t flag_of(Packing packing) {
  constexpr std::uint32_t flags[] = {0, 1, 2, 4, 0x20};
  return flags[static_cast<std::size_t>(packing)];
}

Image bitmap(const std::vector<std::uint64_t> &pages, std::size_t size) {
  Image image(size);
  for (const std::uint64_t number : pages)
    image[number / 8] |= std::byte{1} << number % 8;
  return image;
}

} // namespace

void append(Image &image, Bytes bytes) { image.insert(image.end(), bytes.begin(), bytes.end()); }

Image page(std::uint64_t number) {
  Image image(page_size);
  for (std::size_t i = 0; i < image.size(); ++i)
    image[i] = static_cast<std::byte>(1 + (i / 64 * 7 + number * 31) % 251);
  return image;
}

Image note(std::string_view name, std::uint32_t type, Bytes content) {
  Image image;
  append_value(image, static_cast<std::uint32_t>(name.size() + 1));
  append_value(image, static_cast<std::uint32_t>(content.size()));
  append_value(image, type);
  append(image, bytes_of(name));
  image.emplace_back();
  pad(image, 4);
  append(image, content);
  pad(image, 4);
  return image;
}

Image prstatus_note(std::uint64_t rip, std::uint64_t rax) {
  Image content(336);
  put_value(content, 112 + 10 * 8, rax);
  put_value(content, 112 + 16 * 8, rip);
  put_value<std::uint64_t>(content, 112 + 17 * 8, 0x33);
  return note("CORE", 1, content);
}

Image qemu_note(std::uint64_t rip, std::uint64_t cr3, std::uint64_t kernel_gs, bool with_kernel_gs) {
  Image content(with_kernel_gs ? 440 : 432);
  put_value<std::uint32_t>(content, 0, 1);
  put_value(content, 4, static_cast<std::uint32_t>(content.size()));
  put_value<std::uint64_t>(content, 8 + 1 * 8, 0xbb);  // rbx
  put_value<std::uint64_t>(content, 8 + 15 * 8, 0x15); // r15
  put_value(content, 8 + 16 * 8, rip);
  put_value<std::uint32_t>(content, 152, 0x10);                             // cs
  put_value<std::uint64_t>(content, 152 + 9 * 24 + 16, 0xfffffe0000000000); // idt
  put_value<std::uint64_t>(content, 152 + 240 + 0 * 8, 0x80050033);
  put_value(content, 152 + 240 + 3 * 8, cr3);
  if (with_kernel_gs)
    put_value(content, 432, kernel_gs);
  return note("QEMU", 0, content);
}

Image elf(const std::vector<Load> &loads, Bytes notes, Bytes content, const ElfOptions &options) {
  const std::size_t count = loads.size() + 1;
  std::size_t offset = sizeof(Elf64_Ehdr) + count * sizeof(Elf64_Phdr);
  Elf64_Ehdr header{};
  std::copy_n(ELFMAG, SELFMAG, header.e_ident);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_type = options.type;
  header.e_machine = options.machine;
  header.e_phoff = sizeof(Elf64_Ehdr);
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = static_cast<Elf64_Half>(options.extended_count ? PN_XNUM : count);
  Elf64_Shdr section{};
  if (options.extended_count) {
    header.e_shoff = offset;
    header.e_shnum = 1;
    section.sh_info = static_cast<Elf64_Word>(count);
    offset += sizeof(section);
  }
  Image image;
  append_value(image, header);
  Elf64_Phdr segment{};
  segment.p_type = PT_NOTE;
  segment.p_offset = offset;
  segment.p_filesz = notes.size();
  append_value(image, segment);
  offset += notes.size();
  for (const Load &load : loads) {
    segment = {};
    segment.p_type = PT_LOAD;
    segment.p_paddr = load.physical;
    segment.p_vaddr = load.virtual_address;
    segment.p_offset = load.offset == UINT64_MAX ? UINT64_MAX : load.offset + offset;
    segment.p_filesz = load.file_size;
    segment.p_memsz = load.memory_size;
    append_value(image, segment);
  }
  if (options.extended_count)
    append_value(image, section);
  append(image, notes);
  append(image, content);
  return image;
}

Image kdump(const KdumpOptions &options) {
  constexpr std::size_t block = page_size;
  const std::uint64_t max_mapnr = options.max_mapnr != 0 ? options.max_mapnr : options.present.back() + 1;
  const std::size_t bitmap_size = ((max_mapnr + 7) / 8 + block - 1) / block * block;
  constexpr std::size_t sub_size = 104;
  const std::size_t notes_at = block + sub_size, info_at = notes_at + options.notes.size();
  const std::size_t sub_blocks = (sub_size + options.notes.size() + options.vmcoreinfo.size() + block - 1) / block;

  Image image(block * (1 + sub_blocks));
  std::memcpy(image.data(), "KDUMP   ", 8);
  put_value(image, 8, options.version);
  std::memcpy(image.data() + 12 + 4 * 65, "x86_64", 6);
  put_value(image, 424, options.status | flag_of(options.packing));
  put_value<std::int32_t>(image, 428, block);
  put_value(image, 432, static_cast<std::int32_t>(sub_blocks));
  put_value(image, 436, static_cast<std::uint32_t>(2 * bitmap_size / block));
  put_value(image, 440, static_cast<std::uint32_t>(max_mapnr));
  put_value(image, block + 8, options.dump_level);
  put_value<std::int32_t>(image, block + 12, options.split_end != 0);
  put_value(image, block + 80, options.split_start);
  put_value(image, block + 88, options.split_end);
  put_value(image, block + 96, max_mapnr);
  if (!options.vmcoreinfo.empty()) {
    put_value<std::uint64_t>(image, block + 32, info_at);
    put_value<std::uint64_t>(image, block + 40, options.vmcoreinfo.size());
    std::memcpy(image.data() + info_at, options.vmcoreinfo.data(), options.vmcoreinfo.size());
  }
  if (!options.notes.empty()) {
    put_value<std::uint64_t>(image, block + 48, notes_at);
    put_value<std::uint64_t>(image, block + 56, options.notes.size());
    std::memcpy(image.data() + notes_at, options.notes.data(), options.notes.size());
  }
  append(image, bitmap(options.present, bitmap_size));
  append(image, bitmap(options.stored, bitmap_size));

  std::vector<std::uint64_t> here;
  for (const std::uint64_t number : options.stored)
    if (options.split_end == 0 || (number >= options.split_start && number < options.split_end))
      here.push_back(number);
  std::uint64_t data_at = image.size() + here.size() * 24;
  Image data;
  for (const std::uint64_t number : here) {
    const Image packed = pack(options.packing, page(number));
    append_value(image, data_at + data.size());
    append_value(image, static_cast<std::uint32_t>(packed.size()));
    append_value(image, flag_of(options.packing));
    append_value(image, std::uint64_t{0});
    append(data, packed);
  }
  append(image, data);
  return image;
}

Image flatten(const Image &image, std::size_t record, bool with_end) {
  Image flat(4096);
  std::memcpy(flat.data(), "makedumpfile", 12);
  put_value(flat, 16, std::byteswap(std::uint64_t{1}));
  put_value(flat, 24, std::byteswap(std::uint64_t{1}));
  const std::size_t count = (image.size() + record - 1) / record;
  const auto append_record = [&](std::size_t i) {
    const Bytes bytes = clamp_subspan(image, i * record, record);
    append_value(flat, std::byteswap(std::uint64_t{i * record}));
    append_value(flat, std::byteswap(std::uint64_t{bytes.size()}));
    append(flat, bytes);
  };
  for (std::size_t i = 0; i < count; i += 2)
    append_record(i);
  for (std::size_t i = 1; i < count; i += 2)
    append_record(i);
  if (with_end) {
    append_value(flat, UINT64_MAX);
    append_value(flat, UINT64_MAX);
  }
  return flat;
}

Image lime(const std::vector<PageRange> &ranges) {
  Image image;
  for (const PageRange &range : ranges) {
    append_value(image, std::uint32_t{0x4c694d45});
    append_value(image, std::uint32_t{1});
    append_value(image, range.first * page_size);
    append_value(image, (range.first + range.count) * page_size - 1);
    append_value(image, std::uint64_t{0});
    for (std::uint64_t i = 0; i < range.count; ++i)
      append(image, page(range.first + i));
  }
  return image;
}

Image avml(const std::vector<PageRange> &ranges) {
  constexpr std::uint64_t pages_in_chunk = 16;
  Image image;
  for (const PageRange &range : ranges) {
    append_value(image, std::uint32_t{0x4c4d5641});
    append_value(image, std::uint32_t{2});
    append_value(image, range.first * page_size);
    append_value(image, (range.first + range.count) * page_size - 1);
    append_value(image, std::uint64_t{0});
    const std::size_t stream_at = image.size();
    append(image, bytes_of(std::string_view("\xff\x06\x00\x00sNaPpY", 10)));
    for (std::uint64_t i = 0; i < range.count; i += pages_in_chunk) {
      Image plain;
      for (std::uint64_t j = i; j < std::min(i + pages_in_chunk, range.count); ++j)
        append(plain, page(range.first + j));
      // Every second chunk uncompressed.
      const bool packed = i / pages_in_chunk % 2 == 0;
      const Image data = packed ? pack(Packing::snappy, plain) : plain;
      append_value(image, static_cast<std::uint32_t>((data.size() + 4) << 8 | (packed ? 0 : 1)));
      append_value(image, std::uint32_t{0}); // a checksum nobody looks at
      append(image, data);
    }
    append_value(image, std::uint64_t{image.size() - stream_at});
  }
  return image;
}

bool has_page(const PhysicalMemory &memory, std::uint64_t address, std::uint64_t number) {
  Image bytes(page_size);
  return memory.read(Gpa{address}, bytes) && bytes == page(number);
}

bool has_zeros(const PhysicalMemory &memory, std::uint64_t address, std::size_t size) {
  Image bytes(size, std::byte{1});
  return memory.read(Gpa{address}, bytes) && bytes == Image(size);
}

bool unreadable(const PhysicalMemory &memory, std::uint64_t address) {
  std::byte byte;
  return !memory.read(Gpa{address}, {&byte, 1});
}

bool mentions(const Target &target, std::string_view text) {
  return std::ranges::any_of(target.limitations,
                             [&](const std::string &sentence) { return sentence.find(text) != std::string::npos; });
}

} // namespace lararium::samples
