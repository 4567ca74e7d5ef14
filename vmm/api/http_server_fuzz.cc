// Any bytes on a connection: whatever comes is answered in HTTP or not at all, and the connection
// ends when its client has ended. The server and the other clients live on.
#include <thread>

#include "base/assert.h"
#include "vmm/api/fake_api_client.h"
#include "vmm/api/fake_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lethe;
  static FakeTarget target;
  static ServedSocket* const served =
      new ServedSocket([](const HttpRequest& request, std::shared_ptr<HttpReply> reply) {
        answer_api(target, request, std::move(reply));
        target.on_done = nullptr;
        target.on_picture = nullptr;
      });
  RawClient client(served->path());
  (void)client.send({reinterpret_cast<const char*>(data), size});
  (void)::shutdown(client.fd(), SHUT_WR);
  // An event stream goes on; everything else has an end.
  while (client.read_some())
    if (client.got().find("text/event-stream") != std::string::npos) return 0;
  LETHE_ASSERT(client.closed());
  LETHE_ASSERT(client.got().empty() || client.got().starts_with("HTTP/1.1 "));
  return 0;
}
