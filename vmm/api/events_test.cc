// GET /events: what is published arrives, in order and once, and costs a bounded amount.
#include "vmm/api/events.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "vmm/api/fake_api_client.h"
#include "vmm/api/fake_target.h"

namespace lethe {
namespace {

using testing::HasSubstr;
using testing::Not;

class EventStream : public testing::Test {
 protected:
  explicit EventStream(const HttpLimits& limits = {})
      : x_served(
            [this](const HttpRequest& request, std::shared_ptr<HttpReply> reply) {
              answer_api(x_target, request, std::move(reply));
            },
            limits) {
    on_loop([this] { x_events.attach(x_served.thread().loop()); });
  }
  ~EventStream() override {
    on_loop([this] { x_events.detach(); });
  }
  void on_loop(std::function<void()> work) { x_served.thread().run_and_wait(std::move(work)); }
  size_t listeners() {
    size_t count = 0;
    on_loop([&] { count = x_events.listeners(); });
    return count;
  }
  std::unique_ptr<RawClient> listen(const std::string& fields = "") {
    auto client = std::make_unique<RawClient>(x_served.path());
    client->send("GET /events HTTP/1.1\r\n" + fields + "\r\n");
    EXPECT_TRUE(client->read_until("\r\n\r\n"));
    EXPECT_THAT(client->got(), HasSubstr("\r\nContent-Type: text/event-stream\r\n"));
    return client;
  }

