// A VM driven by its control API with curl (label kvm): a bare-metal guest that never rests, and
// what the API does to it. Each answer is checked against docs/openapi.json.
#include <gmock/gmock.h>

#include "base/unix_socket.h"
#include "guest-tests/api_check.h"
#include "guest-tests/gui_vm.h"

namespace {

using lethe_test::count_of;
using lethe_test::event_names;
using lethe_test::file_text;
using lethe_test::Program;
using lethe_test::program_folder;
using lethe_test::soon;
using testing::HasSubstr;

constexpr uint64_t kDiskBytes = 1 << 20;

class ControlVm : public testing::Test {
 protected:
  void SetUp() override {
    if (access("/dev/kvm", R_OK | W_OK) != 0)
      GTEST_SKIP() << "SKIPPED: /dev/kvm is missing or not permitted";
    char made[] = "/tmp/lethe-control-XXXXXX";
    ASSERT_NE(mkdtemp(made), nullptr);
    x_dir = made;
    setenv("XDG_RUNTIME_DIR", x_dir.c_str(), 1);
    std::ofstream(x_dir + "/disk");
    std::filesystem::resize_file(x_dir + "/disk", kDiskBytes);
  }
  void TearDown() override {
    x_vm.kill_and_wait();
    if (x_keys >= 0) close(x_keys);
    if (!x_dir.empty()) std::filesystem::remove_all(x_dir);
  }

  // `cmdline` for the kernel; `boot` goes into [boot].
  void start(const std::string& kernel = "virtio.elf", const std::string& cmdline = "test=busy",
             const std::string& boot = "", const std::string& more = "") {
    const std::string folder = program_folder().parent_path() / "guest-tests/baremetal";
    std::ofstream(x_dir + "/vm.toml")
        << "name = \"vm\"\n[memory]\nsize = \"32M\"\n[[disk]]\npath = \"disk\"\n"
        << more << "[boot]\nkernel = \"" << folder << "/" << kernel << "\"\ncmdline = \"" << cmdline
        << "\"\n"
        << boot;
    int keys[2];
    ASSERT_EQ(pipe2(keys, O_CLOEXEC), 0);
    x_keys = keys[1];
    x_vm =
        Program({program_folder() / "lethe", "run", x_dir + "/vm.toml"}, x_dir + "/log", keys[0]);
    close(keys[0]);
    // The socket comes after the guest's start.
    ASSERT_TRUE(soon([this] { return std::filesystem::exists(socket_path()); })) << x_vm.said();
  }
  void start_busy() {
    ASSERT_NO_FATAL_FAILURE(start());
    ASSERT_TRUE(x_vm.says_soon("\ntick 20\n"));
  }
  void type(char key) const { ASSERT_EQ(write(x_keys, &key, 1), 1); }
  [[nodiscard]] std::string socket_path() const { return x_dir + "/lethe/vm/api.sock"; }

