// The console's hub with clients that read, type, do not read, come in crowds and go.
#include "vmm/console_host.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include <filesystem>
#include <thread>

#include "base/test_util.h"
#include "vmm/api/fake_api_client.h"

namespace lethe {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

class ConsoleHubTest : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-hub-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
    open({});
  }
  void TearDown() override {
    x_thread.run_and_wait([this] { x_hub->detach(); });
    std::filesystem::remove_all(x_dir);
  }
  // A hub with these limits.
  void open(const ConsoleHubLimits& limits) {
    x_thread.run_and_wait([&] {
      if (x_hub) x_hub->detach();
      ::unlink(path().c_str());
      x_hub.emplace(limits);
      attach();
    });
  }
  void attach() {
    const auto attached = x_hub->attach(x_thread.loop(), path(), [this](std::string_view keys) {
      x_typed += keys;
      return x_room;
    });
    EXPECT_TRUE(attached) << attached.error().text;
  }
  [[nodiscard]] std::string path() const { return x_dir + "/console.sock"; }
  void print(std::string_view text) {
    // SAFETY: characters, as bytes.
    const auto* const bytes = reinterpret_cast<const uint8_t*>(text.data());
    x_thread.run_and_wait([&] { x_hub->on_output({bytes, text.size()}); });
  }
  template <typename Get>
  auto get(Get&& look) {
    decltype(look()) value{};
    x_thread.run_and_wait([&] { value = look(); });
    return value;
  }
  std::string kept() {
    return get([this] { return x_hub->kept(); });
  }
  bool soon_clients(size_t count) {
    return eventually([&] { return get([this] { return x_hub->clients(); }) == count; });
  }
  bool soon_typed(const std::string& text) {
    return eventually([&] { return get([this] { return x_typed; }) == text; });
  }
  ConsoleHubCounters counters() {
    return get([this] { return x_hub->counters(); });
  }

  std::string x_dir;
  std::string x_typed;  // the hub's thread's, as x_room
  bool x_room = true;
  std::optional<ConsoleHub> x_hub;
  IoThread x_thread{"hub-test"};
};

TEST_F(ConsoleHubTest, every_client_gets_what_was_printed_before_and_after_it_came) {
  print("one ");
  RawClient a(path());
  EXPECT_TRUE(a.read_until("one "));
  RawClient b(path());
  EXPECT_TRUE(b.read_until("one "));
  print("two");
  EXPECT_TRUE(a.read_until("one two"));
  EXPECT_TRUE(b.read_until("one two"));
  EXPECT_EQ(kept(), "one two");
}

