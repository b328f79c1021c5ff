// What a guest says of itself.
#include "lararium/detect/lies.h"

#include <cstdlib>

using namespace lararium;
using namespace lararium::detect;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char *>(data), size);
  const auto answer = parse_answer(text);
  if (!answer)
    return 0;
  if (!is_whole_answer(text) || answer->end_ns < answer->begin_ns || answer->processes.size() > size)
    std::abort();
  // Whatever it says: where nothing was there before and after, nothing is left out.
  Findings findings;
  compare_answer({}, *answer, {}, AnswerTime::later, findings);
  if (!findings.items().empty())
    std::abort();
  compare_answer({}, *answer, {}, AnswerTime::between, findings);
  return 0;
}
