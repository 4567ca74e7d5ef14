#include "vmm/cli/stats_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

#include "vmm/cli/vm_client.h"

namespace lethe {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(StatsView, shows_what_there_is_and_leaves_out_the_rest) {
  const auto state = boost::json::parse(
      R"({"name":"vm","state":"running","pid":42,"uptime_s":3725.5,"boots":2,"cpus":2})");
  const auto stats = boost::json::parse(R"({
    "memory":{"size_bytes":1073741824,"resident_bytes":1572864},
    "return":{"reported_bytes_total":{"inflate":0,"report":2097152,"hint":1048576},
              "policy":{"discard":1},"isolated_bytes":0,
              "forget_seconds":{"count":3,"sum":0.1,"p50":0.0012,"p99":0.05,"max":1.25}},
    "governor":{"price_ratio":0.256,"pressure":1,"need_bytes":1048576},
    "decisions":[{"age_s":61,"text":"pool to 64 MiB: memory pressure 12 %"}]})");
  EXPECT_EQ(stats_table(state, stats),
            "vm: running, process 42, up 1 h 2 min, 2 vCPUs, started 2 times\n"
            "\nmemory\n"
            "  guest                 1 GiB\n"
            "  resident              1.5 MiB of it at the host\n"
            "\nreturned by the guest\n"
            "  policy now            discard\n"
            "  reported              3 MiB (report 2 MiB, hint 1 MiB)\n"
            "  isolated now          0\n"
            "  forgotten within      p50 1.2 ms, p99 50.0 ms, max 1.2 s (3 times)\n"
            "\ngovernor\n"
            "  price of memory       0.26 (0: the host has plenty, 1: it has none)\n"
            "  the host              is under memory pressure\n"
            "  the guest needs       1 MiB\n"
            "  1 min 1 s ago         pool to 64 MiB: memory pressure 12 %\n");
}

TEST(StatsView, shows_the_share_ledger) {
  const auto stats = boost::json::parse(
      R"({"gui":{"frontends":2,"frames_total":7,"buffers":{"live":3,"orphan":1},
          "buffer_bytes":{"live":1048576,"orphan":4096},"buffers_ended_total":{"freed":9,
          "revoked":1,"leaked":0},"buffer_bytes_ended_total":{"freed":8192,"revoked":4096,
          "leaked":0}}})");
  EXPECT_THAT(stats_table(boost::json::parse("{}"), stats),
              HasSubstr("\nbuffers shared with frontends\n"
                        "  frontends             2\n"
                        "  live                  3 (1 MiB)\n"
                        "  orphan                1 (4 KiB), given up by the guest, kept by a "
                        "frontend\n"
                        "  freed                 9 (8 KiB)\n"
                        "  revoked               1 (4 KiB), kept for too long\n"
                        "  leaked                0 (0), the host refused\n"
                        "  frames sent           7\n"));
}

TEST(StatsView, answers_of_any_shape_do_no_harm) {
  for (const char* text :
       {"null", "[]", "1", "{}", R"({"memory":7,"return":[],"decisions":{}})",
        R"({"memory":{"size_bytes":"x"},"decisions":[1,null,{"text":{}}]})",
        R"({"return":{"forget_seconds":{"count":1}}})", R"({"return":{"policy":{}}})"}) {
    const auto value = boost::json::parse(text);
    EXPECT_THAT(stats_table(value, value), HasSubstr("vCPUs")) << text;
  }
  const auto hostile = boost::json::parse(R"({"name":"\u001b[2J","state":"a\nb"})");
  EXPECT_THAT(stats_table(hostile, hostile), Not(HasSubstr("\x1b")));
}

TEST(Human, numbers_are_short) {
  EXPECT_EQ(human_bytes(0), "0");
  EXPECT_EQ(human_bytes(1), "1 B");
  EXPECT_EQ(human_bytes(1536), "1.5 KiB");
  EXPECT_EQ(human_bytes(512.0 * (1 << 20)), "512 MiB");
  EXPECT_EQ(human_bytes(1.2 * (1ull << 40)), "1.2 TiB");
  EXPECT_EQ(human_duration(0), "0");
  EXPECT_EQ(human_duration(12e-9), "12 ns");
  EXPECT_EQ(human_duration(1.5e-6), "1.5 us");
  EXPECT_EQ(human_duration(2.25), "2.2 s");
  EXPECT_EQ(human_uptime(59.9), "59 s");
  EXPECT_EQ(human_uptime(90061), "1 d 1 h");
}

TEST(Paths, numbers_and_sums_are_found) {
  const auto value = boost::json::parse(R"({"a":{"b":{"x":1,"y":{"z":2.5}},"c":3}})");
  EXPECT_EQ(number_at(value, "a.c"), 3);
  EXPECT_EQ(number_at(value, "a.b"), std::nullopt);
  EXPECT_EQ(number_at(value, "a.c.d"), std::nullopt);
  EXPECT_EQ(sum_at(value, "a.b"), 3.5);
  EXPECT_EQ(sum_at(value, "a"), 6.5);
  EXPECT_EQ(sum_at(value, "q"), std::nullopt);
}

}  // namespace
}  // namespace lethe