  FakeTarget x_target;
  Events& x_events = x_target.hub;
  ServedSocket x_served;
};

TEST_F(EventStream, tells_what_happens_as_it_happens) {
  x_events.publish("before");
  const auto client = listen();
  x_events.publish("link", {{"net", 1},
                            {"up", true},
                            {"s", 0.5},
                            {"text", "a \"quoted\"\n\xff line"},
                            {"bytes", UINT64_MAX}});
  ASSERT_TRUE(client->read_until("}\n\n"));
  EXPECT_THAT(client->got(), HasSubstr("\r\nid: 2\nevent: link\ndata: {\"time_ms\":1"));
  EXPECT_THAT(
      client->got(),
      HasSubstr(",\"net\":1,\"up\":true,\"s\":0.500,\"text\":\"a \\\"quoted\\\"\\\\x0a\\\\xff"
                " line\",\"bytes\":18446744073709551615}\n\n"));
  EXPECT_THAT(client->got(), Not(HasSubstr("before")));
}

TEST_F(EventStream, last_event_id_replays_what_came_after) {
  for (int i = 1; i <= 5; ++i) x_events.publish(fmt::format("number-{}", i));
  const auto from_three = listen("Last-Event-ID: 3\r\n");
  ASSERT_TRUE(from_three->read_until("number-5\ndata: "));
  EXPECT_THAT(from_three->got(), HasSubstr("id: 4\nevent: number-4\n"));
  EXPECT_THAT(from_three->got(), Not(HasSubstr("number-3")));
  EXPECT_THAT(from_three->got(), Not(HasSubstr("lost")));
  for (const char* all : {"Last-Event-ID: 0\r\n", "Last-Event-ID: 77\r\n",
                          "Last-Event-ID: 18446744073709551615\r\n"}) {
    SCOPED_TRACE(all);
    const auto client = listen(all);
    EXPECT_TRUE(client->read_until("id: 1\nevent: number-1\n"));
    EXPECT_TRUE(client->read_until("id: 5\nevent: number-5\n"));
  }
}

TEST_F(EventStream, a_last_event_id_that_is_no_number_is_refused) {
  for (const char* id : {"x", "1x", "-1", "99999999999999999999", "1 2", "0x1"}) {
    RawClient client(x_served.path());
    client.send(fmt::format("GET /events HTTP/1.1\r\nLast-Event-ID: {}\r\n\r\n", id));
    EXPECT_TRUE(client.read_until("Last-Event-ID must be an event's number")) << id;
    EXPECT_THAT(client.got(), testing::StartsWith("HTTP/1.1 400 "));
  }
}

TEST_F(EventStream, only_the_last_are_kept_and_the_loss_is_told) {
  for (size_t i = 0; i < kEventsKept + 10; ++i) x_events.publish("tick");
  const auto client = listen("Last-Event-ID: 4\r\n");
  ASSERT_TRUE(client->read_until(fmt::format("id: {}\n", kEventsKept + 10)));
  EXPECT_THAT(client->got(), HasSubstr("event: lost\ndata: {\"time_ms\":"));
  EXPECT_THAT(client->got(), HasSubstr(",\"count\":6}\n\nid: 11\nevent: tick\n"));
}

TEST_F(EventStream, a_client_that_hangs_up_is_forgotten_without_an_event) {
  auto client = listen();
  const auto other = listen();
  EXPECT_EQ(listeners(), 2u);
  client->hang_up();
  x_served.expect_connections(1);
  EXPECT_EQ(listeners(), 1u);
  x_events.publish("after");
  EXPECT_TRUE(other->read_until("after"));
}

TEST_F(EventStream, a_client_that_shuts_its_sending_side_down_still_listens) {
  const auto client = listen();
  ASSERT_EQ(::shutdown(client->fd(), SHUT_WR), 0);
  EXPECT_EQ(listeners(), 1u);
  x_events.publish("after");
  EXPECT_TRUE(client->read_until("after"));
}

// Many that come and go on a VM where nothing happens take no connections from others.
TEST_F(EventStream, streams_that_are_gone_hold_no_connections) {
  for (int i = 0; i < 300; ++i) {
    const auto client = listen();
    client->hang_up();
    x_served.expect_connections(0);
  }
  EXPECT_EQ(listeners(), 0u);
}

TEST_F(EventStream, ends_when_the_vm_does) {
  const auto client = listen("Connection: close\r\n");
  on_loop([this] {
    x_events.publish("ended", {{"exit_code", 0}});
    x_events.detach();
  });
  EXPECT_THAT(client->read_to_end(), testing::EndsWith("\"exit_code\":0}\n\n\r\n0\r\n\r\n"));
  x_events.publish("late");  // nobody listens; no loop is touched
}

TEST_F(EventStream, goes_on_in_numbers_after_a_restart) {
  x_events.publish("one");
  on_loop([this] { x_events.detach(); });
  x_events.publish("two");
  on_loop([this] { x_events.attach(x_served.thread().loop()); });
  const auto client = listen("Last-Event-ID: 1\r\n");
  EXPECT_TRUE(client->read_until("id: 2\nevent: two\n"));
}

TEST_F(EventStream, threads_may_publish_at_once_and_nothing_is_lost_in_silence) {
  constexpr int kThreads = 4, kEach = 500;
  const auto client = listen();
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) x_events.publish("tick", {{"thread", t}, {"at", i}});
    });
  for (std::thread& thread : threads) thread.join();
  // Every number once and in order, or told as lost.
  ASSERT_TRUE(client->read_until(fmt::format("id: {}\n", kThreads * kEach)));
  uint64_t next = 1;
  const std::string& got = client->got();
  for (size_t at = 0; (at = got.find("event: ", at)) != std::string::npos; at += 7) {
    if (got.compare(at, 11, "event: lost") == 0) {
      next += std::strtoull(got.c_str() + got.find("\"count\":", at) + 8, nullptr, 10);
    } else {
      const size_t id = got.rfind("id: ", at);
      EXPECT_EQ(std::strtoull(got.c_str() + id + 4, nullptr, 10), next++);
    }
  }
  EXPECT_EQ(next, uint64_t{kThreads * kEach + 1});
}

class ShortStream : public EventStream {
 protected:
  ShortStream() : EventStream({.unread_bytes_max = 100'000}) {}
};

TEST_F(ShortStream, a_client_that_stops_reading_is_cut_off_and_the_others_go_on) {
  const auto deaf = listen();
  const auto other = listen();
  const std::string text(200, 'x');
  std::string marker;
  for (int round = 0; listeners() > 1 && round < 1000; ++round) {
    for (int i = 0; i < 50; ++i) x_events.publish("tick", {{"text", text}});
    marker = fmt::format("mark-{}\n", round);
    x_events.publish(marker.substr(0, marker.size() - 1));
    ASSERT_TRUE(other->read_until(marker));
    other->forget();
  }
  EXPECT_EQ(listeners(), 1u);
  x_served.expect_connections(1);
  x_events.publish("after");
  EXPECT_TRUE(other->read_until("after"));
}

}  // namespace
}  // namespace lethe