  struct Answer {
    int status = 0;
    std::string body;
  };
  // One request by curl, checked against the document.
  Answer curl(const std::string& method, const std::string& path, const std::string& body = "") {
    std::vector<std::string> words = {"curl",
                                      "-sS",
                                      "--max-time",
                                      "60",
                                      "--unix-socket",
                                      socket_path(),
                                      "-X",
                                      method,
                                      "-o",
                                      x_dir + "/body",
                                      "-w",
                                      "%{http_code} %{content_type}",
                                      "http://vm" + path};
    if (!body.empty()) words.insert(words.end(), {"-d", body});
    std::filesystem::remove(x_dir + "/body");
    Program program(words, x_dir + "/curl");
    EXPECT_EQ(program.wait_for_end(), 0) << path << ": " << program.said();
    const std::string said = program.said();
    Answer answer{std::atoi(said.c_str()), file_text(x_dir + "/body")};
    EXPECT_EQ(lethe_test::wrong_with_answer(method, path, static_cast<unsigned>(answer.status),
                                            said.substr(std::min(said.find(' ') + 1, said.size())),
                                            answer.body),
              "")
        << method << " " << path;
    return answer;
  }
  void expect_state(const std::string& word) {
    EXPECT_THAT(curl("GET", "/state").body, HasSubstr("\"state\":\"" + word + "\""));
  }
  // Without a process for each, where there are many.
  void post(const std::string& path) const {
    const auto answer =
        lethe::http_request({.socket = socket_path(), .method = "POST", .path = path});
    ASSERT_TRUE(answer) << answer.error().text;
    ASSERT_EQ(answer->status, 200u) << answer->body;
  }
  // A sum of Prometheus samples that begin so.
  [[nodiscard]] double metric(const std::string& start) const {
    const auto answer = lethe::http_request({.socket = socket_path(), .path = "/metrics"});
    EXPECT_TRUE(answer);
    double sum = -1;
    for (size_t at = 0; answer && (at = answer->body.find("\n" + start, at)) != std::string::npos;
         ++at) {
      const size_t value = answer->body.find("} ", at + 1);
      sum = std::max(sum, 0.0) + std::strtod(answer->body.c_str() + value + 2, nullptr);
    }
    EXPECT_GE(sum, 0) << start;
    return sum;
  }
  // The guest goes on: it says more than it has said.
  void expect_progress() {
    const size_t ticks = count_of(x_vm.said(), "\ntick ");
    EXPECT_TRUE(soon([&] { return count_of(x_vm.said(), "\ntick ") > ticks + 5; })) << x_vm.said();
  }
  Program listen(const std::string& last_event_id) {
    return Program({"curl", "-sSN", "--max-time", "120", "--unix-socket", socket_path(), "-H",
                    "Last-Event-ID: " + last_event_id, "http://vm/events"},
                   x_dir + "/events" + last_event_id);
  }

  std::string x_dir;
  Program x_vm;
  int x_keys = -1;
};

TEST_F(ControlVm, a_paused_guest_stands_still_and_goes_on_when_resumed) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  EXPECT_EQ(curl("POST", "/pause").status, 200);
  expect_state("paused");
  const double exits = metric("lethe_vcpu_exits_total");
  const double requests = metric("lethe_block_requests_total");
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(metric("lethe_vcpu_exits_total"), exits);
    ASSERT_EQ(metric("lethe_block_requests_total"), requests);
  }
  EXPECT_EQ(curl("POST", "/pause", "{}").status, 200);
  EXPECT_EQ(curl("POST", "/resume").status, 200);
  EXPECT_EQ(curl("POST", "/resume").status, 200);
  expect_state("running");
  EXPECT_TRUE(soon([&] { return metric("lethe_vcpu_exits_total") > exits + 10; }));
  EXPECT_TRUE(soon([&] { return metric("lethe_block_requests_total") > requests + 10; }));
  type('q');
  EXPECT_EQ(x_vm.wait_for_end(), 64) << x_vm.said();  // every sector read back as written
}

TEST_F(ControlVm, kicks_of_the_disk_are_ioeventfds_and_leave_no_trace_as_exits) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  EXPECT_TRUE(
      soon([&] { return metric(R"(lethe_queue_chains_total{device="block0",queue="0")") > 100; }));
  EXPECT_EQ(metric(R"(lethe_virtio_kicks_by_exit_total{device="block0")"), 0);
}

TEST_F(ControlVm, a_thousand_pauses_under_load_lose_nothing) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  for (int i = 0; i < 1000; ++i) {
    ASSERT_NO_FATAL_FAILURE(post("/pause"));
    ASSERT_NO_FATAL_FAILURE(post("/resume"));
  }
  expect_progress();
  type('q');
  EXPECT_EQ(x_vm.wait_for_end(), 64) << x_vm.said();
  // Each line of the console is there, once and whole.
  const std::string said = x_vm.said();
  size_t at = 0;
  for (uint64_t tick = 1; at != std::string::npos; ++tick) {
    at = said.find("tick ", at + 1);
    if (at == std::string::npos) break;
    const std::string line = "tick " + std::to_string(tick) + "\n";
    ASSERT_EQ(said.substr(at, line.size()), line);
  }
}

