// The HTTP server with clients that behave, and with clients that do not.
#include "vmm/api/http_server.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <thread>
#include <vector>

#include "base/test_util.h"
#include "vmm/api/fake_api_client.h"
#include "vmm/api/http_client.h"

namespace lethe {
namespace {

using std::chrono::milliseconds;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

// Answers with what it understood.
void echo(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  reply->send({.body = fmt::format("[{} {} ?{} {}]", request.method, request.path, request.query,
                                   request.body)});
}

const std::string kGet = "GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n";
const std::string kEchoed = "[GET /a ?b=c ]";

TEST(HttpServer, answers_and_keeps_the_connection) {
  ServedSocket served(echo);
  RawClient client(served.path());
  for (int i = 0; i < 3; ++i) {
    client.send(kGet);
    ASSERT_TRUE(client.read_until(kEchoed));
    EXPECT_THAT(client.got(), StartsWith("HTTP/1.1 200 OK\r\n"));
    EXPECT_THAT(client.got(), HasSubstr("Connection: keep-alive\r\n"));
    client.forget();
  }
  client.send("PUT /p HTTP/1.1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody");
  EXPECT_THAT(client.read_to_end(), EndsWith("[PUT /p ? body]"));
  served.expect_connections(0);
}

TEST(HttpServer, socket_is_for_its_user_only) {
  ServedSocket served(echo);
  struct stat status{};
  ASSERT_EQ(::stat(served.path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0600u);
}

TEST(HttpServer, pipelined_requests_are_answered_in_order) {
  ServedSocket served(echo);
  RawClient client(served.path());
  std::string all;
  for (int i = 0; i < 200; ++i)
    all += fmt::format("POST /{} HTTP/1.1\r\nContent-Length: 1\r\n\r\n{}", i, i % 10);
  std::thread sender([&] { client.send(all); });
  EXPECT_TRUE(client.read_until("[POST /199 ? 9]"));
  sender.join();
  size_t at = 0;
  for (int i = 0; i < 200; ++i) {
    at = client.got().find(fmt::format("[POST /{} ? {}]", i, i % 10), at);
    ASSERT_NE(at, std::string::npos) << i;
  }
}

TEST(HttpServer, bytes_may_come_one_by_one) {
  ServedSocket served(echo);
  RawClient client(served.path());
  const std::string text =
      "PUT /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
  for (const char c : text) {
    client.send({&c, 1});
    // The server has read it when nothing waits in the socket any more.
    ASSERT_TRUE(eventually([&] {
      int waiting = 1;
      return ::ioctl(client.fd(), SIOCOUTQ, &waiting) == 0 && waiting == 0;
    }));
  }
  EXPECT_TRUE(client.read_until("[PUT /p ? abc]"));
}

TEST(HttpServer, malformed_requests_are_told_400_and_closed) {
  ServedSocket served(echo);
  const std::string bad[] = {
      "\r\n\r\n\r\n",
      "GET\r\n\r\n",
      "GET / HTTP/9.9\r\n\r\n",
      "GET / FTP/1.1\r\n\r\n",
      "GE\x01T / HTTP/1.1\r\n\r\n",
      "GET / HTTP/1.1\r\nbad header\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
      "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
      std::string(64, '\0'),
      "\x16\x03\x01\x02\x01 TLS"};
  for (const std::string& text : bad) {
    SCOPED_TRACE(testing::PrintToString(text));
    RawClient client(served.path());
    client.send(text + "\r\n\r\n");
    EXPECT_THAT(client.read_to_end(), StartsWith("HTTP/1.1 400 Bad Request\r\n"));
    EXPECT_THAT(client.got(), HasSubstr("{\"error\":\"not HTTP/1.1: "));
  }
  served.expect_connections(0);
}

TEST(HttpServer, headers_and_bodies_have_limits) {
  ServedSocket served(echo, {.header_bytes_max = 1000, .body_bytes_max = 1000});
  const auto told = [&](const std::string& text) {
    RawClient client(served.path());
    client.send(text);
    return client.read_to_end().substr(0, 12);
  };
  EXPECT_EQ(told("GET /" + std::string(5000, 'a')), "HTTP/1.1 431");
  EXPECT_EQ(told("GET / HTTP/1.1\r\nA: " + std::string(5000, 'a')), "HTTP/1.1 431");
  std::string many = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 500; ++i) many += "A: b\r\n";
  EXPECT_EQ(told(many + "\r\n"), "HTTP/1.1 431");
  EXPECT_EQ(told("PUT / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n"), "HTTP/1.1 413");
  EXPECT_EQ(told("PUT / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n"), "HTTP/1.1 413");
  EXPECT_EQ(told("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" +
                 std::string(1001, 'x') + "\r\n0\r\n\r\n"),
            "HTTP/1.1 413");
  EXPECT_EQ(told("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + std::string(9000, 'e')),
            "HTTP/1.1 431");
  RawClient client(served.path());
  client.send("PUT / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + std::string(1000, 'x'));
  EXPECT_TRUE(client.read_until(std::string(1000, 'x') + "]"));
}

TEST(HttpServer, a_slow_request_is_told_408_and_closed) {
  ServedSocket served(echo, {.request_max = milliseconds(100)});
  for (const char* start :
       {"G", "PUT / HTTP/1.1\r\n", "PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"}) {
    RawClient client(served.path());
    client.send(start);
    EXPECT_THAT(client.read_to_end(), StartsWith("HTTP/1.1 408 "));
  }
}

TEST(HttpServer, an_idle_client_is_closed) {
  ServedSocket served(echo, {.idle_max = milliseconds(50)});
  RawClient client(served.path());
  EXPECT_EQ(client.read_to_end(), "");
}

TEST(HttpServer, a_body_that_waits_for_100_continue_gets_it) {
  ServedSocket served(echo);
  RawClient client(served.path());
  client.send("PUT /p HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
  ASSERT_TRUE(client.read_until("HTTP/1.1 100 Continue\r\n\r\n"));
  client.send("body");
  EXPECT_TRUE(client.read_until("[PUT /p ? body]"));
  client.forget();
  client.send(kGet);
  EXPECT_TRUE(client.read_until(kEchoed));
}

TEST(HttpServer, http_1_0_is_closed_after_the_answer) {
  ServedSocket served(echo);
  RawClient client(served.path());
  client.send("GET /a?b=c HTTP/1.0\r\n\r\n");
  EXPECT_THAT(client.read_to_end(), EndsWith(kEchoed));
}

TEST(HttpServer, head_has_no_body) {
  ServedSocket served(echo);
  RawClient client(served.path());
  client.send("HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.read_to_end(), EndsWith("\r\n\r\n"));
}

TEST(HttpServer, serves_a_hundred_clients_at_once_and_refuses_those_above_the_limit) {
  ServedSocket served(echo, {.connections_max = 100});
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 100; ++i) {
    clients.push_back(std::make_unique<RawClient>(served.path()));
    clients.back()->send("GET /");  // half a request each: all of them are open
  }
  served.expect_connections(100);
  RawClient one_too_many(served.path());
  EXPECT_THAT(one_too_many.read_to_end(), StartsWith("HTTP/1.1 503 "));
  for (const auto& client : clients) client->send("x HTTP/1.1\r\n\r\n");
  for (const auto& client : clients) EXPECT_TRUE(client->read_until("[GET /x ? ]"));
  clients.clear();
  served.expect_connections(0);
  RawClient again(served.path());
  again.send(kGet);
  EXPECT_TRUE(again.read_until(kEchoed));
}

TEST(HttpServer, a_dropped_reply_is_a_500) {
  ServedSocket served([](const HttpRequest&, const std::shared_ptr<HttpReply>&) {});
  RawClient client(served.path());
  client.send(kGet);
  EXPECT_TRUE(client.read_until("{\"error\":\"the request was dropped\"}"));
  EXPECT_THAT(client.got(), StartsWith("HTTP/1.1 500 "));
}

// Keeps the replies, so that a test answers when it wants; used on the server's thread.
struct Later {
  std::vector<std::shared_ptr<HttpReply>> replies;
  HttpHandler handler() {
    return [this](const HttpRequest&, std::shared_ptr<HttpReply> reply) {
      replies.push_back(std::move(reply));
    };
  }
};

// Waits until a reply is kept, and hands it to `use` on the server's thread.
void with_reply(ServedSocket& served, Later& later, const std::function<void(HttpReply&)>& use) {
  EXPECT_TRUE(eventually(
      [&] {
        bool used = false;
        served.thread().run_and_wait([&] {
          if (later.replies.empty()) return;
          use(*later.replies.front());
          used = true;
        });
        return used;
      },
      kTestDeadline));
}

TEST(HttpServer, a_stream_arrives_piece_by_piece) {
  Later later;
  ServedSocket served(later.handler());
  RawClient client(served.path());
  client.send(kGet + kGet);
  with_reply(served, later, [](HttpReply& reply) {
    reply.begin(200, "text/plain");
    EXPECT_TRUE(reply.write("one"));
  });
  EXPECT_TRUE(client.read_until("\r\n\r\n3\r\none\r\n"));
  with_reply(served, later, [](HttpReply& reply) {
    EXPECT_TRUE(reply.write("two"));
    EXPECT_TRUE(reply.write(""));
    reply.end();
  });
  EXPECT_TRUE(client.read_until("3\r\ntwo\r\n0\r\n\r\n"));
  // The pipelined second request comes to its turn only now.
  with_reply(served, later, [&](HttpReply&) { later.replies.erase(later.replies.begin()); });
  with_reply(served, later, [](HttpReply& reply) { reply.send({.body = "second"}); });
  EXPECT_TRUE(client.read_until("second"));
  served.thread().run_and_wait([&] { later.replies.clear(); });
}

TEST(HttpServer, a_client_that_goes_away_during_a_stream_does_no_harm) {
  Later later;
  ServedSocket served(later.handler());
  auto client = std::make_unique<RawClient>(served.path());
  client->send(kGet);
  with_reply(served, later, [](HttpReply& reply) {
    reply.begin(200, "text/plain");
    EXPECT_TRUE(reply.write("one"));
  });
  EXPECT_TRUE(client->read_until("one"));
  client.reset();
  bool writable = true;
  const auto end = std::chrono::steady_clock::now() + kTestDeadline;
  while (writable && std::chrono::steady_clock::now() < end)
    with_reply(served, later, [&](HttpReply& reply) { writable = reply.write("more"); });
  EXPECT_FALSE(writable);
  with_reply(served, later, [](HttpReply& reply) { reply.end(); });
  served.thread().run_and_wait([&] { later.replies.clear(); });
  served.expect_connections(0);
}

TEST(HttpServer, a_client_that_does_not_read_a_stream_is_closed) {
  Later later;
  ServedSocket served(later.handler(), {.unread_bytes_max = 100'000});
  RawClient client(served.path());
  client.send(kGet);
  size_t written = 0;
  bool writable = true;
  with_reply(served, later, [](HttpReply& reply) { reply.begin(200, "text/plain"); });
  while (writable && written < 10'000'000)
    with_reply(served, later, [&](HttpReply& reply) {
      writable = reply.write(std::string(10'000, 'x'));
      written += 10'000;
    });
  EXPECT_FALSE(writable) << written;
  served.thread().run_and_wait([&] { later.replies.clear(); });
  served.expect_connections(0);
}

TEST(HttpServer, a_client_that_does_not_take_its_answer_is_closed) {
  ServedSocket served(
      [](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
        reply->send({.body = std::string(8 << 20, 'x')});
      },
      {.write_max = milliseconds(100)});
  RawClient client(served.path());
  client.send(kGet);
  ASSERT_TRUE(client.read_until("\r\n\r\n"));
  served.expect_connections(0);
}

TEST(HttpServer, replies_may_outlive_the_server) {
  Later later;
  ServedSocket served(later.handler());
  RawClient client(served.path());
  client.send(kGet);
  with_reply(served, later, [](HttpReply&) {});
  served.stop();
  client.read_to_end();
  served.thread().run_and_wait([&] {
    later.replies.front()->send({.body = "too late"});
    later.replies.clear();
  });
}

TEST(HttpClient, tells_what_went_wrong_in_one_line) {
  EXPECT_THAT(http_request({.socket = "/nowhere/api.sock", .path = "/"}).error().text,
              HasSubstr("No such file"));
  ServedSocket silent([](const HttpRequest&, const std::shared_ptr<HttpReply>&) {});
  silent.stop();  // its listener takes connections, and no one answers
  EXPECT_EQ(http_request({.socket = silent.path(), .path = "/", .patience = milliseconds(50)})
                .error()
                .text,
            "it does not answer within 50 ms");
  std::atomic<bool> cancelled{true};
  EXPECT_EQ(
      http_request({.socket = silent.path(), .path = "/", .cancelled = &cancelled}).error().text,
      kClientCancelled);
}

TEST(HttpClient, reads_a_stream_line_by_line) {
  ServedSocket served([](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
    reply->begin(200, "text/plain");
    EXPECT_TRUE(reply->write("one\ntw"));
    EXPECT_TRUE(reply->write("o\nthree"));
    reply->end();
  });
  std::vector<std::string> lines;
  const auto answer =
      http_request({.socket = served.path(), .path = "/", .on_line = [&](std::string_view line) {
                      lines.emplace_back(line);
                    }});
  ASSERT_TRUE(answer) << answer.error().text;
  EXPECT_EQ(answer->body, "one\ntwo\nthree");
  EXPECT_THAT(lines, testing::ElementsAre("one", "two"));
}

TEST(Json, quotes_what_it_must) {
  EXPECT_EQ(json_quote("a\"b\\c\n\x01"), "\"a\\\"b\\\\c\\u000a\\u0001\"");
}

}  // namespace
}  // namespace lethe
