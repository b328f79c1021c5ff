// A table for people: aligned columns, as wide as their content, cut to the terminal only where there is one.
#pragma once

#include "output.h"

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::cli {

enum class Align : std::uint8_t { left, right };

struct Column {
  std::string_view title;
  Align align = Align::left;
  bool only_if_used = false; // left out when all its cells are empty, or where a terminal has too little room
  // Longer cells are cut on a terminal, and elsewhere stick out instead of widening every row.
  std::size_t widest = 40;
};

// Cells are added in the order of the columns; a row is complete with its last column.
class Table {
public:
  Table(std::initializer_list<Column> columns) : columns_(columns) {}

  Table &guest(std::string_view text, Style style = Style::plain); // foreign text: made visible
  Table &text(std::string_view text, Style style = Style::plain);  // our own
  Table &number(std::uint64_t value, Style style = Style::plain);
  Table &number(std::int64_t value, Style style = Style::plain);
  // A cell of several parts: begin, append to the buffer, finish.
  [[nodiscard]] std::string &begin_cell();
  Table &end_cell(Style style = Style::plain);

  [[nodiscard]] std::size_t row_count() const { return cells_.size() / columns_.size(); }
  // With `cut`, and on a terminal, lines end at its right edge.
  [[nodiscard]] Result<void> print(Output &out, bool cut = true) const;

private:
  struct Cell {
    std::size_t offset = 0, length = 0;
    std::size_t width = 0;
    Style style = Style::plain;
  };
  [[nodiscard]] std::string_view text_of(const Cell &cell) const {
    return std::string_view(text_).substr(cell.offset, cell.length);
  }

  std::vector<Column> columns_;
  std::vector<Cell> cells_;
  std::string text_;
  std::size_t begun_ = 0;
};

} // namespace lararium::cli
