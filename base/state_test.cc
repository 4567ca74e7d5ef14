#include "base/state.h"

#include <gtest/gtest.h>

#include <array>

namespace lethe {
namespace {

std::vector<uint8_t> example() {
  StateWriter writer;
  writer.begin_section("outer", 3);
  writer.number(uint16_t{0x1234});
  writer.begin_section("inner", 1);
  writer.text("hello");
  writer.boolean(true);
  writer.end_section();
  writer.number(UINT64_MAX);
  writer.end_section();
  return writer.take();
}

// Reads example() and says whether all of it was as written.
bool read_example(std::span<const uint8_t> bytes) {
  StateReader reader(bytes);
  reader.begin_section("outer", 3);
  bool same = reader.number<uint16_t>() == 0x1234;
  reader.begin_section("inner", 1);
  same = reader.text(5) == "hello" && same;
  same = reader.boolean() && same;
  reader.end_section();
  same = reader.number<uint64_t>() == UINT64_MAX && same;
  reader.end_section();
  return same && reader.ok();
}

TEST(State, reads_back_what_was_written) { EXPECT_TRUE(read_example(example())); }

TEST(State, every_truncation_is_an_error) {
  const std::vector<uint8_t> all = example();
  for (size_t size = 0; size < all.size(); ++size)
    EXPECT_FALSE(read_example(std::span(all).first(size))) << size;
}

TEST(State, another_name_or_version_is_an_error_that_names_both) {
  const std::vector<uint8_t> all = example();
  StateReader name(all);
  name.begin_section("other", 3);
  EXPECT_EQ(name.check().error().text, "snapshot: 'outer' where 'other' is due");
  StateReader version(all);
  version.begin_section("outer", 2);
  EXPECT_EQ(version.check().error().text, "snapshot: 'outer' has version 3, this lethe reads 2");
  EXPECT_EQ(version.number<uint32_t>(), 0u);
}

TEST(State, a_message_shows_no_control_characters_of_the_file) {
  StateWriter writer;
  writer.begin_section("a\x1b[2J\nb\xff", 1);
  writer.end_section();
  const std::vector<uint8_t> bytes = writer.take();
  StateReader reader(bytes);
  reader.begin_section("other", 1);
  EXPECT_EQ(reader.check().error().text, "snapshot: 'a?[2J?b?' where 'other' is due");
}

TEST(State, nothing_is_read_past_a_sections_end_and_nothing_may_be_left_in_it) {
  const std::vector<uint8_t> all = example();
  StateReader past(all);
  past.begin_section("outer", 3);
  (void)past.number<uint16_t>();
  past.begin_section("inner", 1);
  (void)past.text(5);
  (void)past.number<uint64_t>();  // there are more bytes, but not of this section
  EXPECT_EQ(past.check().error().text, "snapshot: in 'inner': 7 bytes are missing");
  StateReader left(all);
  left.begin_section("outer", 3);
  left.end_section();
  EXPECT_FALSE(left.ok());
}

TEST(State, a_writer_keeps_no_more_than_it_may) {
  StateWriter exact(4 + 5 + 8);
  exact.text("hello");
  exact.number(uint64_t{7});
  EXPECT_FALSE(exact.too_long());
  EXPECT_EQ(exact.take().size(), 4u + 5u + 8u);

  StateWriter writer(64);
  writer.begin_section("outer", 1);
  writer.begin_section("inner", 1);
  writer.bytes(std::vector<uint8_t>(1024));
  EXPECT_TRUE(writer.too_long());
  // Not even what there is room for: it would be in another's place.
  writer.number(uint8_t{1});
  writer.end_section();
  writer.begin_section("later", 1);
  writer.end_section();
  writer.end_section();
  EXPECT_TRUE(writer.too_long());
}

TEST(State, strings_longer_than_their_place_are_errors) {
  StateWriter writer;
  writer.text("hello");
  const std::vector<uint8_t> all = writer.take();
  StateReader longer(all);
  EXPECT_EQ(longer.text(4), "");
  EXPECT_FALSE(longer.ok());
  std::array<uint8_t, 6> six{};
  StateReader exact(all);
  exact.bytes_into(six);
  EXPECT_FALSE(exact.ok());
}

TEST(State, a_boolean_is_0_or_1) {
  const std::array<uint8_t, 1> two = {2};
  StateReader reader(two);
  EXPECT_FALSE(reader.boolean());
  EXPECT_FALSE(reader.ok());
}

}  // namespace
}  // namespace lethe
