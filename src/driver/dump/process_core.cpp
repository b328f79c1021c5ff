// The core of one process, laid out as Linux' fs/binfmt_elf.c does, save that the program headers come last: only then
// is it known which pages were there.
#include "elf_writer.h"
#include "notes.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium {
namespace dump {
namespace {

constexpr std::size_t thread_limit = 65536;
constexpr std::size_t file_limit = 65536;
// Pages that are asked for one by one: 1 TiB of them, a minute's work.
constexpr std::uint64_t page_limit = (std::uint64_t{1} << 40) / page_size;
// More runs of present pages than this, and those that follow within one segment are stored as one, with zeros for what
// is not present.
constexpr std::size_t segment_limit = 1'000'000;

// struct elf_prpsinfo of x86-64
struct Prpsinfo {
  char state = 0, state_name = 0, zombie = 0;
  std::int8_t nice = 0;
  std::uint32_t padding = 0;
  std::uint64_t flags = 0;
  std::uint32_t uid = 0, gid = 0;
  std::int32_t pid = 0, parent = 0, process_group = 0, session = 0;
  char name[16] = {};
  char arguments[80] = {};
};
static_assert(sizeof(Prpsinfo) == 136);

template <std::size_t size> void copy_text(char (&out)[size], std::string_view text) {
  std::ranges::copy(text.substr(0, size - 1), out);
}

void append_thread(std::vector<std::byte> &notes, const ProcessCore &process, const ThreadState &thread) {
  Prstatus status = make_prstatus(thread.registers);
  status.pid = thread.thread_id;
  status.parent = process.parent;
  status.process_group = process.process_group;
  status.session = process.session;
  status.signal_info[0] = static_cast<std::uint32_t>(thread.signal);
  status.current_signal = static_cast<std::uint16_t>(thread.signal);
  status.orig_rax = static_cast<std::uint64_t>(thread.orig_rax);
  append_note(notes, "CORE", note_prstatus, std::as_bytes(std::span(&status, 1)));
}

void append_process(std::vector<std::byte> &notes, const ProcessCore &process) {
  constexpr std::string_view states = "RSDTZW";
  Prpsinfo info;
  info.state_name = process.state;
  const auto state = states.find(process.state);
  info.state = state == states.npos ? char{0} : static_cast<char>(state);
  info.zombie = process.state == 'Z';
  info.nice = process.nice;
  info.uid = process.uid;
  info.gid = process.gid;
  info.pid = process.pid;
  info.parent = process.parent;
  info.process_group = process.process_group;
  info.session = process.session;
  copy_text(info.name, process.command);
  copy_text(info.arguments, process.arguments);
  append_note(notes, "CORE", note_prpsinfo, std::as_bytes(std::span(&info, 1)));
}

// The count, the page size, {start, end, offset in pages} for each, then the names.
void append_files(std::vector<std::byte> &notes, const std::vector<ProcessFile> &files) {
  std::vector<std::uint64_t> numbers = {files.size(), page_size};
  std::string names;
  for (const ProcessFile &file : files) {
    numbers.insert(numbers.end(), {file.base.value, file.base.value + file.size, file.file_offset / page_size});
    names += file.path.substr(0, file.path.find('\0'));
    names += '\0';
  }
  std::vector<std::byte> content;
  const auto append = [&](Bytes bytes) { content.insert(content.end(), bytes.begin(), bytes.end()); };
  append(std::as_bytes(std::span(numbers)));
  append(bytes_of(names));
  append_note(notes, "CORE", note_file, content);
}

std::vector<std::byte> process_notes(const ProcessCore &process) {
  std::vector<std::byte> notes;
  if (!process.threads.empty())
    append_thread(notes, process, process.threads.front());
  append_process(notes, process);
  if (!process.auxiliary_vector.empty())
    append_note(notes, "CORE", note_auxv, process.auxiliary_vector);
  if (!process.files.empty())
    append_files(notes, process.files);
  for (std::size_t i = 1; i < process.threads.size(); ++i)
    append_thread(notes, process, process.threads[i]);
  return notes;
}

Result<void> check(const ProcessCore &process) {
  if (process.threads.size() > thread_limit || process.files.size() > file_limit ||
      process.segments.size() > segment_limit)
    return fail(ErrorCode::corrupt, "the process has more threads, files or segments than any process");
  for (std::size_t i = 0; i < process.segments.size(); ++i) {
    const ProcessSegment &segment = process.segments[i];
    if (segment.base.page_offset() != 0 || segment.size % page_size != 0 ||
        segment.size > UINT64_MAX - segment.base.value)
      return fail(ErrorCode::corrupt,
                  fmt::format("the segment at {:#x} does not consist of pages", segment.base.value));
    if (i != 0 && process.segments[i - 1].base.value + process.segments[i - 1].size > segment.base.value)
      return fail(ErrorCode::corrupt,
                  fmt::format("the segment at {:#x} overlaps the one before it", segment.base.value));
  }
  return {};
}

// Writes the pages of one segment that are there, and adds a program header for each run of them. Absent pages get
// none: gdb takes a header without bytes in the file for zeros, which pages that were swapped out are not.
class SegmentWriter {
public:
  SegmentWriter(const ProcessReader &reader, Output &output, Copier &copier, std::vector<Elf64_Phdr> &headers)
      : reader_(reader), output_(output), copier_(copier), headers_(headers) {}

