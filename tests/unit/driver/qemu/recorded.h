// Texts that real QEMUs printed, as files in data/.
#pragma once

#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <string>

namespace lararium::qemu {

inline std::string recorded(const std::string &name) {
  std::ifstream file(std::string(TEST_DATA "/") + name, std::ios::binary);
  EXPECT_TRUE(file) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

} // namespace lararium::qemu
