// The control API's paths, against a machine that is none.
#include "vmm/api/vm_api.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>

#include "base/log.h"
#include "vmm/api/api_body.h"
#include "vmm/api/fake_api_client.h"
#include "vmm/api/fake_target.h"
#include "vmm/api/http_client.h"
#include "vmm/api/openapi_test_util.h"

namespace lethe {
namespace {

using testing::HasSubstr;

std::string text_of(const std::string& path) {
  std::ifstream stream(path);
  return {std::istreambuf_iterator<char>(stream), {}};
}

class VmApi : public testing::Test {
 protected:
  ClientAnswer ask(const std::string& method, const std::string& path,
                   const std::string& body = {}) {
    const auto answer =
        http_request({.socket = x_served.path(), .method = method, .path = path, .body = body});
    EXPECT_TRUE(answer) << answer.error().text;
    if (!answer) return {};
    const std::string file_path = path.substr(0, path.find('?'));
    EXPECT_EQ(openapi().check_answer(method, file_path, answer->status, answer->type, answer->body),
              "")
        << method << " " << path;
    if (answer->status < 300)
      EXPECT_EQ(openapi().check_request(method, file_path, body), "") << method << " " << path;
    return *answer;
  }
  static const OpenApi& openapi() {
    static const OpenApi document(LETHE_SOURCE_DIR "/docs/openapi.json");
    return document;
  }
  void expect_refused(unsigned status, const std::string& method, const std::string& path,
                      const std::string& body, const std::string& text) {
    SCOPED_TRACE(method + " " + path + " " + body);
    const ClientAnswer answer = ask(method, path, body);
    EXPECT_EQ(answer.status, status);
    EXPECT_THAT(answer.body, testing::StartsWith("{\"error\":\""));
    EXPECT_THAT(answer.body, HasSubstr(text));
  }

  void TearDown() override {
    x_served.thread().run_and_wait([this] { x_target.hub.detach(); });
  }