TEST_F(ControlVm, a_paused_guest_takes_settings_and_tells_what_must_wait) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  EXPECT_EQ(curl("POST", "/pause").status, 200);
  EXPECT_THAT(curl("PUT", "/memory", R"({"balloon_target":"4M"})").body,
              HasSubstr("\"balloon_target\":4194304,\"balloon_actual\":0"));
  EXPECT_THAT(curl("POST", "/memory/reclaim", R"({"bytes":"all"})").body,
              HasSubstr("\"complete\":false,\"text\":\"the guest is paused: only the host's"));
  EXPECT_EQ(curl("PATCH", "/log", R"({"levels":"warn"})").status, 200);
  EXPECT_EQ(curl("GET", "/stats").status, 200);
  EXPECT_EQ(curl("GET", "/metrics").status, 200);
  EXPECT_EQ(curl("PATCH", "/disks/0", R"({"size_bytes":"2M"})").status, 200);
  expect_state("paused");
  EXPECT_EQ(count_of(x_vm.said(), "capacity 4096"), 0u);
  EXPECT_EQ(curl("POST", "/resume").status, 200);
  EXPECT_TRUE(x_vm.says_soon("capacity 4096\n"));
}

TEST_F(ControlVm, reset_starts_the_guest_anew_even_where_its_own_reboot_would_end_it) {
  ASSERT_NO_FATAL_FAILURE(start("virtio.elf", "test=busy", "on_reboot = \"exit\"\n"));
  ASSERT_TRUE(x_vm.says_soon("\ntick 20\n"));
  const auto boots = [this](const char* number) {
    return soon([&] {
      const auto answer = lethe::http_request({.socket = socket_path(), .path = "/state"});
      return answer && answer->body.find(std::string("\"boots\":") + number) != std::string::npos;
    });
  };
  EXPECT_EQ(curl("POST", "/reset").status, 202);
  EXPECT_TRUE(boots("2"));
  EXPECT_TRUE(soon([this] { return count_of(x_vm.said(), "\ntick 1\n") == 2; })) << x_vm.said();
  EXPECT_EQ(curl("POST", "/pause").status, 200);
  EXPECT_EQ(curl("POST", "/reset").status, 202);
  EXPECT_TRUE(boots("3"));
  expect_state("running");
  EXPECT_TRUE(soon([this] { return count_of(x_vm.said(), "\ntick 1\n") == 3; })) << x_vm.said();
  EXPECT_EQ(curl("POST", "/kill").status, 202);
  EXPECT_EQ(x_vm.wait_for_end(), 6);
}

TEST_F(ControlVm, the_power_button_is_heard_by_a_running_and_by_a_paused_guest) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  EXPECT_EQ(curl("POST", "/power-button").status, 202);
  EXPECT_EQ(x_vm.wait_for_end(), 0) << x_vm.said();
  ASSERT_NO_FATAL_FAILURE(start_busy());
  EXPECT_EQ(curl("POST", "/pause").status, 200);
  EXPECT_EQ(curl("POST", "/power-button").status, 202);
  EXPECT_EQ(x_vm.wait_for_end(), 0) << x_vm.said();
  EXPECT_THAT(x_vm.said(), HasSubstr("power button pressed"));
}

TEST_F(ControlVm, sigterm_resumes_a_paused_guest_which_powers_off) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  EXPECT_EQ(curl("POST", "/pause").status, 200);
  x_vm.send(SIGTERM);
  EXPECT_EQ(x_vm.wait_for_end(), 0) << x_vm.said();
  EXPECT_THAT(x_vm.said(), HasSubstr("power button pressed"));
}

