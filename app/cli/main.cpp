#include "exit_codes.h"
#include "output.h"
#include "program.h"
#include "session.h"

#include <csignal>
#include <new>
#include <string_view>
#include <unistd.h>

int main(int argc, char **argv) {
  using namespace lararium::cli;
  // A reader that goes away (`lararium ps | head`) and a monitor that hangs up are errors of a write, not our end.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN); // a file larger than the limit, too
  Output out(descriptor_sink(STDOUT_FILENO), describe_device(STDOUT_FILENO));
  Output err(descriptor_sink(STDERR_FILENO), describe_device(STDERR_FILENO));
  const std::span words(argv + 1, argc > 0 ? static_cast<std::size_t>(argc - 1) : 0);
  try {
    return run_program(words, make_host, out, err);
  } catch (const std::bad_alloc &) { // thrown only by containers; what there is to say needs no memory
    constexpr std::string_view text = "lararium: there is not enough memory\n";
    static_cast<void>(::write(STDERR_FILENO, text.data(), text.size()));
    return exit_code_of(lararium::ErrorCode::io);
  }
}
