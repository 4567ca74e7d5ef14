#include "vmm/api/metric_writers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace lethe {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;
using testing::HasSubstr;

TEST(PrometheusWriter, keeps_the_samples_of_a_name_together) {
  PrometheusWriter writer;
  writer.counter("lethe_a_total", "Help for a.", 1, {{"x", "1"}});
  writer.gauge("lethe_b_bytes", "Help for b.", 2.5);
  writer.counter("lethe_a_total", "Help for a.", UINT64_MAX, {{"x", "2"}, {"y", "z"}});
  EXPECT_EQ(writer.text(),
            "# HELP lethe_a_total Help for a.\n"
            "# TYPE lethe_a_total counter\n"
            "lethe_a_total{x=\"1\"} 1\n"
            "lethe_a_total{x=\"2\",y=\"z\"} 18446744073709551615\n"
            "# HELP lethe_b_bytes Help for b.\n"
            "# TYPE lethe_b_bytes gauge\n"
            "lethe_b_bytes 2.5\n");
}

TEST(PrometheusWriter, escapes_labels_and_helps) {
  PrometheusWriter writer;
  writer.gauge("lethe_x", "two\nlines", 1e300, {{"l", "a\"b\\c\nd"}});
  EXPECT_THAT(writer.text(), HasSubstr("# HELP lethe_x two lines\n"));
  EXPECT_THAT(writer.text(), HasSubstr("lethe_x{l=\"a\\\"b\\\\c\\nd\"} 1e+300\n"));
}

TEST(PrometheusWriter, numbers_are_exact_and_special_ones_spelt_as_the_format_has_them) {
  PrometheusWriter writer;
  writer.gauge("a", "", 1099511627776.0);
  writer.gauge("b", "", 0.1);
  writer.gauge("c", "", NAN);
  writer.gauge("d", "", -INFINITY);
  for (const char* line : {"\na 1099511627776\n", "\nb 0.1\n", "\nc NaN\n", "\nd -Inf\n"})
    EXPECT_THAT(writer.text(), HasSubstr(line));
}

TEST(PrometheusWriter, histogram_buckets_are_cumulative_and_in_seconds) {
  Histogram histogram;
  histogram.add(nanoseconds(5));
  histogram.add(microseconds(2));
  histogram.add(microseconds(2));
  histogram.add(std::chrono::hours(1));
  PrometheusWriter writer;
  writer.histogram("lethe_t_seconds", "Times.", histogram.snapshot(), {{"k", "v"}});
  const std::string text = writer.text();
  EXPECT_THAT(text, HasSubstr("# TYPE lethe_t_seconds histogram\n"));
  EXPECT_THAT(text, HasSubstr("lethe_t_seconds_bucket{k=\"v\",le=\"1.024e-06\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("lethe_t_seconds_bucket{k=\"v\",le=\"2.048e-06\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("lethe_t_seconds_bucket{k=\"v\",le=\"274.877906944\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("lethe_t_seconds_bucket{k=\"v\",le=\"+Inf\"} 4\n"));
  EXPECT_THAT(text, HasSubstr("lethe_t_seconds_count{k=\"v\"} 4\n"));
  EXPECT_THAT(text, HasSubstr("lethe_t_seconds_max{k=\"v\"} 3600\n"));
}

TEST(JsonMetricWriter, nests_by_first_word_and_labels) {
  JsonMetricWriter writer;
  writer.counter("lethe_return_bytes_total", "", UINT64_MAX, {{"source", "report"}});
  writer.counter("lethe_return_bytes_total", "", 2, {{"source", "hint"}, {"why", "a\"b"}});
  writer.gauge("lethe_memory_size_bytes", "", 1048576);
  writer.gauge("lethe_memory_share", "", 0.5);
  writer.gauge("lethe_bad", "", NAN);
  EXPECT_EQ(
      writer.text(),
      "{\"return\":{\"bytes_total\":{\"report\":18446744073709551615,\"hint\":{\"a\\\"b\":2}}},"
      "\"memory\":{\"size_bytes\":1048576,\"share\":5E-1},\"bad\":null}");
}

TEST(JsonMetricWriter, a_name_with_and_without_labels_keeps_both) {
  JsonMetricWriter writer;
  writer.counter("lethe_a_b", "", 1);
  writer.counter("lethe_a_b", "", 2, {{"l", "x"}});
  writer.counter("lethe_a", "", 3);
  EXPECT_EQ(writer.text(), "{\"a\":3}");  // the last word on "a" is a number
  writer.counter("lethe_a_b", "", 4, {{"l", "x"}});
  EXPECT_EQ(writer.text(), "{\"a\":{\"\":3,\"b\":{\"x\":4}}}");
}

TEST(JsonMetricWriter, histograms_are_count_and_quantiles_in_seconds) {
  Histogram histogram;
  for (int i = 0; i < 99; ++i) histogram.add(nanoseconds(1000));
  histogram.add(nanoseconds(1'000'000));
  JsonMetricWriter writer;
  writer.histogram("lethe_t_seconds", "", histogram.snapshot());
  EXPECT_THAT(writer.text(), HasSubstr("\"count\":100,"));
  EXPECT_THAT(writer.text(), HasSubstr("\"p50\":1.024E-6"));
  EXPECT_THAT(writer.text(), HasSubstr("\"max\":1E-3"));
}

}  // namespace
}  // namespace lethe
