#include "table.h"

#include "text.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

constexpr std::string_view gap = "  ";

} // namespace

std::string &Table::begin_cell() {
  begun_ = text_.size();
  return text_;
}

Table &Table::end_cell(Style style) {
  Cell cell{begun_, text_.size() - begun_, 0, style};
  cell.width = display_width(text_of(cell));
  cells_.push_back(cell);
  return *this;
}

Table &Table::guest(std::string_view text, Style style) {
  append_visible(begin_cell(), text);
  return end_cell(style);
}

Table &Table::text(std::string_view text, Style style) {
  begin_cell() += text;
  return end_cell(style);
}

Table &Table::number(std::uint64_t value, Style style) {
  const fmt::format_int digits(value);
  return text({digits.data(), digits.size()}, style);
}

Table &Table::number(std::int64_t value, Style style) {
  const fmt::format_int digits(value);
  return text({digits.data(), digits.size()}, style);
}

Result<void> Table::print(Output &out, bool cut) const {
  const std::size_t count = columns_.size();
  const std::size_t rows = row_count();
  const Device &device = out.device();
  cut = cut && device.terminal;
  std::vector<std::size_t> widths(count, 0);
  for (std::size_t i = 0; i < rows * count; ++i)
    widths[i % count] = std::max(widths[i % count], cells_[i].width);
  std::vector<std::size_t> shown;
  for (std::size_t i = 0; i < count; ++i) {
    if (columns_[i].only_if_used && widths[i] == 0)
      continue;
    shown.push_back(i);
    widths[i] = std::max(std::min(widths[i], columns_[i].widest), columns_[i].title.size());
  }

  // A narrow terminal shows the start of the last column rather than all columns.
  constexpr std::size_t least_last = 24;
  const auto width_of_shown = [&] {
    std::size_t width = std::min(widths[shown.back()], least_last);
    for (std::size_t i = 0; i + 1 < shown.size(); ++i)
      width += widths[shown[i]] + gap.size();
    return width;
  };
  for (std::size_t i = shown.size(); cut && i-- > 0 && width_of_shown() > device.columns;)
    if (columns_[shown[i]].only_if_used && shown.size() > 1)
      shown.erase(shown.begin() + static_cast<std::ptrdiff_t>(i));

  std::string &buffer = out.buffer();
  const auto styled = [&](Style style, std::string_view text) {
    if (!text.empty())
      out.styled(style, text);
  };
  const auto put = [&](std::size_t column, std::string_view text, std::size_t width, Style style, std::size_t &left) {
    const bool last = column == shown.back();
    std::size_t room = last ? left : std::min(widths[column], left);
    if (cut && width > room) {
      // One column less for the mark that something is missing.
      text = text.substr(0, prefix_of_width(text, room == 0 ? 0 : room - 1));
      width = display_width(text);
      styled(style, text);
      if (room > 0) {
        buffer += device.utf8 ? "…" : ">";
        ++width;
      }
    } else {
      const std::size_t padding = width < widths[column] ? widths[column] - width : 0;
      if (columns_[column].align == Align::right) {
        buffer.append(padding, ' ');
        width += padding;
      }
      styled(style, text);
    }
    if (!last) {
      const std::size_t padding = width < widths[column] ? widths[column] - width : 0;
      buffer.append(padding, ' ');
      buffer += gap;
    }
    left -= std::min(left, std::max(width, widths[column]) + gap.size());
  };
  std::size_t left = cut ? device.columns : SIZE_MAX;
  for (const std::size_t column : shown)
    put(column, columns_[column].title, columns_[column].title.size(), Style::bold, left);
  buffer += '\n';
  for (std::size_t row = 0; row < rows; ++row) {
    left = cut ? device.columns : SIZE_MAX;
    for (const std::size_t column : shown) {
      const Cell &cell = cells_[row * count + column];
      put(column, text_of(cell), cell.width, cell.style, left);
    }
    // A last cell without text leaves the padding of those before it.
    buffer.resize(buffer.find_last_not_of(' ') + 1);
    buffer += '\n';
    TRY(out.flush_if_large());
  }
  return {};
}

} // namespace lararium::cli