TEST_F(ConsoleHubTest, keeps_the_last_64_kib_whatever_the_pieces) {
  std::string all;
  for (const size_t size : {1, 1000, 65535, 65536, 65537, 7, 200'000, 3}) {
    std::string piece;
    while (piece.size() < size) piece += static_cast<char>('a' + (all.size() + piece.size()) % 26);
    print(piece);
    all += piece;
    EXPECT_EQ(kept(), all.substr(all.size() - std::min(all.size(), ConsoleHub::kKeptBytes)));
  }
}

TEST_F(ConsoleHubTest, waits_for_descriptors_without_spinning) {
  LETHE_SKIP_UNDER_UBSAN();
  print("here");
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  std::optional<RawClient> client;
  const auto busy_ms = [this] {
    return get([] {
      timespec time{};
      ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
      return int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1'000'000;
    });
  };
  x_thread.run_and_wait([&] {
    client.emplace(path());
    const rlimit none{.rlim_cur = 0, .rlim_max = limit.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  });
  const int64_t before = busy_ms();
  // Measured, not waited for: four tries (kAcceptRetry), in which a loop that spins is busy.
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  EXPECT_LT(busy_ms() - before, 100);
  EXPECT_EQ(counters().clients, 0u);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_TRUE(client->read_until("here"));
}

TEST_F(ConsoleHubTest, takes_keys_from_all_clients) {
  RawClient a(path());
  RawClient b(path());
  EXPECT_TRUE(a.send("ab"));
  EXPECT_TRUE(soon_typed("ab"));
  EXPECT_TRUE(b.send("c"));
  EXPECT_TRUE(soon_typed("abc"));
}

TEST_F(ConsoleHubTest, stops_reading_keys_while_the_guest_has_no_room) {
  RawClient a(path());
  RawClient b(path());
  ASSERT_TRUE(soon_clients(2));
  x_thread.run_and_wait([this] { x_room = false; });
  EXPECT_TRUE(a.send("1"));
  EXPECT_TRUE(soon_typed("1"));
  EXPECT_TRUE(a.send("2"));
  EXPECT_TRUE(b.send("2"));
  print("x");  // the loop has had its turn when this has come
  EXPECT_TRUE(a.read_until("x"));
  EXPECT_EQ(get([this] { return x_typed; }), "1");
  x_thread.run_and_wait([this] {
    x_room = true;
    x_hub->resume_keys();
  });
  EXPECT_TRUE(soon_typed("122"));
}

TEST_F(ConsoleHubTest, a_client_that_lags_loses_the_oldest_and_is_told) {
  RawClient slow(path());
  ASSERT_TRUE(soon_clients(1));
  for (int i = 0; i < 40; ++i) print(std::string(32 * 1024, '.'));
  print("the end");
  EXPECT_TRUE(slow.read_until("the end"));
  EXPECT_THAT(slow.got(), HasSubstr(" bytes skipped]\r\n"));
  const size_t note = slow.got().find("\r\n[lethe: ");
  const size_t skipped = std::strtoull(slow.got().c_str() + note + 10, nullptr, 10);
  const size_t dots = static_cast<size_t>(std::count(slow.got().begin(), slow.got().end(), '.'));
  EXPECT_EQ(dots + counters().skipped_bytes, 40u * 32 * 1024);
  EXPECT_GT(skipped, 0u);
  EXPECT_EQ(counters().cut_off, 0u);
}

TEST_F(ConsoleHubTest, a_client_that_takes_nothing_is_cut_off_and_the_others_are_not) {
  open({.stuck_max = std::chrono::milliseconds(50)});
  RawClient deaf(path());
  RawClient good(path());
  ASSERT_TRUE(soon_clients(2));
  for (int i = 0; i < 40; ++i) {
    print(std::string(32 * 1024, '.'));
    print(std::to_string(i) + "!");
    ASSERT_TRUE(good.read_until(std::to_string(i) + "!"));
  }
  EXPECT_TRUE(soon_clients(1));
  EXPECT_EQ(counters().cut_off, 1u);
  print("still here");
  EXPECT_TRUE(good.read_until("still here"));
  (void)deaf.read_to_end();  // which comes
}

TEST_F(ConsoleHubTest, one_client_too_many_is_told_so) {
  open({.clients_max = 2});
  RawClient a(path());
  auto b = std::make_unique<RawClient>(path());
  ASSERT_TRUE(soon_clients(2));
  RawClient c(path());
  EXPECT_EQ(c.read_to_end(), "lethe: this console has 2 clients already\r\n");
  EXPECT_EQ(counters().refused, 1u);
  b.reset();
  EXPECT_TRUE(soon_clients(1));
  RawClient d(path());
  EXPECT_TRUE(soon_clients(2));
}

TEST_F(ConsoleHubTest, one_that_only_listens_is_kept_until_it_goes) {
  open({.clients_max = 1});
  {
    RawClient listener(path());
    ASSERT_TRUE(soon_clients(1));
    ASSERT_EQ(::shutdown(listener.fd(), SHUT_WR), 0);
    print("said");
    EXPECT_TRUE(listener.read_until("said"));
    print("more");
    EXPECT_TRUE(listener.read_until("more"));
  }
  // It is gone without a word; the next one gets its place.
  RawClient next(path());
  EXPECT_TRUE(next.read_until("saidmore"));
  EXPECT_EQ(counters().refused, 0u);
}

TEST_F(ConsoleHubTest, clients_stay_over_a_restart) {
  RawClient client(path());
  print("before ");
  EXPECT_TRUE(client.read_until("before "));
  x_thread.run_and_wait([this] { x_hub->detach(); });
  print("between ");  // the end of the old session's output
  x_thread.run_and_wait([this] { attach(); });
  print("after");
  EXPECT_TRUE(client.read_until("before between after"));
  EXPECT_TRUE(client.send("k"));
  EXPECT_TRUE(soon_typed("k"));
}

TEST_F(ConsoleHubTest, clients_that_come_and_go_while_it_prints_do_no_harm) {
  for (int round = 0; round < 200; ++round) {
    RawClient client(path());
    if (round % 3 == 0) EXPECT_TRUE(client.send("k"));
    print("line\n");
    if (round % 2 == 0) EXPECT_TRUE(client.read_until("line\n"));
  }
  EXPECT_TRUE(soon_clients(0));
  EXPECT_EQ(counters().clients, 200u);
}

}  // namespace
}  // namespace lethe