  FakeTarget x_target;
  ServedSocket x_served{[this](const HttpRequest& request, std::shared_ptr<HttpReply> reply) {
    answer_api(x_target, request, std::move(reply));
  }};
};

TEST_F(VmApi, tells_its_state) {
  const ClientAnswer answer = ask("GET", "/state");
  EXPECT_EQ(answer.status, 200u);
  EXPECT_EQ(answer.body,
            "{\"name\":\"vm\",\"state\":\"running\",\"pid\":42,\"uptime_s\":1.5E0,\"boots\":2,"
            "\"cpus\":4,\"memory_bytes\":134217728}\n");
}

TEST_F(VmApi, every_path_is_in_the_document_and_the_reverse) {
  std::vector<OpenApi::Operation> routes;
  const std::string text = text_of(LETHE_SOURCE_DIR "/docs/api.md");
  for (const ApiRoute& route : api_routes()) {
    routes.push_back({std::string(route.path), std::string(route.method)});
    EXPECT_THAT(text, HasSubstr(fmt::format("| `{} {}` |", route.method, route.path)));
  }
  std::ranges::sort(routes);
  EXPECT_EQ(std::ranges::adjacent_find(routes), routes.end()) << "a route is there twice";
  EXPECT_EQ(routes, openapi().operations());
}

// The names of the events that the sources publish: the words behind publish(, and that of a line
// that a client gets for itself.
std::set<std::string> events_in_sources() {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(LETHE_SOURCE_DIR "/vmm")) {
    const std::string path = entry.path();
    if (!path.ends_with(".cc") || path.ends_with("_test.cc")) continue;
    const std::string text = text_of(path);
    static const std::regex call(R"(publish\(([^;{]*))");
    static const std::regex word(R"re("([a-z-]+)")re");
    for (std::sregex_iterator at(text.begin(), text.end(), call), end; at != end; ++at) {
      const std::string arguments = (*at)[1];
      for (std::sregex_iterator name(arguments.begin(), arguments.end(), word); name != end; ++name)
        names.insert((*name)[1]);
    }
    static const std::regex line(R"("event: ([a-z-]+)\\n)");
    for (std::sregex_iterator at(text.begin(), text.end(), line), end; at != end; ++at)
      names.insert((*at)[1]);
  }
  return names;
}

TEST_F(VmApi, every_event_is_in_both_documents_and_the_reverse) {
  const std::set<std::string> published = events_in_sources();
  EXPECT_TRUE(published.contains("frontend-gone") && published.contains("lost"));
  EXPECT_EQ(published, openapi().event_names());
  const std::string manual = text_of(LETHE_SOURCE_DIR "/docs/api.md");
  const size_t begin = manual.find("\n## Events\n");
  ASSERT_NE(begin, std::string::npos);
  const std::string section = manual.substr(begin, manual.find("\n## ", begin + 1) - begin);
  std::set<std::string> told;
  static const std::regex row(R"(\n\| (`[^|]*)\|)");
  static const std::regex word("`([a-z-]+)`");
  for (std::sregex_iterator at(section.begin(), section.end(), row), end; at != end; ++at) {
    const std::string cell = (*at)[1];
    for (std::sregex_iterator name(cell.begin(), cell.end(), word); name != end; ++name)
      told.insert((*name)[1]);
  }
  EXPECT_EQ(published, told);
}

TEST_F(VmApi, the_run_is_driven) {
  const auto done = [this](const char* path, unsigned status, const char* word) {
    SCOPED_TRACE(path);
    EXPECT_EQ(ask("POST", path).status, status);
    EXPECT_EQ(x_target.word, word);
  };
  done("/pause", 200, "paused");
  EXPECT_THAT(ask("GET", "/state").body, HasSubstr("\"state\":\"paused\""));
  done("/resume", 200, "running");
  done("/power-button", 202, "button");
  done("/reset", 202, "reset");
  done("/kill", 202, "killed");
  EXPECT_EQ(ask("POST", "/pause", "{}").status, 200u);
  x_target.word = "";
  x_target.refuse = true;
  for (const char* path : {"/pause", "/resume", "/power-button", "/reset", "/kill"}) {
    expect_refused(409, "POST", path, "", "the VM is stopping");
    expect_refused(400, "POST", path, "{\"force\":true}", "the body must be empty, or {}");
    expect_refused(400, "POST", path, "now", "the body is no JSON");
    expect_refused(405, "GET", path, "", "takes POST, not GET");
  }
  EXPECT_EQ(x_target.word, "");
}

TEST_F(VmApi, a_snapshot_is_taken_where_the_client_says) {
  const ClientAnswer answer = ask("POST", "/snapshot", R"({"dir":"/tmp/a b","stop":true})");
  EXPECT_EQ(answer.status, 200u);
  EXPECT_EQ(answer.body,
            "{\"dir\":\"/tmp/a b\",\"memory_bytes\":4096,\"disk_bytes\":8192,\"paused_ms\":"
            "1.5E0}\n");
  EXPECT_EQ(x_target.word, "snapshot, stopped");
  EXPECT_EQ(ask("POST", "/snapshot", R"({"dir":"/tmp/s"})").status, 200u);
  EXPECT_EQ(x_target.word, "snapshot");
  x_target.word = "";
  for (const char* body :
       {R"({"dir":"tmp/s"})", R"({"dir":7})", R"({"dir":""})", R"({"dir":"/tmp/s\u0000x"})"})
    expect_refused(400, "POST", "/snapshot", body, "'dir' must be an absolute path");
  expect_refused(400, "POST", "/snapshot", "{}", "'dir' is missing");
  expect_refused(400, "POST", "/snapshot", R"({"dir":"/s","stop":1})", "must be true or false");
  expect_refused(400, "POST", "/snapshot", R"({"dri":"/s"})", "'dri' can't be set");
  x_target.refuse = true;
  expect_refused(409, "POST", "/snapshot", R"({"dir":"/tmp/s"})", "is there already");
  EXPECT_EQ(x_target.word, "");
}

TEST_F(VmApi, tells_metrics_in_two_forms) {
  EXPECT_EQ(ask("GET", "/stats").body,
            "{\"a\":{\"b_total\":{\"v\":7}},\"decisions\":[{\"age_s\":1.2,\"text\":\"pool to 64 "
            "MiB: \\\"pressure\\\"\"},{\"age_s\":60.0,\"text\":\"older\"}]}\n");
  EXPECT_THAT(ask("GET", "/metrics?ignored").body, HasSubstr("\nlethe_a_b_total{k=\"v\"} 7\n"));
}

TEST_F(VmApi, sets_memory_and_answers_with_what_holds_now) {
  const ClientAnswer answer =
      ask("PUT", "/memory",
          R"({"policy":"discard","auto":true,"pool_max":"64M","balloon_target":1048576})");
  EXPECT_EQ(answer.status, 200u) << answer.body;
  EXPECT_EQ(x_target.change.policy, MemoryPolicy::kDiscard);
  EXPECT_EQ(x_target.change.automatic, true);
  EXPECT_EQ(x_target.change.pool_max, 64 * kMiB);
  EXPECT_EQ(x_target.change.balloon_target, kMiB);
  EXPECT_THAT(answer.body, HasSubstr("\"balloon_target\":1048576"));
  EXPECT_EQ(ask("GET", "/memory").body, answer.body);
  EXPECT_EQ(ask("PUT", "/memory", R"({"auto":false})").status, 200u);
  EXPECT_EQ(x_target.change.policy, std::nullopt);
}

TEST_F(VmApi, bad_bodies_change_nothing) {
  const auto refused = [&](const std::string& body, const std::string& text) {
    expect_refused(400, "PUT", "/memory", body, text);
  };
  refused("", "the body is no JSON");
  refused("{", "the body is no JSON");
  refused("{} {}", "the body is no JSON");
  refused("[]", "must be a JSON object");
  refused("[[[[[[[[[[[[", "the body is no JSON");
  refused(R"({"policy":"polo"})", "'policy' must be");
  refused(R"({"policy":1})", "'policy' must be");
  refused(R"({"auto":"yes"})", "'auto' must be true or false");
  refused(R"({"pool_max":-1})", "'pool_max' must be");
  refused(R"({"pool_max":1.5})", "'pool_max' must be");
  refused(R"({"balloon_target":"1X"})", "'balloon_target' must be");
  refused(R"({"balloon_target":99999999999999999999})", "'balloon_target' must be");
  refused(R"({"polcy":"pool"})", "did you mean 'policy'?");
  refused(R"({"policy":"pool","a\nb":1})", "can't be set");
  EXPECT_EQ(x_target.change.policy, std::nullopt);
}

TEST_F(VmApi, what_the_machine_refuses_is_a_conflict) {
  x_target.refuse = true;
  expect_refused(409, "PUT", "/memory", R"({"policy":"pool"})", "no balloon");
  expect_refused(409, "POST", "/memory/reclaim", R"({"bytes":"all"})", "one pull is under way");
}

TEST_F(VmApi, tells_and_sets_the_guis_limits) {
  EXPECT_EQ(ask("GET", "/gui").body,
            "{\"free_per_iteration\":10000,\"orphan_bytes_max\":0,\"orphans_max\":0,"
            "\"orphan_ms_max\":5,\"buffers\":{\"live\":{\"buffers\":3,\"bytes\":4096},"
            "\"orphan\":{\"buffers\":1,\"bytes\":512},\"freed\":{\"buffers\":9,\"bytes\":8192},"
            "\"revoked\":{\"buffers\":2,\"bytes\":64},"
            "\"leaked\":{\"buffers\":0,\"bytes\":0}}}\n");
  const ClientAnswer answer =
      ask("PATCH", "/gui", R"({"free_per_iteration":0,"orphan_bytes_max":"64M","orphans_max":7})");
  EXPECT_EQ(answer.status, 200u) << answer.body;
  EXPECT_EQ(x_target.gui_asked.free_per_iteration, 0u);
  EXPECT_EQ(x_target.gui_asked.orphan_bytes_max, 64 * kMiB);
  EXPECT_EQ(x_target.gui_asked.orphans_max, 7u);
  EXPECT_EQ(x_target.gui_asked.orphan_ms_max, std::nullopt);
  EXPECT_THAT(answer.body, HasSubstr("\"orphan_bytes_max\":67108864"));
  x_target.refuse = true;
  expect_refused(409, "GET", "/gui", "", "no GUI");
  expect_refused(409, "PATCH", "/gui", "{}", "no GUI");
}

TEST_F(VmApi, tells_and_sets_network_cards) {
  EXPECT_THAT(ask("GET", "/nets").body, HasSubstr(R"("mac":"02:00:00:00:00:01")"));
  EXPECT_THAT(ask("GET", "/nets/0").body, HasSubstr(R"("link":true,"up":true)"));
  const auto changed =
      ask("PATCH", "/nets/0", R"({"link":false,"bandwidth_max":"1M","packets_max":500})");
  EXPECT_EQ(changed.status, 200u);
  EXPECT_THAT(changed.body,
              HasSubstr(R"("link":false,"up":false,"bandwidth_max":1048576,"packets_max":500)"));
  expect_refused(404, "GET", "/nets/1", "", "there is no network card 1: this VM has 1");
  expect_refused(404, "PATCH", "/nets/99999", "{}", "there is no network card");
  for (const auto& [body, text] : std::initializer_list<std::pair<const char*, const char*>>{
           {R"({"link":1})", "'link' must be true or false"},
           {R"({"links":true})", "'links' can't be set; did you mean 'link'?"},
           {R"({"packets_max":"5K"})", "'packets_max' must be a whole number"},
           {R"({"bandwidth_max":-1})", "'bandwidth_max' must be"},
           {R"([])", ""}})
    expect_refused(400, "PATCH", "/nets/0", body, text);
  EXPECT_FALSE(x_target.net_states[0].link) << "as it was set";
}

TEST_F(VmApi, bad_gui_bodies_change_nothing) {
  const auto refused = [&](const std::string& body, const std::string& text) {
    expect_refused(400, "PATCH", "/gui", body, text);
  };
  refused(R"({"free_per_iteration":-1})", "'free_per_iteration' must be a whole number");
  refused(R"({"free_per_iteration":"1K"})", "'free_per_iteration' must be a whole number");
  refused(R"({"orphan_ms_max":0})", "from 1 to 3600000");
  refused(R"({"orphans_max":99999999999})", "from 0 to 16777216");
  refused(R"({"orphan_bytes_max":"1X"})", "'orphan_bytes_max' must be a size");
  refused(R"({"orphan_max":1})", "did you mean 'orphans_max'?");
  refused(R"({"enabled":true})", "can't be set");
  EXPECT_EQ(x_target.gui_asked.orphans_max, std::nullopt);
}

TEST_F(VmApi, tells_and_changes_disks) {
  EXPECT_EQ(ask("GET", "/disks").body,
            "{\"disks\":[{\"disk\":0,\"path\":\"a.img\",\"read_only\":false,\"size_bytes\":512,"
            "\"iops_max\":0,\"bandwidth_max\":0},{\"disk\":1,\"path\":\"b.img\",\"read_only\":true,"
            "\"size_bytes\":1024,\"iops_max\":0,\"bandwidth_max\":0}]}\n");
  const ClientAnswer answer =
      ask("PATCH", "/disks/1", R"({"size_bytes":"1M","iops_max":100,"bandwidth_max":"10M"})");
  EXPECT_EQ(answer.status, 200u) << answer.body;
  EXPECT_THAT(answer.body, HasSubstr("\"size_bytes\":1048576,\"iops_max\":100,"));
  EXPECT_EQ(ask("GET", "/disks/1").body, answer.body);
  EXPECT_EQ(ask("PATCH", "/disks/0", R"({"size_bytes":"file"})").status, 200u);
  EXPECT_TRUE(x_target.disk_asked.resize);
  EXPECT_EQ(x_target.disk_asked.size_bytes, std::nullopt);
  EXPECT_EQ(x_target.disk_asked.iops_max, std::nullopt);
  EXPECT_EQ(ask("PATCH", "/disks/0", R"({"iops_max":0})").status, 200u);
  EXPECT_FALSE(x_target.disk_asked.resize);
  x_target.refuse = true;
  expect_refused(409, "PATCH", "/disks/0", R"({"size_bytes":512})", "it is not made smaller");
}

TEST_F(VmApi, bad_disks_and_bodies_change_nothing) {
  for (const char* path : {"/disks/2", "/disks/99999", "/disks/00002"})
    for (const char* method : {"GET", "PATCH"})
      expect_refused(404, method, path, "{\"iops_max\":1}", "there is no disk");
  for (const char* path : {"/disks/", "/disks/x", "/disks/-1", "/disks/1x", "/disks/100000",
                           "/disks/1/", "/disks/0x1", "/disks/18446744073709551616", "/disks/%31"})
    expect_refused(404, "PATCH", path, "{\"iops_max\":1}", "there is no");
  const auto refused = [&](const std::string& body, const std::string& text) {
    expect_refused(400, "PATCH", "/disks/0", body, text);
  };
  refused(R"({"size_bytes":"files"})", ", or \\\"file\\\"");
  refused(R"({"size_bytes":-512})", "'size_bytes' must be");
  refused(R"({"size_bytes":1e30})", "'size_bytes' must be");
  refused(R"({"iops_max":1000000001})", "'iops_max' must be");
  refused(R"({"iops_max":"1K"})", "'iops_max' must be");
  refused(R"({"bandwidth_max":null})", "'bandwidth_max' must be");
  refused(R"({"iops_ma":1})", "did you mean 'iops_max'?");
  refused(R"({"path":"/etc/passwd"})", "can't be set");
  EXPECT_FALSE(x_target.disk_asked.resize || x_target.disk_asked.iops_max);
}

TEST_F(VmApi, screens_are_told_and_resized) {
  EXPECT_EQ(ask("GET", "/gui/screens").body,
            "{\"screens\":[{\"screen\":0,\"width\":640,\"height\":480,\"shows\":true}]}\n");
  EXPECT_EQ(ask("PUT", "/gui/screens/0", R"({"width":1024,"height":768})").body,
            "{\"screen\":0,\"width\":1024,\"height\":768,\"shows\":true}\n");
  const auto refused = [&](const std::string& body, const std::string& text) {
    expect_refused(400, "PUT", "/gui/screens/0", body, text);
  };
  refused("{}", "the body must be");
  refused(R"({"width":1024})", "the body must be");
  refused(R"({"width":319,"height":768})", "'width' must be a whole number from 320 to 16384");
  refused(R"({"width":1024,"height":16385})", "'height' must be");
  refused(R"({"width":"1024","height":768})", "'width' must be");
  refused(R"({"width":1024,"height":768,"depth":24})", "'depth' can't be set");
  refused(R"({"width":1024,"height":4294968064})", "'height' must be");
  expect_refused(404, "PUT", "/gui/screens/1", R"({"width":1024,"height":768})", "no screen 1");
  expect_refused(404, "GET", "/gui/screens/1/screenshot", "", "there is no screen 1");
  expect_refused(404, "GET", "/gui/screens/0/", "", "there is no");
  EXPECT_EQ(x_target.screen.width, 1024u);
  x_target.refuse = true;
  expect_refused(409, "GET", "/gui/screens", "", "no GUI");
  expect_refused(409, "PUT", "/gui/screens/0", R"({"width":1024,"height":768})", "no GUI");
}

TEST_F(VmApi, a_screenshot_comes_when_it_is_made) {
  RawClient client(x_served.path());
  client.send("GET /gui/screens/0/screenshot HTTP/1.1\r\n\r\nGET /state HTTP/1.1\r\n\r\n");
  AsioThread& thread = x_served.thread();
  ASSERT_TRUE(eventually([&] {
    bool asked = false;
    thread.run_and_wait([&] { asked = x_target.on_picture != nullptr; });
    return asked;
  }));
  thread.run_and_wait([&] { std::exchange(x_target.on_picture, nullptr)("pixels"); });
  EXPECT_TRUE(client.read_until("Content-Type: image/png\r\nContent-Length: 6\r\n"));
  EXPECT_TRUE(client.read_until("\r\n\r\npixelsHTTP/1.1 200 OK"));
  x_target.screen.shows = false;
  expect_refused(409, "GET", "/gui/screens/0/screenshot", "", "screen 0 shows nothing");
}

TEST_F(VmApi, log_levels_change_while_it_runs) {
  const std::string before = log_levels();
  EXPECT_THAT(ask("PATCH", "/log", R"({"levels":"error,gui=debug"})").body, HasSubstr("vmm=error"));
  EXPECT_TRUE(log_enabled(LogModule::kGui, LogLevel::kDebug));
  EXPECT_FALSE(log_enabled(LogModule::kPci, LogLevel::kWarn));
  EXPECT_THAT(ask("GET", "/log").body, HasSubstr("legacy=error,gui=debug"));
  expect_refused(400, "PATCH", "/log", R"({"levels":"loud"})", "log level 'loud' is not known");
  expect_refused(400, "PATCH", "/log", R"({"levels":"gpu=debug"})", "log module 'gpu'");
  expect_refused(400, "PATCH", "/log", R"({"level":"warn"})", "the body must be");
  expect_refused(400, "PATCH", "/log", R"({"levels":3})", "the body must be");
  EXPECT_TRUE(log_enabled(LogModule::kGui, LogLevel::kDebug));
  EXPECT_TRUE(set_log_levels(before));
}

TEST_F(VmApi, no_path_takes_a_body_that_is_no_request_of_its) {
  std::string deep, deep_object;
  for (int i = 0; i < 20'000; ++i) deep += "[";
  for (int i = 0; i < 8'000; ++i) deep_object += "{\"a\":";
  const std::string bad[] = {"{",
                             "nonsense",
                             "null",
                             "[]",
                             "\"pool\"",
                             "1e999999",
                             "{\"no_such_key\":1}",
                             "{\"\":1}",
                             "{\"a\\u0000b\":{}}",
                             "{\"bytes\":1e400}",
                             "{\"a\":\"\xff\xfe\"}",
                             "{\"a\":1}{\"a\":1}",
                             "{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":1}}}}}",
                             std::string(1, '\0'),
                             "{\"" + std::string(60'000, 'k') + "\":1}",
                             "{\"a\":" + std::string(60'000, '9') + "}",
                             deep,
                             deep_object};
  for (const ApiRoute& route : api_routes()) {
    if (route.method == "GET") continue;
    std::string path(route.path);
    if (const size_t at = path.find("{n}"); at != std::string::npos) path.replace(at, 3, "0");
    for (const std::string& body : bad)
      expect_refused(400, std::string(route.method), path, body, "");
  }
  EXPECT_EQ(x_target.word, "");
  EXPECT_EQ(x_target.pulled, std::nullopt);
  EXPECT_EQ(x_target.screen.width, 640u);
}

