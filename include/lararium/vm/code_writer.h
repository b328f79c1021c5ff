// Port: changing the code of a running target. A CPU that runs code while it changes, or a VM that keeps translations
// of it, would go on with something that is neither the old nor the new: so all vCPUs stand still, and the VM knows of
// it.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace lararium {

// All vCPUs stand still while it lives. If this process is killed inside, the guest goes on all the same, with what was
// written by then: each write must leave the guest able to run.
class CodeSession {
public:
  CodeSession() = default;
  CodeSession(const CodeSession &) = delete;
  CodeSession &operator=(const CodeSession &) = delete;
  virtual ~CodeSession() = default; // lets the guest go on

  // Of RAM that is not protected: the VM itself writes, and would wait for whoever holds that memory.
  [[nodiscard]] virtual Result<void> write(Gpa address, Bytes bytes) = 0;
  // Where each vCPU stands, by number.
  [[nodiscard]] virtual Result<std::vector<Gva>> instruction_pointers() = 0;
  // Lets the guest go on, and says whether that worked.
  [[nodiscard]] virtual Result<void> end() = 0;
};

class CodeWriter {
public:
  virtual ~CodeWriter() = default;
  [[nodiscard]] virtual Result<std::unique_ptr<CodeSession>> begin() = 0;
};

} // namespace lararium