TEST_F(ControlVm, sigterm_forces_a_paused_guest_that_does_not_hear_and_stopping_refuses_the_rest) {
  ASSERT_NO_FATAL_FAILURE(start("machine.elf", "test=ignore-button", "stop_timeout_ms = 2000\n"));
  ASSERT_TRUE(x_vm.says_soon("waiting for the power button"));
  EXPECT_EQ(curl("POST", "/pause").status, 200);
  x_vm.send(SIGTERM);
  EXPECT_TRUE(soon([this] {
    const auto answer = lethe::http_request({.socket = socket_path(), .path = "/state"});
    return answer && answer->body.find("\"state\":\"stopping\"") != std::string::npos;
  }));
  for (const char* path : {"/pause", "/resume", "/reset"})
    EXPECT_EQ(curl("POST", path).status, 409) << path;
  EXPECT_EQ(x_vm.wait_for_end(), 6) << x_vm.said();
}

TEST_F(ControlVm, events_tell_the_whole_run_over_restarts) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  Program first = listen("0");
  EXPECT_EQ(curl("POST", "/pause").status, 200);
  EXPECT_EQ(curl("POST", "/resume").status, 200);
  EXPECT_EQ(curl("POST", "/memory/reclaim", R"({"bytes":"1M"})").status, 200);
  EXPECT_EQ(curl("PATCH", "/disks/0", R"({"iops_max":5000})").status, 200);
  EXPECT_EQ(curl("PUT", "/memory", R"({"policy":"discard"})").status, 200);
  EXPECT_EQ(curl("PATCH", "/log", R"({"levels":"warn"})").status, 200);
  EXPECT_EQ(curl("POST", "/reset").status, 202);
  EXPECT_EQ(first.wait_for_end(), 0) << first.said();  // curl saw the stream's proper end
  EXPECT_EQ(event_names(first.said()), "started paused resumed reclaimed disk memory log reset ");
  Program second = listen("8");
  EXPECT_TRUE(second.says_soon("event: started"));
  EXPECT_EQ(curl("POST", "/kill").status, 202);
  EXPECT_EQ(second.wait_for_end(), 0) << second.said();
  EXPECT_EQ(event_names(second.said()), "started ended ");
  EXPECT_THAT(second.said(), HasSubstr("\"how\":\"forced\",\"exit_code\":6}"));
  EXPECT_EQ(x_vm.wait_for_end(), 6);
}

TEST_F(ControlVm, a_snapshot_and_an_orderly_end_are_events) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  Program events = listen("0");
  ASSERT_TRUE(events.says_soon("event: started"));
  const std::string dir = x_dir + "/snapshot";
  const Answer answer = curl("POST", "/snapshot", "{\"dir\":\"" + dir + "\"}");
  EXPECT_EQ(answer.status, 200) << answer.body;
  x_vm.send(SIGTERM);
  EXPECT_EQ(x_vm.wait_for_end(), 0) << x_vm.said();
  EXPECT_EQ(events.wait_for_end(), 0) << events.said();
  EXPECT_EQ(event_names(events.said()), "started snapshot stopping power-button ended ");
  EXPECT_THAT(events.said(), HasSubstr("\"dir\":\"" + dir + "\""));
}

TEST_F(ControlVm, the_console_is_told_and_takes_a_size) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  const Answer log = curl("GET", "/console/log");
  EXPECT_EQ(log.status, 200);
  EXPECT_THAT(log.body, HasSubstr("\ntick 20\n"));
  EXPECT_EQ(curl("PUT", "/console/size", R"({"columns":132,"rows":43})").body,
            "{\"columns\":132,\"rows\":43}\n");
  EXPECT_EQ(curl("PUT", "/console/size", R"({"columns":0,"rows":43})").status, 400);
}

