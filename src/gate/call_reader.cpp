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

std::optional<std::uint64_t> CallReader::number(Gva object, std::string_view type, std::string_view member) const {
  const auto field = kernel_->types().field(type, member);
  return field && object ? kernel_->read_field(object, *field) : std::nullopt;
}

std::optional<Gva> CallReader::pointer(Gva object, std::string_view type, std::string_view member) const {
  const auto value = number(object, type, member);
  return value && kernel_->is_kernel_address(Gva{*value}) ? std::optional(Gva{*value}) : std::nullopt;
}

std::string CallReader::text(Gva address) const {
  return kernel_->is_kernel_address(address) ? kernel_->space().read_c_string(address, text_limit).value_or("")
                                             : std::string();
}

std::string CallReader::path(Gva path) const {
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
  const auto table = pointer(mm, "mm_struct", "pgd");
  const auto physical = table ? kernel_->space().translate(*table) : std::nullopt;
  if (!physical)
    return strings;
  std::vector<std::byte> bytes(strings_bytes);
  const std::size_t got =
      read_uncached(kernel_->memory(), {physical->address.page(), kernel_->location().root.levels}, begin, bytes);
  for (std::size_t at = 0; at < got && strings.size() < std::min(count, strings_count);) {
    const auto text = c_string(Bytes(bytes).first(got), at);
    strings.emplace_back(text);
    at += text.size() + 1;
  }
  return strings;
}

} // namespace lararium::gate
