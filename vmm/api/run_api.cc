// The control API's paths for the run itself: /state, /pause ... /kill, /events.
#include <fmt/format.h>

#include <charconv>

#include "vmm/api/api_body.h"
#include "vmm/api/events.h"

namespace lethe {
namespace {

void answer_state(const ApiCall& call, unsigned status) {
  const VmState state = call.target.state();
  call.answer({{"name", state.name},
               {"state", state.state},
               {"pid", state.pid},
               {"uptime_s", state.uptime_s},
               {"boots", state.boots},
               {"cpus", state.cpus},
               {"memory_bytes", state.memory_bytes}},
              status);
}

// `status`: 200 for what is done by then, 202 for what is only under way.
void act(const ApiCall& call, Result<> (ApiTarget::*action)(), unsigned status) {
  if (const auto empty = expect_no_body(call.request); !empty)
    return call.reply->send(empty.error());
  if (const auto done = (call.target.*action)(); !done) return call.refuse(409, done.error().text);
  answer_state(call, status);
}

}  // namespace

void get_state(const ApiCall& call) { answer_state(call, 200); }
void post_pause(const ApiCall& call) { act(call, &ApiTarget::pause, 200); }
void post_resume(const ApiCall& call) { act(call, &ApiTarget::resume, 200); }
void post_power_button(const ApiCall& call) { act(call, &ApiTarget::power_button, 202); }
void post_reset(const ApiCall& call) { act(call, &ApiTarget::reset, 202); }
void post_kill(const ApiCall& call) { act(call, &ApiTarget::kill, 202); }

void get_events(const ApiCall& call) {
  const std::string& text = call.request.last_event_id;
  std::optional<uint64_t> last;
  if (!text.empty()) {
    uint64_t number = 0;
    const auto read = std::from_chars(text.data(), text.data() + text.size(), number);
    if (read.ec != std::errc() || read.ptr != text.data() + text.size())
      return call.refuse(400, "Last-Event-ID must be an event's number");
    last = number;
  }
  call.target.events().subscribe(call.reply, last);
}

}  // namespace lethe
