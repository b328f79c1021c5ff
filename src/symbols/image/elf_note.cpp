#include "lararium/symbols/elf_note.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <elf.h>
#include <optional>
#include <string_view>

namespace lararium {
namespace {

using namespace std::string_view_literals;

constexpr std::uint32_t word_of(std::string_view text) {
  return static_cast<std::uint32_t>(static_cast<unsigned char>(text[0])) |
         static_cast<std::uint32_t>(static_cast<unsigned char>(text[1])) << 8 |
         static_cast<std::uint32_t>(static_cast<unsigned char>(text[2])) << 16 |
         static_cast<std::uint32_t>(static_cast<unsigned char>(text[3])) << 24;
}
constexpr std::uint32_t gnu_owner = word_of("GNU\0"sv);
constexpr std::uint32_t elf_magic = word_of(ELFMAG);
constexpr std::size_t max_elf_distance = 64 * 1024; // of a note from the start of its file: a vDSO has 1 to 4 pages

struct Note {
  Elf64_Nhdr header{};
  std::size_t descriptor = 0; // offset in the image
  std::size_t end = 0;
};

constexpr std::size_t pad(std::size_t size) { return (size + 3) & ~std::size_t{3}; }

std::optional<Note> note_at(Bytes image, std::size_t offset) {
  const auto header = load<Elf64_Nhdr>(image, offset);
  if (!header || header->n_namesz > 256 || header->n_descsz > 65536)
    return std::nullopt;
  const std::size_t descriptor = offset + sizeof(Elf64_Nhdr) + pad(header->n_namesz);
  return Note{*header, descriptor, descriptor + pad(header->n_descsz)};
}

bool kernel_owns(Bytes image, std::size_t offset) {
  const auto note = note_at(image, offset);
  if (!note)
    return false;
  const auto owner = c_string(image, offset + sizeof(Elf64_Nhdr), note->header.n_namesz);
  return note->header.n_namesz == owner.size() + 1 && (owner == "Linux" || owner == "Xen");
}

// The note that ends at `offset`, seen from its owner: notes cannot be walked backwards, but those of the kernel are
// small.
bool kernel_owns_before(Bytes image, std::size_t offset) {
  for (std::size_t back = sizeof(Elf64_Nhdr) + 4; back <= 128 && back <= offset; back += 4)
    if (kernel_owns(image, offset - back) && note_at(image, offset - back)->end == offset)
      return true;
  return false;
}

bool elf_covers(Bytes file, std::size_t offset) {
  const auto covers = [&]<class Header, class Segment>() {
    const auto header = load<Header>(file, 0);
    if (!header || header->e_phentsize != sizeof(Segment) || header->e_phnum > 64)
      return false;
    for (unsigned i = 0; i < header->e_phnum; ++i)
      if (const auto segment = load<Segment>(file, header->e_phoff + i * sizeof(Segment));
          segment && segment->p_type == PT_NOTE && offset >= segment->p_offset &&
          offset - segment->p_offset < segment->p_filesz)
        return true;
    return false;
  };
  const auto kind = load<std::uint8_t>(file, EI_CLASS);
  return kind == ELFCLASS64 ? covers.template operator()<Elf64_Ehdr, Elf64_Phdr>()
                            : covers.template operator()<Elf32_Ehdr, Elf32_Phdr>();
}

bool in_elf_file(Bytes image, std::size_t offset) {
  for (std::size_t back = 4; back <= max_elf_distance && back <= offset; back += 4)
    if (load<std::uint32_t>(image, offset - back) == elf_magic && elf_covers(image.subspan(offset - back), back))
      return true;
  return false;
}

// The next offset, a multiple of 4 from `from` on, at which `word` lies; the image's size where there is none. Compares
// blocks without a branch inside, which the compiler turns into vector code.
std::size_t find_word(Bytes image, std::size_t from, std::uint32_t word) {
  constexpr std::size_t block = 16;
  std::size_t at = from;
  for (; image.size() - at >= block * 4; at += block * 4) {
    std::array<std::uint32_t, block> words;
    std::memcpy(words.data(), image.data() + at, sizeof words);
    std::uint32_t hits = 0;
    for (const auto candidate : words)
      hits |= candidate == word ? 1U : 0U;
    if (hits != 0)
      break;
  }
  for (; image.size() - at >= 4; at += 4)
    if (load<std::uint32_t>(image, at) == word)
      return at;
  return image.size();
}

} // namespace

std::vector<BuildIdNote> find_build_ids(Bytes image, std::size_t limit) {
  std::vector<BuildIdNote> found;
  for (std::size_t owner = 0; found.size() < limit;) {
    owner = find_word(image, owner, gnu_owner);
    if (owner == image.size())
      break;
    const std::size_t name = owner;
    owner += 4;
    if (name < sizeof(Elf64_Nhdr))
      continue;
    const std::size_t start = name - sizeof(Elf64_Nhdr);
    const auto note = note_at(image, start);
    if (!note || note->header.n_namesz != 4 || note->header.n_type != NT_GNU_BUILD_ID || note->header.n_descsz < 8)
      continue;
    const Bytes id = clamp_subspan(image, note->descriptor, note->header.n_descsz);
    BuildIdNote entry;
    if (id.size() != note->header.n_descsz || id.size() > entry.id.bytes.size())
      continue;
    std::memcpy(entry.id.bytes.data(), id.data(), id.size());
    entry.id.size = static_cast<std::uint8_t>(id.size());
    entry.offset = note->descriptor;
    entry.in_elf_file = in_elf_file(image, start);
    entry.beside_linux = kernel_owns(image, note->end) || kernel_owns_before(image, start);
    found.push_back(entry);
  }
  return found;
}

const BuildIdNote *choose_build_id(const std::vector<BuildIdNote> &notes, const BuildId &expected) {
  const auto first = [&](auto &&accept) -> const BuildIdNote * {
    const auto note = std::ranges::find_if(notes, accept);
    return note == notes.end() ? nullptr : &*note;
  };
  if (expected.size != 0)
    return first([&](const BuildIdNote &note) { return note.id == expected; });
  if (const auto *note = first([](const BuildIdNote &n) { return !n.in_elf_file && n.beside_linux; }))
    return note;
  return first([](const BuildIdNote &n) { return !n.in_elf_file; });
}

} // namespace lararium
