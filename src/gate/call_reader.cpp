#include "lararium/gate/hook.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::gate {
namespace {

constexpr std::size_t text_limit = 4096, strings_bytes = 8192;
constexpr std::uint64_t strings_count = 64;

} // namespace

Result<std::vector<HookPoint>> points_at(const linux_guest::Kernel &kernel, std::vector<HookPoint> functions) {
  std::string missing;
  std::erase_if(functions, [&](const HookPoint &point) {
    if (kernel.symbol(point.function))
      return false;
    missing += (missing.empty() ? "" : ", ") + point.function;
    return true;
  });
  if (functions.empty())
    return fail(ErrorCode::unsupported, fmt::format("the kernel does not have {}", missing));
  return functions;
}

Result<CallReader> CallReader::create(const linux_guest::Kernel &kernel) {
  TRY_ASSIGN(auto paths, linux_guest::PathResolver::create(kernel));
  return CallReader(kernel, std::move(paths));
}

CallReader CallReader::of_kept(std::span<const Kept> kept) const {
  CallReader reader = *this;
  reader.kept_ = kept;
  return reader;
}

const Kept *CallReader::kept(KeepKind kind, Gva key) const {
  const auto found =
      std::ranges::find_if(*kept_, [&](const Kept &each) { return each.kind == kind && each.key == key; });
  return found == kept_->end() ? nullptr : &*found;
}

bool CallReader::bytes(Gva address, std::span<std::byte> out) const {
  if (!kept_)
    return kernel_->is_kernel_address(address) && kernel_->space().read(address, out);
  for (const Kept &each : *kept_)
    if (each.kind == KeepKind::bytes && address >= each.key && address - each.key <= each.bytes.size() &&
        each.bytes.size() - (address - each.key) >= out.size()) {
      std::ranges::copy(Bytes(each.bytes).subspan(address - each.key, out.size()), out.begin());
      return true;
    }
  return false;
}

std::optional<std::uint64_t> CallReader::number(Gva object, std::string_view type, std::string_view member) const {
  const auto field = kernel_->types().field(type, member);
  if (!field || !object)
    return std::nullopt;
  if (!kept_)
    return kernel_->read_field(object, *field);
  std::uint64_t value = 0;
  const std::size_t size = std::min<std::size_t>(field->size, sizeof value);
  if (!bytes(object + field->offset, writable_bytes_of(value).first(size)))
    return std::nullopt;
  if (field->bit_size != 0)
    value = value >> (field->bit_offset - 8 * field->offset) & ((std::uint64_t{1} << field->bit_size) - 1);
  return value;
}

std::optional<Gva> CallReader::pointer(Gva object, std::string_view type, std::string_view member) const {
  const auto value = number(object, type, member);
  return value && kernel_->is_kernel_address(Gva{*value}) ? std::optional(Gva{*value}) : std::nullopt;
}

std::string CallReader::text(Gva address) const {
  if (kept_) {
    const Kept *found = kept(KeepKind::text, address);
    return found != nullptr ? std::string(c_string(found->bytes, 0)) : std::string();
  }
  return kernel_->is_kernel_address(address) ? kernel_->space().read_c_string(address, text_limit).value_or("")
                                             : std::string();
}

std::string CallReader::path(Gva path) const {
  if (kept_) {
    const Kept *found = kept(KeepKind::path, path);
    return found != nullptr ? std::string(c_string(found->bytes, 0)) : std::string();
  }
  const auto resolved = kernel_->is_kernel_address(path) ? paths_.resolve(path) : std::nullopt;
  return resolved ? resolved->text : std::string();
}

std::string CallReader::path_of_file(Gva file) const {
  const auto field = kernel_->types().field("file", "f_path");
  return field && kernel_->is_kernel_address(file) ? path(file + field->offset) : std::string();
}

std::string CallReader::path_below(Gva directory_path, Gva dentry) const {
  if (!kernel_->is_kernel_address(dentry))
    return {};
  if (kept_) {
    const Kept *found = kept(KeepKind::path_below, dentry);
    return found != nullptr ? std::string(c_string(found->bytes, 0)) : std::string();
  }
  // The dentry lies in the same mount as the directory.
  const auto mount = pointer(directory_path, "path", "mnt");
  const auto resolved = mount ? paths_.resolve(*mount, dentry) : paths_.within_filesystem(dentry);
  return resolved ? resolved->text : std::string();
}

std::optional<std::int64_t> CallReader::enumerator(std::string_view name) const {
  return kernel_->types().enumerator(name);
}

std::vector<std::string> CallReader::user_strings(Gva mm, Gva begin, std::uint64_t count) const {
  std::vector<std::string> strings;
  const auto split = [&](Bytes bytes) {
    for (std::size_t at = 0; at < bytes.size() && strings.size() < std::min(count, strings_count);) {
      const auto text = c_string(bytes, at);
      strings.emplace_back(text);
      at += text.size() + 1;
    }
  };
  if (kept_) {
    if (const Kept *found = kept(KeepKind::user_arguments, begin))
      split(found->bytes);
    return strings;
  }
  const auto table = pointer(mm, "mm_struct", "pgd");
  const auto physical = table ? kernel_->space().translate(*table) : std::nullopt;
  if (!physical)
    return strings;
  std::vector<std::byte> bytes(strings_bytes);
  const std::size_t got =
      read_uncached(kernel_->memory(), {physical->address.page(), kernel_->location().root.levels}, begin, bytes);
  split(Bytes(bytes).first(got));
  return strings;
}

} // namespace lararium::gate
