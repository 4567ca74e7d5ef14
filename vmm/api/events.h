// What happens to a VM, told to those who listen: GET /events, as server-sent events (WHATWG HTML,
// 9.2). docs/api.md lists the events; each is in docs/openapi.json.
//
//   events.publish("link", {{"net", 0}, {"up", true}});
//
// Bounded: the last kEventsKept are kept, for listeners that come back; a listener that does not
// read is disconnected (HttpLimits::unread_bytes_max). Event driven: without an event nothing is
// sent and nothing wakes up, there are no keep-alives.
//
// Threading: publish() on any thread; everything else on the main loop's. It outlives the machine
// and its loop: events keep their numbers over the guest's restarts.
#pragma once

#include <concepts>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/event_loop.h"
#include "base/mutex.h"
#include "vmm/api/http_server.h"

namespace lethe {

// One member of an event's JSON object. Text is cut, and printable (printable()).
struct EventField {
  EventField(std::string_view key, bool value) : name(key), json(value ? "true" : "false") {}
  EventField(std::string_view key, std::integral auto value)
      : name(key), json(std::to_string(value)) {}
  EventField(std::string_view key, double value);
  EventField(std::string_view key, std::string_view value);
  EventField(std::string_view key, const char* value) : EventField(key, std::string_view(value)) {}
  EventField(std::string_view key, const std::string& value)
      : EventField(key, std::string_view(value)) {}
  std::string_view name;
  std::string json;
};

inline constexpr size_t kEventsKept = 256;

class Events {
 public:
  // `name`: lower-case words with hyphens; field names: as in JSON elsewhere. Adds "time_ms", since
  // 1970. Cheap when nobody listens.
  void publish(std::string_view name, std::initializer_list<EventField> fields = {})
      LETHE_EXCLUDES(x_mutex);

  // Delivers on `loop`'s thread from now on.
  void attach(EventLoop& loop) LETHE_EXCLUDES(x_mutex);
  // Delivers what there is, ends the streams, and touches the loop no more. Harmless twice.
  void detach() LETHE_EXCLUDES(x_mutex);

  // Begins a stream: of what comes, and, with the number of the last event that the client knows,
  // of what came after that. A number that was never given replays all there is (it is an earlier
  // VM's). What was lost meanwhile is told by an event "lost" with a "count".
  void subscribe(std::shared_ptr<HttpReply> reply, std::optional<uint64_t> last_known)
      LETHE_EXCLUDES(x_mutex);
  // Of clients that are still there.
  [[nodiscard]] size_t listeners() const;

 private:
  struct Listener {
    std::shared_ptr<HttpReply> reply;
    uint64_t next;  // the number of the event that it gets next
  };
  void deliver() LETHE_EXCLUDES(x_mutex);
  [[nodiscard]] std::string text_from(uint64_t number) const LETHE_REQUIRES(x_mutex);

  std::vector<Listener> x_listeners;  // the loop's
  mutable Mutex x_mutex;
  EventLoop* x_loop LETHE_GUARDED_BY(x_mutex) = nullptr;
  bool x_wanted LETHE_GUARDED_BY(x_mutex) = false;           // somebody listens
  bool x_posted LETHE_GUARDED_BY(x_mutex) = false;           // deliver() is
  uint64_t x_next LETHE_GUARDED_BY(x_mutex) = 1;             // the number of the next event
  std::deque<std::string> x_kept LETHE_GUARDED_BY(x_mutex);  // ending with number x_next - 1
};

}  // namespace lethe
