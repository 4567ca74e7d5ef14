#include "vmm/cli/top_view.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

namespace lethe {
namespace {

using testing::HasSubstr;
using testing::Not;

const auto kStart = TopSampler::Clock::now();

TopRow sample(TopSampler& sampler, int second, double cpu_s, uint64_t returned, int pid = 7) {
  const auto state = boost::json::parse(fmt::format(R"({{"pid":{},"uptime_s":100}})", pid));
  const auto stats = boost::json::parse(fmt::format(
      R"({{"memory":{{"size_bytes":1073741824,"resident_bytes":1048576}},
          "process":{{"resident_bytes":2097152,"cpu_seconds":{}}},
          "return":{{"reported_bytes_total":{{"report":{},"hint":0}}}},
          "pool":{{"bytes":{{"dirty":1,"scrubbing":2,"clean":3}}}},
          "decisions":[{{"age_s":1,"text":"newest"}},{{"age_s":9,"text":"older"}}]}})",
      cpu_s, returned));
  return sampler.sample("vm", state, stats, kStart + std::chrono::seconds(second));
}

TEST(TopSampler, rates_are_since_the_last_look_and_the_first_time_since_the_start) {
  TopSampler sampler;
  TopRow row = sample(sampler, 0, 50, 1000);
  EXPECT_DOUBLE_EQ(row.cpu_percent, 50);
  EXPECT_DOUBLE_EQ(row.returned_per_s, 10);
  EXPECT_DOUBLE_EQ(row.pool, 6);
  EXPECT_EQ(row.decision, "newest");
  row = sample(sampler, 2, 51, 5000);
  EXPECT_DOUBLE_EQ(row.cpu_percent, 50);
  EXPECT_DOUBLE_EQ(row.returned_per_s, 2000);
  EXPECT_DOUBLE_EQ(sample(sampler, 3, 51, 10).returned_per_s, 0) << "the guest restarted";
  EXPECT_DOUBLE_EQ(sample(sampler, 4, 25, 10, 8).cpu_percent, 25) << "another process";
}

TEST(TopSampler, answers_of_any_shape_do_no_harm) {
  TopSampler sampler;
  for (const char* text : {"null", "[]", R"({"decisions":[{"text":7}]})", R"({"pool":"x"})"}) {
    const auto value = boost::json::parse(text);
    EXPECT_EQ(sampler.sample("vm", value, value, kStart).decision, "");
  }
}

std::vector<TopRow> three_rows() {
  std::vector<TopRow> rows(3);
  rows[0].name = "b";
  rows[1].name = "a";
  rows[2].name = "c";
  rows[0].process = 3e9;
  rows[1].cpu_percent = 5;
  rows[2].returned = 1;
  return rows;
}

std::string order(TopSort by) {
  std::vector<TopRow> rows = three_rows();
  sort_rows(rows, by);
  return rows[0].name + rows[1].name + rows[2].name;
}

TEST(TopTable, is_sorted_by_what_was_asked_for_and_then_by_name) {
  EXPECT_EQ(order(TopSort::kResident), "bac");
  EXPECT_EQ(order(TopSort::kName), "abc");
  EXPECT_EQ(order(TopSort::kCpu), "abc");
  EXPECT_EQ(order(TopSort::kReturned), "cab");
}

TEST(TopTable, fits_the_terminal) {
  std::vector<TopRow> rows(50);
  for (TopRow& row : rows) row.name = std::string(64, 'n');
  rows[0].problem = std::string(300, 'p');
  for (const size_t columns : {1, 20, 80, 200}) {
    const std::string text = top_table(rows, columns, 10, false);
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 10);
    size_t start = 0;
    for (size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', start)) {
      EXPECT_LE(end - start, columns);
      start = end + 1;
    }
  }
  const std::string tiny = top_table(rows, 80, 1, false);
  EXPECT_LE(std::count(tiny.begin(), tiny.end(), '\n'), 2);
}

TEST(TopTable, a_vm_that_does_not_answer_says_so_in_its_row) {
  std::vector<TopRow> rows = three_rows();
  rows[1].problem = "it does not answer within 1000 ms";
  const std::string text = top_table(rows, 0, 0, false);
  EXPECT_THAT(text, HasSubstr("3 VMs, 2.8 GiB at the host, 1 B returned by guests\n"));
  EXPECT_THAT(text, HasSubstr("\na     it does not answer within 1000 ms\n"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
}

TEST(TopTable, without_vms_it_is_a_head_only) {
  const std::string text = top_table({}, 0, 0, false);
  EXPECT_THAT(text, testing::StartsWith("0 VMs, 0 at the host"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
}

}  // namespace
}  // namespace lethe
