// stats, top and reclaim, the built program, with VMs that are none: a locked run-time directory,
// and a server of the test's own that answers well, badly or not at all.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>

#include "base/event_loop.h"
#include "vmm/api/fake_api_client.h"
#include "vmm/run_dir.h"

namespace lethe {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;
using ReplyPtr = std::shared_ptr<HttpReply>;

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
};

class VmCommands : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-vmc-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
    x_roots = {x_dir, x_dir + "/user", x_dir + "/tmp"};
  }
  void TearDown() override {
    x_thread.run_and_wait([this] {
      x_kept.clear();
      x_servers.clear();
    });
    x_run_dirs.clear();
    std::filesystem::remove_all(x_dir);
  }

  // A VM of that name whose control API is `handler`.
  void serve(const std::string& name, HttpHandler handler) {
    auto run_dir = RunDir::create(name, x_roots);
    ASSERT_TRUE(run_dir) << run_dir.error().text;
    auto listener = listen_unix(run_dir->path() + "/api.sock");
    ASSERT_TRUE(listener) << listener.error().text;
    x_thread.run_and_wait([&] {
      auto server = HttpServer::create(x_thread.loop(), *listener, std::move(handler));
      ASSERT_TRUE(server);
      x_servers.push_back(std::move(*server));
    });
    run_dir->set_ready();
    x_run_dirs.push_back(std::move(*run_dir));
  }

  std::string read(const std::string& name) const {
    std::ifstream file(x_dir + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // What the servers' thread did is done when this returns, and what it does next comes after it.
  Ran lethe(const std::string& words, const std::string& before = "timeout 30") {
    x_thread.run_and_wait([] {});
    const std::string command =
        fmt::format("XDG_RUNTIME_DIR={0} {1} {2} {3} >{0}/out 2>{0}/err </dev/null", x_dir, before,
                    LETHE_PROGRAM, words);
    const int status = std::system(command.c_str());
    x_thread.run_and_wait([] {});
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("err")};
  }

  std::string x_dir;
  RunDirRoots x_roots;
  std::vector<RunDir> x_run_dirs;
  std::vector<std::unique_ptr<HttpServer>> x_servers;
  std::vector<ReplyPtr> x_kept;  // the server's thread's: never answered
  AsioThread x_thread;
};

// Answers each path with a text.
HttpHandler texts(std::map<std::string, std::string> answers) {
  return [answers = std::move(answers)](const HttpRequest& request, const ReplyPtr& reply) {
    const auto found = answers.find(request.path);
    reply->send(found == answers.end() ? http_error(404, "there is no such path")
                                       : HttpAnswer{.body = found->second});
  };
}

const std::string kState =
    R"({"name":"web","state":"running","pid":5,"uptime_s":60,"boots":1,"cpus":1})";
const std::string kStats = R"({"memory":{"size_bytes":1048576,"resident_bytes":4096}})";

TEST_F(VmCommands, stats_prints_a_table_or_what_the_vm_said) {
  serve("web", texts({{"/state", kState}, {"/stats", kStats + "\n"}}));
  EXPECT_EQ(lethe("stats web").out,
            "web: running, process 5, up 1 min 0 s, 1 vCPU\n\nmemory\n"
            "  guest                 1 MiB\n  resident              4 KiB of it at the host\n");
  EXPECT_EQ(lethe("stats web --json").out, kStats + "\n");
}

TEST_F(VmCommands, stats_of_a_vm_that_answers_badly_is_one_line) {
  serve("junk", texts({{"/state", kState}, {"/stats", "{\"a\":"}}));
  serve("none", texts({}));
  serve("drop", [](const HttpRequest&, const ReplyPtr&) {});
  const auto refused = [this](const std::string& words, const std::string& part) {
    SCOPED_TRACE(words);
    const Ran ran = lethe(words);
    EXPECT_EQ(ran.code, 1);
    EXPECT_EQ(ran.out, "");
    EXPECT_THAT(ran.err, StartsWith("lethe: "));
    EXPECT_THAT(ran.err, HasSubstr(part));
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  };
  refused("stats junk", "'junk' answers with what is no JSON");
  refused("stats none", "'none': there is no such path");
  refused("stats drop", "'drop': the request was dropped");
  refused("stats mail", "'mail' does not run; running: drop, junk, none");
}

TEST_F(VmCommands, top_shows_a_vm_that_does_not_answer_beside_those_that_do) {
  serve("web", texts({{"/state", kState}, {"/stats", kStats}}));
  serve("stuck", [this](const HttpRequest&, const ReplyPtr& reply) { x_kept.push_back(reply); });
  const Ran ran = lethe("top --once --sort name");
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(ran.out, StartsWith("2 VMs, "));
  EXPECT_THAT(ran.out, HasSubstr("it does not answer within 1000 ms\nweb  "));
}

TEST_F(VmCommands, top_is_an_array_as_json) {
  EXPECT_EQ(lethe("top --json").out, "[]\n");
  serve("web", texts({{"/state", kState}, {"/stats", kStats}}));
  serve("none", texts({}));
  const Ran ran = lethe("top --once --json --sort name");
  EXPECT_EQ(ran.code, 0) << ran.err;
  const auto rows = boost::json::parse(ran.out).as_array();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0],
            boost::json::parse(R"({"name":"none","problem":"'none': there is no such path"})"));
  EXPECT_EQ(rows[1].at("name"), "web");
  EXPECT_EQ(rows[1].at("memory_bytes"), 1048576);
  EXPECT_EQ(rows[1].at("resident_bytes"), 4096);
  EXPECT_TRUE(rows[1].at("guest_free_bytes").is_null());
}

