#include "../context.h"

namespace lararium::cli {
namespace {

class Version final : public Command {
public:
  Result<void> run(Context &context) override {
    if (context.options.json) {
      JsonWriter json = context.begin_document("version", nullptr);
      json.key("item").begin_object().member("name", "lararium").member("version", LARARIUM_VERSION).end_object();
      return context.end_document(json);
    }
    context.out.buffer() += "lararium " LARARIUM_VERSION "\n";
    return {};
  }
};

LARARIUM_COMMAND(Version, "version", program, none, "print the version")

} // namespace
} // namespace lararium::cli
