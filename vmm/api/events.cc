#include "vmm/api/events.h"

#include <fmt/format.h>

#include <chrono>

#include "vmm/config_schema.h"

namespace lethe {
namespace {

int64_t now_ms() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

}  // namespace

EventField::EventField(std::string_view key, double value)
    : name(key), json(fmt::format("{:.3f}", value)) {}
EventField::EventField(std::string_view key, std::string_view value)
    : name(key), json(json_quote(printable(value))) {}

void Events::publish(std::string_view name, std::initializer_list<EventField> fields) {
  std::string data = fmt::format("{{\"time_ms\":{}", now_ms());
  for (const EventField& field : fields) data += fmt::format(",\"{}\":{}", field.name, field.json);
  const MutexLock lock(x_mutex);
  x_kept.push_back(fmt::format("id: {}\nevent: {}\ndata: {}}}\n\n", x_next++, name, data));
  if (x_kept.size() > kEventsKept) x_kept.pop_front();
  if (x_loop == nullptr || !x_wanted || x_posted) return;
  x_posted = true;
  x_loop->post([this] { deliver(); });
}

void Events::attach(EventLoop& loop) {
  const MutexLock lock(x_mutex);
  x_loop = &loop;
  x_posted = false;  // with an earlier loop, which is gone
}

void Events::detach() {
  deliver();
  for (const Listener& listener : x_listeners) listener.reply->end();
  x_listeners.clear();
  const MutexLock lock(x_mutex);
  x_loop = nullptr;
  x_wanted = false;
}

void Events::subscribe(std::shared_ptr<HttpReply> reply, std::optional<uint64_t> last_known) {
  std::erase_if(x_listeners, [](const Listener& listener) { return listener.reply->gone(); });
  uint64_t next = 0;
  {
    const MutexLock lock(x_mutex);
    next = last_known ? *last_known + 1 : x_next;
    if (next == 0 || next > x_next) next = x_next - x_kept.size();
    x_wanted = true;
  }
  // Who has seen the stream begin misses nothing.
  reply->begin(200, "text/event-stream");
  x_listeners.push_back({std::move(reply), next});
  deliver();
}

size_t Events::listeners() const {
  size_t count = 0;
  for (const Listener& listener : x_listeners) count += listener.reply->gone() ? 0 : 1;
  return count;
}

std::string Events::text_from(uint64_t number) const {
  std::string text;
  const uint64_t first = x_next - x_kept.size();
  if (number < first) {
    text = fmt::format("event: lost\ndata: {{\"time_ms\":{},\"count\":{}}}\n\n", now_ms(),
                       first - number);
    number = first;
  }
  for (uint64_t at = number; at < x_next; ++at) text += x_kept[at - first];
  return text;
}

void Events::deliver() {
  for (Listener& listener : x_listeners) {
    std::string text;
    {
      const MutexLock lock(x_mutex);
      x_posted = false;
      text = text_from(listener.next);
      listener.next = x_next;
    }
    // Without the lock: a write may fail, and its end calls whom it likes.
    (void)listener.reply->write(text);
  }
  std::erase_if(x_listeners, [](const Listener& listener) { return listener.reply->gone(); });
  const MutexLock lock(x_mutex);
  x_posted = false;
  x_wanted = !x_listeners.empty();
}

}  // namespace lethe