TEST_F(ControlVm, a_disk_grows_and_is_slowed_down_while_the_guest_uses_it) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  EXPECT_TRUE(x_vm.says_soon("capacity 2048\n"));
  EXPECT_THAT(curl("PATCH", "/disks/0", R"({"size_bytes":"3M"})").body,
              HasSubstr("\"size_bytes\":3145728"));
  EXPECT_TRUE(x_vm.says_soon("capacity 6144\n"));
  std::filesystem::resize_file(x_dir + "/disk", 4 << 20);
  EXPECT_THAT(curl("PATCH", "/disks/0", R"({"size_bytes":"file"})").body,
              HasSubstr("\"size_bytes\":4194304"));
  EXPECT_TRUE(x_vm.says_soon("capacity 8192\n"));
  EXPECT_EQ(curl("PATCH", "/disks/0", R"({"size_bytes":"1M"})").status, 409);
  EXPECT_EQ(curl("PATCH", "/disks/1", R"({"size_bytes":"1M"})").status, 404);
  EXPECT_EQ(metric("lethe_block_throttled_total"), 0);
  EXPECT_EQ(curl("PATCH", "/disks/0", R"({"iops_max":20})").status, 200);
  EXPECT_TRUE(soon([this] { return metric("lethe_block_throttled_total") > 3; }));
  EXPECT_EQ(curl("PATCH", "/disks/0", R"({"iops_max":0})").status, 200);
  expect_progress();
  type('q');
  EXPECT_EQ(x_vm.wait_for_end(), 64) << x_vm.said();
}

// The demo draws 320x200 and does not look at what else it is asked for.
TEST_F(ControlVm, a_screen_is_told_resized_and_photographed_also_while_the_guest_is_paused) {
  ASSERT_NO_FATAL_FAILURE(
      start("demo.elf", "still=1", "", "[gui]\nenabled = true\nwidth = 640\nheight = 480\n"));
  ASSERT_TRUE(x_vm.says_soon("window 2 opened"));
  EXPECT_EQ(curl("GET", "/gui/screens").body,
            "{\"screens\":[{\"screen\":0,\"width\":320,\"height\":200,\"shows\":true}]}\n");
  EXPECT_EQ(curl("POST", "/pause").status, 200);
  const Answer picture = curl("GET", "/gui/screens/0/screenshot");
  EXPECT_EQ(picture.status, 200);
  const std::string size("\0\0\x01\x40\0\0\0\xc8", 8);
  EXPECT_EQ(picture.body.substr(0, 8), "\x89PNG\r\n\x1a\n");
  EXPECT_EQ(picture.body.substr(16, 8), size);
  EXPECT_EQ(curl("POST", "/resume").status, 200);
  EXPECT_EQ(curl("GET", "/gui/screens/0/screenshot").body, picture.body);
  EXPECT_EQ(curl("PUT", "/gui/screens/0", R"({"width":1024,"height":768})").status, 200);
  EXPECT_EQ(curl("GET", "/gui/screens/1/screenshot").status, 404);
}

TEST_F(ControlVm, frontends_that_come_and_go_and_the_screens_settings_are_events) {
  ASSERT_NO_FATAL_FAILURE(start("demo.elf", "still=1", "", "[gui]\nenabled = true\n"));
  ASSERT_TRUE(x_vm.says_soon("window 2 opened"));
  Program events = listen("0");
  ASSERT_TRUE(events.says_soon("event: started"));
  {
    const lethe::UniqueFd frontend(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    ASSERT_EQ(lethe::connect_unix(frontend.get(), x_dir + "/lethe/vm/gui.sock"), 0);
    ASSERT_TRUE(events.says_soon("\"frontends\":1}"));
  }
  ASSERT_TRUE(events.says_soon("\"frontends\":0}"));
  EXPECT_EQ(curl("PATCH", "/gui", R"({"orphans_max":7})").status, 200);
  EXPECT_EQ(curl("PUT", "/gui/screens/0", R"({"width":1024,"height":768})").status, 200);
  EXPECT_EQ(curl("POST", "/kill").status, 202);
  EXPECT_EQ(events.wait_for_end(), 0) << events.said();
  EXPECT_EQ(event_names(events.said()),
            "started frontend-connected frontend-gone gui screen ended ");
}

TEST_F(ControlVm, without_a_gui_screens_are_a_conflict) {
  ASSERT_NO_FATAL_FAILURE(start_busy());
  EXPECT_EQ(curl("GET", "/gui/screens").status, 409);
  EXPECT_EQ(curl("GET", "/gui/screens/0/screenshot").status, 409);
  EXPECT_EQ(curl("PUT", "/gui/screens/0", R"({"width":1024,"height":768})").status, 409);
}

}  // namespace