// Answers a pull: some progress, and what `end` says.
HttpHandler puller(std::string& body, std::string end) {
  return [&body, end = std::move(end)](const HttpRequest& request, const ReplyPtr& reply) {
    body = request.method + " " + request.path + " " + request.body;
    reply->begin(200, "application/x-ndjson");
    EXPECT_TRUE(reply->write("{\"bytes\":1048576}\n"));
    EXPECT_TRUE(reply->write(end));
    reply->end();
  };
}

TEST_F(VmCommands, reclaim_tells_bytes_and_time) {
  std::string body;
  serve("web", puller(body, R"({"bytes":536870912,"took_ms":130,"complete":true,"text":"all"})"
                            "\n"));
  const Ran ran = lethe("reclaim web 512M");
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, "512 MiB returned in 130.0 ms\n");
  EXPECT_EQ(ran.err, "");
  EXPECT_EQ(body, "POST /memory/reclaim {\"bytes\":536870912}");
  EXPECT_EQ(lethe("reclaim web --json").out,
            "{\"bytes\":536870912,\"took_ms\":130,\"complete\":true,\"text\":\"all\"}\n");
  EXPECT_EQ(lethe("reclaim web").code, 0);
  EXPECT_EQ(body, "POST /memory/reclaim {\"bytes\":\"all\"}");
}

TEST_F(VmCommands, reclaim_that_is_incomplete_says_why_and_fails) {
  std::string body;
  serve("web", puller(body, R"({"bytes":4096,"took_ms":1,"complete":false,"text":"the guest )"
                            R"(was reset"})"
                            "\n"));
  Ran ran = lethe("reclaim web");
  EXPECT_EQ(ran.code, 1);
  EXPECT_EQ(ran.out, "4 KiB returned in 1.0 ms, incomplete\n");
  EXPECT_EQ(ran.err, "lethe: reclaim: the guest was reset\n");
  ran = lethe("reclaim web --json");
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.out, HasSubstr("\"complete\":false,\"text\":\"the guest was reset\"}\n"));
  serve("ended", puller(body, ""));
  ran = lethe("reclaim ended");
  EXPECT_EQ(ran.code, 1);
  EXPECT_EQ(ran.err, "lethe: reclaim: the VM ended before it was done\n");
  serve("busy", [](const HttpRequest&, const ReplyPtr& reply) {
    reply->send(http_error(409, "another pull is running"));
  });
  EXPECT_EQ(lethe("reclaim busy").err, "lethe: 'busy': another pull is running\n");
}

TEST_F(VmCommands, reclaim_notices_that_the_vm_dies) {
  serve("web", [this](const HttpRequest&, const ReplyPtr& reply) {
    reply->begin(200, "application/x-ndjson");
    EXPECT_TRUE(reply->write("{\"bytes\":1048576}\n"));
    x_thread.loop().post([this] { x_servers.clear(); });
    x_kept.push_back(reply);
  });
  const Ran ran = lethe("reclaim web");
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.err, HasSubstr("the answer was cut"));
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
}

TEST_F(VmCommands, reclaim_is_interrupted_cleanly) {
  serve("web", [this](const HttpRequest&, const ReplyPtr& reply) {
    reply->begin(200, "application/x-ndjson");
    EXPECT_TRUE(reply->write("{\"bytes\":1048576}\n"));
    x_kept.push_back(reply);
  });
  for (const char* signal : {"INT", "TERM"}) {
    const Ran ran =
        lethe("reclaim web", fmt::format("timeout --preserve-status --foreground -s {} 1", signal));
    EXPECT_EQ(ran.code, 130);
    EXPECT_EQ(ran.out, "");
    EXPECT_EQ(ran.err, "lethe: reclaim: interrupted after 1 MiB; what 'web' has begun goes on\n");
  }
}

// The program is run from a directory of its own, with stand-ins for the frontends beside it.
TEST_F(VmCommands, frontends_get_name_and_words_and_their_exit_code_is_ours) {
  std::filesystem::create_directories(x_dir + "/bin");
  std::filesystem::copy_file(LETHE_PROGRAM, x_dir + "/bin/lethe");
  const auto ran = [this](const std::string& words) {
    const std::string command = fmt::format(
        "XDG_RUNTIME_DIR={0} PATH=/nowhere:relative /usr/bin/timeout 30 {0}/bin/lethe {1} >{0}/out "
        "2>{0}/err </dev/null",
        x_dir, words);
    const int status = std::system(command.c_str());
    return Ran{WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("err")};
  };
  serve("web", texts({}));
  serve("mail", texts({}));
  EXPECT_EQ(ran("attach webb").err, "lethe: 'webb' does not run; running: mail, web\n");
  EXPECT_EQ(ran("attach web").err,
            "lethe: 'web' has no GUI: add [gui] enabled = true to its config, and run it anew\n");
  std::ofstream(x_dir + "/lethe/web/gui.sock").put('x');  // stands for a socket
  Ran refused = ran("attach web");
  EXPECT_EQ(refused.code, 1);
  EXPECT_EQ(refused.err,
            fmt::format("lethe: 'lethe-view' is not there: build it (./dev build), and put it "
                        "beside lethe in {}/bin/ or into PATH\n",
                        x_dir));
  for (const auto& [command, program] :
       {std::pair("attach", "lethe-view"), {"vnc", "lethe-vnc"}, {"shot", "lethe-shot"}}) {
    const std::string path = fmt::format("{}/bin/{}", x_dir, program);
    std::ofstream(path) << "#!/bin/sh\necho \"$0|$*\"\nexit 42\n";
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    const Ran good = ran(fmt::format("{} web --window 'a b' -h", command));
    EXPECT_EQ(good.code, 42) << good.err;
    EXPECT_EQ(good.out, fmt::format("{}|web --window a b -h\n", path));
  }
}

}  // namespace
}  // namespace lethe
