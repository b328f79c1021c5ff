#include "lararium/driver/dump.h"

#include "formats.h"
#include "memory.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>

namespace lararium {
namespace dump {

std::string human_size(std::uint64_t bytes) {
  constexpr std::array units = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  std::uint64_t value = bytes;
  for (; value >= 10240 && unit + 1 < units.size(); ++unit)
    value /= 1024;
  return fmt::format("{} {}", value, units[unit]);
}

void set_vcpus(Target &target, std::vector<VcpuRegisters> vcpus) {
  if (vcpus.empty())
    target.limitations.push_back("the dump has no registers of the virtual CPUs");
  else
    target.vcpus = std::make_unique<FixedVcpus>(std::move(vcpus));
}

namespace {

// Files that people try, which hold memory in a form that is not read here.
struct OtherFormat {
  std::size_t offset;
  std::string_view magic;
  std::string_view what;
};
constexpr OtherFormat other_formats[] = {
    {0, "\x1f\x8b", "compressed with gzip; decompress it first"},
    {0,
     "\xfd"
     "7zXZ",
     "compressed with xz; decompress it first"},
    {0, "\x28\xb5\x2f\xfd", "compressed with zstd; decompress it first"},
    {0, "BZh", "compressed with bzip2; decompress it first"},
    {0, "\x04\x22\x4d\x18", "compressed with lz4; decompress it first"},
    {0, "PK\x03\x04", "a ZIP archive; unpack it first"},
    {257, "ustar", "a tar archive; unpack it first"},
    {0, "QEVM", "QEMU's migration stream, not a dump; use dump-guest-memory"},
    {0, "LibvirtQemud", "libvirt's saved machine, not a dump; use `virsh dump --memory-only`"},
    {0, "QFI\xfb", "a qcow2 disk image, not a dump"},
    {0, "PAGEDU64", "a Windows crash dump, which is not supported"},
    {0, "PAGEDUMP", "a Windows crash dump, which is not supported"},
    {0, "HIBR", "a Windows hibernation file, which is not supported"},
    {0, "hibr", "a Windows hibernation file, which is not supported"},
    {0, "DISKDUMP", "an old diskdump file, which is not supported"},
};

// A flat image has no magic at all, so what is surely something else is refused first.
constexpr std::uint64_t smallest_flat_image = std::uint64_t{1} << 20;

Result<Target> open_file(std::shared_ptr<const DumpFile> file) {
  if (file->size() == 0)
    return fail(ErrorCode::corrupt, file->flattened() ? "a flattened dump without content" : "the file is empty");
  if (is_elf(*file))
    return open_elf(std::move(file));
  if (is_kdump(*file))
    return open_kdump(std::move(file));
  if (is_lime(*file))
    return open_lime(std::move(file));
  if (is_avml(*file))
    return open_avml(std::move(file));
  for (const OtherFormat &other : other_formats) {
    const Bytes start = clamp_subspan(file->view(0, 512), other.offset, other.magic.size());
    if (std::ranges::equal(start, bytes_of(other.magic)))
      return fail(ErrorCode::unsupported, std::string(other.what));
  }
  if (file->flattened() || file->size() < smallest_flat_image || file->size() % page_size != 0)
    return fail(ErrorCode::corrupt, "not a memory dump: no known format, and no flat image of whole pages");
  return open_flat(std::move(file));
}

Result<Target> open_named(const std::shared_ptr<const DumpFile> &file, const std::string &name) {
  auto target = open_file(file);
  if (!target)
    return wrap(std::move(target).error(), name);
  target->identity.name = name.substr(name.rfind('/') + 1);
  return target;
}

} // namespace

Result<Target> open_flat(std::shared_ptr<const DumpFile> file) {
  constexpr std::uint64_t smallest_low_memory_end = std::uint64_t{2} << 30; // of QEMU's machines, where RAM is split
  Target target;
  target.identity.kind = TargetKind::dump;
  target.identity.architecture = Architecture::x86_64; // nothing tells
  target.identity.memory_access = "flat image";
  const std::uint64_t size = std::min(file->size(), physical_limit);
  if (size > smallest_low_memory_end)
    target.limitations.push_back(
        "a flat image does not tell where the hole below 4 GiB is; the file's offsets are taken as guest-physical "
        "addresses, which is wrong if the image was made of RAM alone");
  set_vcpus(target, {});
  target.memory =
      std::make_unique<ExtentMemory>(file, ExtentMap({{0, size, 0}}), std::vector{RamRange{Gpa{0}, size, {}}});
  return target;
}

} // namespace dump

Result<Target> open_dump(const std::string &path) {
  TRY_ASSIGN(const auto file, dump::DumpFile::open(path));
  return dump::open_named(file, path);
}

Result<Target> open_dump_image(Bytes image, const std::string &name) {
  auto file = dump::DumpFile::from_image(image);
  if (!file)
    return wrap(std::move(file).error(), name);
  return dump::open_named(*file, name);
}

} // namespace lararium