  [[nodiscard]] Result<void> write(const ProcessSegment &segment) {
    const Gva end = segment.base + segment.size;
    bool in_run = false;
    for (Gva page = segment.base; page < end;) {
      if (++pages_ > page_limit)
        return fail(ErrorCode::corrupt, "the process has more memory than can be looked through");
      const ProcessPage answer = reader_(page, buffer_);
      std::uint64_t size = page_size;
      if (!answer.present) {
        size = std::clamp(answer.absent & ~page_mask, page_size, end - page);
        unreadable_ += size;
        if (in_run && headers_.size() >= segment_limit && size == page_size)
          std::ranges::fill(buffer_, std::byte{0});
        else
          in_run = false;
      } else if (!in_run) {
        begin(segment, page);
        in_run = true;
      }
      if (in_run) {
        headers_.back().p_memsz += size;
        headers_.back().p_filesz += size;
        TRY(copier_.copy(buffer_));
      } else {
        TRY(copier_.pass(size));
      }
      page += size;
    }
    return {};
  }
  [[nodiscard]] std::uint64_t unreadable() const { return unreadable_; }

private:
  void begin(const ProcessSegment &segment, Gva address) {
    Elf64_Phdr header{};
    header.p_type = PT_LOAD;
    header.p_flags = (segment.readable ? PF_R : 0U) | (segment.writable ? PF_W : 0U) | (segment.executable ? PF_X : 0U);
    header.p_offset = output_.position();
    header.p_vaddr = address.value;
    header.p_align = page_size;
    headers_.push_back(header);
  }

  const ProcessReader &reader_;
  Output &output_;
  Copier &copier_;
  std::vector<Elf64_Phdr> &headers_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(page_size);
  std::uint64_t pages_ = 0, unreadable_ = 0;
};

} // namespace
} // namespace dump

Result<WriteSummary> write_process_core(const ProcessCore &process, const ProcessReader &reader,
                                        const std::string &path, const WriteOptions &options) {
  using namespace dump;
  TRY(check(process));
  TRY_ASSIGN(Output output, Output::create(path, options.overwrite));
  const std::vector<std::byte> notes = process_notes(process);
  std::vector<Elf64_Phdr> headers(1);
  headers[0].p_type = PT_NOTE;
  headers[0].p_offset = sizeof(Elf64_Ehdr);
  headers[0].p_filesz = notes.size();
  headers[0].p_align = 4;
  TRY(output.skip(sizeof(Elf64_Ehdr)));
  TRY(output.write(notes));
  TRY(output.skip((page_size - output.position() % page_size) % page_size));

  std::uint64_t total = 0;
  for (const ProcessSegment &segment : process.segments)
    total += segment.size;
  Copier copier(output, options, total);
  SegmentWriter writer(reader, output, copier, headers);
  for (const ProcessSegment &segment : process.segments)
    TRY(writer.write(segment));

  const CoreHeaders encoded = make_core_headers(headers, output.position());
  TRY(output.write(encoded.segments));
  TRY(output.rewrite(0, std::as_bytes(std::span(&encoded.file, 1))));
  TRY(copier.finish());
  TRY(output.commit());
  return WriteSummary{total, copier.stored(), writer.unreadable()};
}

} // namespace lararium
