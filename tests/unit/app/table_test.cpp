#include "table.h"

#include <gtest/gtest.h>

namespace lararium::cli {
namespace {

std::string print(const Table &table, Device device) {
  std::string written;
  Output out(
      [&](std::string_view text) -> Result<void> {
        written += text;
        return {};
      },
      device);
  EXPECT_TRUE(table.print(out));
  EXPECT_TRUE(out.flush());
  return written;
}

Table example() {
  Table table{{"N", Align::right}, {"NAME"}, {"UNUSED", Align::left, true}, {"WHAT"}};
  table.number(std::uint64_t{7}).guest("挖矿").text("").guest("first line\x1b[0m");
  table.number(std::uint64_t{12345}).guest("sshd", Style::red).text("").text("");
  return table;
}

TEST(Table, AlignsByDisplayWidth) {
  EXPECT_EQ(print(example(), {}), "    N  NAME  WHAT\n"
                                  "    7  挖矿  first line\\x1b[0m\n"
                                  "12345  sshd\n");
}

TEST(Table, CutsAtTheEdgeOfATerminalOnly) {
  EXPECT_EQ(print(example(), {.terminal = true, .columns = 20}), "    N  NAME  WHAT\n"
                                                                 "    7  挖矿  first …\n"
                                                                 "12345  sshd\n");
  EXPECT_EQ(print(example(), {.terminal = true, .utf8 = false, .columns = 20}), "    N  NAME  WHAT\n"
                                                                                "    7  挖矿  first >\n"
                                                                                "12345  sshd\n");
}

TEST(Table, ColoursWithoutDisturbingTheAlignment) {
  const std::string text = print(example(), {.colour = true});
  EXPECT_NE(text.find("\x1b[31msshd\x1b[0m"), text.npos);
}

TEST(Table, OneLongCellDoesNotWidenTheOthers) {
  Table table{{"A", Align::left, false, 8}, {"B"}};
  table.guest(std::string(100, 'x')).text("1");
  table.guest("y").text("2");
  EXPECT_EQ(print(table, {}), "A         B\n" + std::string(100, 'x') + "  1\ny         2\n");
  EXPECT_EQ(print(table, {.terminal = true, .columns = 40}), "A         B\nxxxxxxx…  1\ny         2\n");
}

TEST(Table, ATinyTerminalIsNoProblem) {
  for (std::size_t columns = 1; columns < 24; ++columns)
    EXPECT_FALSE(print(example(), {.terminal = true, .columns = columns}).empty());
}

} // namespace
} // namespace lararium::cli