TEST_F(VmApi, unknown_paths_and_methods_are_told) {
  expect_refused(404, "GET", "/", "", "there is no /");
  expect_refused(404, "GET", "/state/", "", "there is no /state/");
  expect_refused(404, "GET", "/%73tate", "", "there is no");
  expect_refused(404, "GET", "/" + std::string(4000, 'x'), "", "...");
  expect_refused(405, "DELETE", "/memory", "", "takes GET, PUT");
  expect_refused(405, "BREW", "/state", "", "takes GET, not BREW");
  RawClient client(x_served.path());
  client.send("POST /memory HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
  EXPECT_THAT(client.read_to_end(), HasSubstr("\r\nAllow: GET, PUT\r\n"));
}

TEST_F(VmApi, reclaim_wants_a_number_or_all) {
  const auto refused = [&](const std::string& body) {
    expect_refused(400, "POST", "/memory/reclaim", body, "bytes");
  };
  for (const char* body : {"{}", R"({"bytes":-1})", R"({"bytes":"some"})", R"({"bytes":true})",
                           R"({"bytes":1,"more":2})", R"({"byte":1})"})
    refused(body);
  EXPECT_EQ(x_target.pulled, std::nullopt);
}

TEST_F(VmApi, reclaim_streams_progress_and_the_end) {
  RawClient client(x_served.path());
  client.send(
      "POST /memory/reclaim HTTP/1.1\r\nContent-Length: 15\r\n\r\n{\"bytes\":\"all\"}"
      "GET /state HTTP/1.1\r\n\r\n");
  ASSERT_TRUE(client.read_until("chunked\r\n"));
  AsioThread& thread = x_served.thread();
  thread.run_and_wait([&] {
    EXPECT_EQ(x_target.pulled, UINT64_MAX);
    x_target.on_progress(4096);
  });
  ASSERT_TRUE(client.read_until("{\"bytes\":4096}\n"));
  thread.run_and_wait([&] {
    x_target.on_done({.bytes = 8192,
                      .took = std::chrono::milliseconds(12),
                      .complete = false,
                      .text = "the guest was \"reset\""});
    x_target.on_progress = {};
    x_target.on_done = {};
  });
  EXPECT_TRUE(
      client.read_until("{\"bytes\":8192,\"took_ms\":12,\"complete\":false,"
                        "\"text\":\"the guest was \\\"reset\\\"\"}\n"));
  EXPECT_TRUE(client.read_until("\"name\":\"vm\""));  // the connection goes on
}

TEST_F(VmApi, reclaim_goes_on_without_its_client) {
  {
    RawClient client(x_served.path());
    client.send("POST /memory/reclaim HTTP/1.1\r\nContent-Length: 15\r\n\r\n{\"bytes\":\"32M\"}");
    ASSERT_TRUE(client.read_until("chunked\r\n"));
  }
  x_served.thread().run_and_wait([&] {
    EXPECT_EQ(x_target.pulled, 32 * kMiB);
    for (int i = 0; i < 1000; ++i) x_target.on_progress(4096);
    x_target.on_done({.bytes = 8192, .complete = true});
    x_target.on_progress = {};
    x_target.on_done = {};
  });
  EXPECT_EQ(ask("GET", "/state").status, 200u);
  x_served.expect_connections(0);
}

TEST_F(VmApi, tells_what_the_console_printed_byte_for_byte) {
  x_target.console = std::string("a\0\x1b[1m\xff\r\n", 9);
  EXPECT_EQ(ask("GET", "/console/log").body, x_target.console);
  EXPECT_THAT(ask("POST", "/console/log").body, HasSubstr("takes GET, not POST"));
}

TEST_F(VmApi, sets_the_consoles_size) {
  EXPECT_EQ(ask("PUT", "/console/size", R"({"columns":132,"rows":50})").body,
            "{\"columns\":132,\"rows\":50}\n");
  EXPECT_EQ(x_target.console_size, std::pair(132, 50));
  for (const char* body : {"{}", R"({"columns":80})", R"({"columns":80,"rows":0})",
                           R"({"columns":80,"rows":65536})", R"({"columns":80,"rows":-1})",
                           R"({"columns":80,"rows":"24"})", R"({"columns":80.5,"rows":24})"})
    expect_refused(400, "PUT", "/console/size", body, "must be");
  expect_refused(400, "PUT", "/console/size", R"({"column":80,"rows":24})",
                 "'column' can't be set; did you mean 'columns'?");
  EXPECT_EQ(x_target.console_size, std::pair(132, 50));
}

}  // namespace
}  // namespace lethe
