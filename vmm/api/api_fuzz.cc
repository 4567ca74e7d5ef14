// Any body for any path of the control API: each request gets one answer, and it is one that
// docs/openapi.json has. What was accepted is what the document allows.
#include "base/assert.h"
#include "base/fuzz_input.h"
#include "vmm/api/api_body.h"
#include "vmm/api/fake_target.h"
#include "vmm/api/openapi_test_util.h"

namespace lethe {
namespace {

struct Answer {
  unsigned status = 0;
  std::string type;
  std::string body;
  int answers = 0;
};

class Recorder final : public HttpReply {
 public:
  explicit Recorder(Answer& answer) : x_answer(answer) {}
  void send(HttpAnswer answer) override {
    begin(answer.status, answer.type);
    x_answer.body = std::move(answer.body);
  }
  void begin(unsigned status, std::string_view type) override {
    x_answer.status = status;
    x_answer.type = type;
    ++x_answer.answers;
  }
  bool write(std::string_view piece) override {
    x_answer.body += piece;
    return true;
  }
  void end() override {}
  [[nodiscard]] bool gone() const override { return false; }

 private:
  Answer& x_answer;
};

void check(const std::string& wrong, const HttpRequest& request, const Answer& answer) {
  if (wrong.empty()) return;
  fmt::print(stderr, "{} {} {}\n{} {}\n{}\n", request.method, request.path, request.body,
             answer.status, answer.body, wrong);
  std::abort();
}

}  // namespace
}  // namespace lethe

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lethe;
  static const OpenApi document(LETHE_SOURCE_DIR "/docs/openapi.json");
  FuzzInput input(data, size);
  const auto routes = api_routes();
  const ApiRoute& route = routes[input.take<uint8_t>() % routes.size()];
  HttpRequest request;
  request.method = route.method;
  request.path = route.path;
  const uint8_t number = input.take<uint8_t>();
  if (const size_t at = request.path.find("{n}"); at != std::string::npos)
    request.path.replace(at, 3, std::to_string(number % 3));
  const std::string_view rest(reinterpret_cast<const char*>(input.data()), input.left());
  (route.path == "/events" ? request.last_event_id : request.body) = rest;

  FakeTarget target;
  target.refuse = number % 5 == 4;
  Answer answer;
  answer_api(target, request, std::make_shared<Recorder>(answer));
  if (target.on_done) target.on_done({.bytes = 1, .complete = true});
  if (target.on_picture) target.on_picture("pixels");
  LETHE_ASSERT(answer.answers == 1);
  check(
      document.check_answer(request.method, request.path, answer.status, answer.type, answer.body),
      request, answer);
  if (answer.status < 300 && request.method != "GET")  // a GET's body means nothing
    check(document.check_request(request.method, request.path, request.body), request, answer);
  return 0;
}
