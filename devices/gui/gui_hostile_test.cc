// Frontends that break the rules: each is sent off, counted, and nobody else notices.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <functional>
#include <set>

#include "devices/gui/channel_message.h"
#include "devices/gui/gui_test_util.h"

namespace lethe {
namespace {

constexpr Rect kAll{0, 0, kWidth, kHeight};

template <typename Message>
std::vector<uint8_t> packet(gui::Type type, Message message) {
  message.header = {static_cast<uint32_t>(type), sizeof message};
  std::vector<uint8_t> bytes(sizeof message);
  std::memcpy(bytes.data(), &message, sizeof message);
  return bytes;
}

struct Bad {
  const char* name;
  std::function<std::vector<uint8_t>(SurfaceId)> make;
};

std::vector<uint8_t> good_key(SurfaceId s) {
  return packet(gui::Type::kKey, gui::Key{{}, s, 30, 1});
}
std::vector<uint8_t> with_word(std::vector<uint8_t> bytes, size_t index, uint32_t value) {
  std::memcpy(bytes.data() + index * 4, &value, 4);
  return bytes;
}

const Bad kBad[] = {
    {"truncated_header", [](SurfaceId) { return std::vector<uint8_t>{67, 0, 0, 0, 24, 0, 0}; }},
    {"truncated",
     [](SurfaceId s) {
       auto bytes = good_key(s);
       bytes.pop_back();
       return bytes;
     }},
    {"oversized",
     [](SurfaceId s) {
       auto bytes = good_key(s);
       bytes.push_back(0);
       return bytes;
     }},
    {"oversized_past_the_longest",
     [](SurfaceId s) {
       auto bytes = good_key(s);
       bytes.resize(gui::kMessageBytesMax + 1);
       return bytes;
     }},
    {"header_says_another_size", [](SurfaceId s) { return with_word(good_key(s), 1, 25); }},
    {"unknown_type", [](SurfaceId s) { return with_word(good_key(s), 0, 74); }},
    {"type_of_the_vms",
     [](SurfaceId s) { return packet(gui::Type::kSurfaceGone, gui::SurfaceGone{{}, s}); }},
    {"type_zero", [](SurfaceId s) { return with_word(good_key(s), 0, 0); }},
    {"second_hello",
     [](SurfaceId) {
       gui::Hello hello{};
       hello.magic = gui::kMagic;
       hello.version = gui::kVersion;
       return packet(gui::Type::kHello, hello);
     }},
    {"surface_zero", [](SurfaceId) { return good_key(0); }},
    {"surface_that_never_was", [](SurfaceId s) { return good_key(s + gui::kSurfacesMax); }},
    {"done_with_a_surface_that_never_was",
     [](SurfaceId s) {
       return packet(gui::Type::kDoneReading, gui::DoneReading{{}, s + 5000, 1});
     }},
    {"done_with_a_frame_that_never_was",
     [](SurfaceId s) { return packet(gui::Type::kDoneReading, gui::DoneReading{{}, s, 2}); }},
    {"unmapped_slot_beyond_the_protocols",
     [](SurfaceId) {
       return packet(gui::Type::kUnmapped, gui::Unmapped{{}, gui::kBuffersMax, 0, 1});
     }},
    {"unmapped_slot_beyond_the_vms",
     [](SurfaceId) { return packet(gui::Type::kUnmapped, gui::Unmapped{{}, 64, 0, 1}); }},
    {"unmapped_generation_zero",
     [](SurfaceId) { return packet(gui::Type::kUnmapped, gui::Unmapped{{}, 0, 0, 0}); }},
    {"unmapped_reserved",
     [](SurfaceId) { return packet(gui::Type::kUnmapped, gui::Unmapped{{}, 0, 1, 1}); }},
    {"key_zero", [](SurfaceId s) { return packet(gui::Type::kKey, gui::Key{{}, s, 0, 1}); }},
    {"key_too_high",
     [](SurfaceId s) { return packet(gui::Type::kKey, gui::Key{{}, s, 0x300, 1}); }},
    {"key_down_twice_over",
     [](SurfaceId s) { return packet(gui::Type::kKey, gui::Key{{}, s, 30, 2}); }},
    {"button_too_low",
     [](SurfaceId s) { return packet(gui::Type::kButton, gui::Button{{}, s, 0x10F, 1}); }},
    {"button_too_high",
     [](SurfaceId s) { return packet(gui::Type::kButton, gui::Button{{}, s, 0x118, 1}); }},
    {"wheel_too_far",
     [](SurfaceId s) { return packet(gui::Type::kWheel, gui::Wheel{{}, s, 101, 0}); }},
    {"wheel_too_far_back",
     [](SurfaceId s) { return packet(gui::Type::kWheel, gui::Wheel{{}, s, 0, INT32_MIN}); }},
    {"focus_reserved",
     [](SurfaceId s) { return packet(gui::Type::kFocus, gui::Focus{{}, s, 1, 1}); }},
    {"configure_zero",
     [](SurfaceId s) { return packet(gui::Type::kConfigure, gui::Configure{{}, s, 0, 0, 0, 1}); }},
    {"configure_too_large",
     [](SurfaceId s) {
       return packet(gui::Type::kConfigure,
                     gui::Configure{{}, s, 0, 0, 1, gui::kSidePixelsMax + 1});
     }},
    {"close_of_nothing", [](SurfaceId) { return packet(gui::Type::kClose, gui::Close{{}, 0}); }},
};

class GuiBadMessageTest : public testing::TestWithParam<Bad> {};

TEST_P(GuiBadMessageTest, a_bad_message_ends_the_connection_and_nothing_else) {
  GuiRig rig({.buffers_max = 64});
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  auto good = rig.connect();
  ASSERT_TRUE(good.receive_until(gui::Type::kFrame));
  const size_t descriptors = open_descriptors();
  {
    auto bad = rig.connect();
    ASSERT_TRUE(bad.receive_until(gui::Type::kFrame));
    ASSERT_TRUE(bad.send_raw(GetParam().make(surface)));
    ASSERT_TRUE(bad.receive_until(gui::Type::kBye));
    EXPECT_EQ(bad.bye, gui::ByeReason::kBadMessage);
    EXPECT_FALSE(bad.receive()) << "the connection has ended";
  }
  EXPECT_EQ(rig.metric("lethe_gui_refused_messages_total"), 1);
  EXPECT_TRUE(rig.events().empty());
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  EXPECT_TRUE(good.receive_until(gui::Type::kFrame));
  // Its process, which is this one, is watched on: a pidfd and its watch.
  EXPECT_EQ(open_descriptors(), descriptors + 2);
}

INSTANTIATE_TEST_SUITE_P(Messages, GuiBadMessageTest, testing::ValuesIn(kBad),
                         [](const auto& param) { return param.param.name; });

TEST(GuiHostileTest, every_good_message_is_one) {
  // So that the list above is of messages that are bad for one reason.
  EXPECT_TRUE(parse_message(good_key(1)));
  EXPECT_TRUE(parse_message(packet(gui::Type::kUnmapped, gui::Unmapped{{}, 0, 0, 1})));
  EXPECT_TRUE(parse_message(packet(gui::Type::kButton, gui::Button{{}, 1, 0x110, 1})));
  EXPECT_TRUE(parse_message(packet(gui::Type::kWheel, gui::Wheel{{}, 1, 100, -100})));
  EXPECT_TRUE(parse_message(packet(gui::Type::kFocus, gui::Focus{{}, 1, 1, 0})));
  EXPECT_TRUE(parse_message(
      packet(gui::Type::kConfigure, gui::Configure{{}, 1, INT32_MIN, 0, 1, gui::kSidePixelsMax})));
  EXPECT_TRUE(parse_message(packet(gui::Type::kClose, gui::Close{{}, 1})));
  EXPECT_TRUE(parse_message(packet(gui::Type::kMotion, gui::Motion{{}, 1, INT32_MIN, INT32_MAX})));
}

TEST(GuiHostileTest, hello_comes_first_with_our_version_and_known_flags) {
  GuiRig rig;
  const auto answer = [&](const std::function<void(FakeFrontend&)>& speak) {
    FakeFrontend frontend(rig.path());
    speak(frontend);
    EXPECT_TRUE(frontend.receive_until(gui::Type::kBye));
    return frontend.bye.value_or(gui::ByeReason::kVmEnded);
  };
  EXPECT_EQ(answer([](FakeFrontend& f) { f.hello(gui::kVersion + 1); }),
            gui::ByeReason::kWrongVersion);
  EXPECT_EQ(answer([](FakeFrontend& f) { f.hello(gui::kVersion, 2); }),
            gui::ByeReason::kBadMessage);
  EXPECT_EQ(answer([](FakeFrontend& f) { f.send_raw(good_key(1)); }), gui::ByeReason::kBadMessage);
  gui::Hello hello{};
  hello.version = gui::kVersion;
  EXPECT_EQ(answer([&](FakeFrontend& f) { f.send(gui::Type::kHello, hello); }),
            gui::ByeReason::kBadMessage)
      << "no magic";
  hello.magic = gui::kMagic;
  std::memset(hello.name, 'x', sizeof hello.name);
  EXPECT_EQ(answer([&](FakeFrontend& f) { f.send(gui::Type::kHello, hello); }),
            gui::ByeReason::kBadMessage)
      << "a name without end";
}

TEST(GuiHostileTest, descriptors_of_a_frontend_never_enter_the_vm) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  auto frontend = rig.connect();
  ASSERT_TRUE(frontend.receive_until(gui::Type::kSurface));
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  ASSERT_TRUE(frontend.send_raw(good_key(surface), writer.get()));
  writer.reset();
  // The pipe has no writer any more: whoever the descriptor was sent to has none.
  char byte = 0;
  EXPECT_EQ(::read(reader.get(), &byte, 1), 0);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBye));
  EXPECT_EQ(frontend.bye, gui::ByeReason::kBadMessage);
  EXPECT_TRUE(rig.events().empty()) << "the message is not heard either";
}

TEST(GuiHostileTest, a_frontend_gets_descriptors_of_its_buffers_only_and_only_for_reading) {
  GuiRig rig;
  auto frontend = rig.connect();
  std::set<ino_t> files;
  for (int i = 1; i <= 8; ++i) {
    const BufferId id = rig.create_buffer(kBytes * i);
    const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
    rig.present(surface, id, kWidth, kHeight, kAll);
    ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
    const FakeFrontend::Mapping& mapping = frontend.buffers[id.generation];
    struct stat info{};
    ASSERT_EQ(::fstat(mapping.fd.get(), &info), 0);
    EXPECT_EQ(static_cast<uint64_t>(info.st_size), kBytes * i) << "that buffer, and no more";
    EXPECT_TRUE(files.insert(info.st_ino).second) << "a file of its own";
    EXPECT_EQ(::fcntl(mapping.fd.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
    EXPECT_EQ(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, mapping.fd.get(), 0),
              MAP_FAILED);
    const int seals = ::fcntl(mapping.fd.get(), F_GET_SEALS);
    EXPECT_EQ(seals, F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SEAL);
  }
}

TEST(GuiHostileTest, too_many_frontends_are_told_so) {
  GuiRig rig({.frontends_max = 2});
  auto first = rig.connect();
  auto second = rig.connect();
  FakeFrontend third(rig.path());
  ASSERT_TRUE(third.receive_until(gui::Type::kBye));
  EXPECT_EQ(third.bye, gui::ByeReason::kTooMany);
  EXPECT_EQ(rig.metric("lethe_gui_frontends_refused_total"), 1);
}

TEST(GuiHostileTest, stale_answers_for_an_older_buffer_of_the_slot_free_nothing) {
  GuiRig rig({.buffers_max = 1});
  const LedgerLimits limits = rig.gui->ledger().limits();
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  auto frontend = rig.connect();
  frontend.answers_gone = false;
  std::vector<BufferId> past;
  for (int i = 0; i < 4; ++i) {
    const BufferId id = rig.create_buffer(kBytes);
    ASSERT_TRUE(rig.show(frontend, surface, id));
    const uint64_t stale = rig.count(rig.ledger().stale);
    for (const BufferId old : past) {
      ASSERT_EQ(old.slot, id.slot);
      frontend.say_unmapped(old);
      frontend.say_unmapped(old);
    }
    ASSERT_TRUE(
        eventually([&] { return rig.count(rig.ledger().stale) == stale + 2 * past.size(); }));
    EXPECT_NE(rig.holders(id), 0U);
    rig.release_buffer(id);
    EXPECT_EQ(rig.state(id), ShareLedger::State::kOrphan);
    if (i % 2 == 0) {
      frontend.unmap(id);
    } else {
      rig.gui->set_limits({.orphans_max = 0});
      rig.gui->set_limits(limits);
    }
    ASSERT_TRUE(eventually([&] { return rig.freed().size() == past.size() + 1; }));
    past.push_back(id);
  }
  EXPECT_EQ(rig.count(rig.ledger().freed.buffers), 2U);
  EXPECT_EQ(rig.count(rig.ledger().revoked.buffers), 2U);
}

TEST(GuiHostileTest, a_frontend_that_lies_about_unmapping_keeps_no_memory) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  auto frontend = rig.connect();
  frontend.answers_gone = false;
  const BufferId id = rig.create_buffer(kBytes);
  rig.on_gui([&] { std::memset(rig.gui->buffer(id)->data(), 1, kBytes); });
  rig.present(surface, id, kWidth, kHeight, kAll);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  frontend.say_unmapped(id);
  ASSERT_TRUE(eventually([&] { return rig.holders(id) == 0; }));
  rig.release_buffer(id);
  ASSERT_TRUE(eventually([&] { return rig.freed().size() == 1; }));
  struct stat info{};
  ASSERT_EQ(::fstat(frontend.buffers[id.generation].fd.get(), &info), 0);
  EXPECT_EQ(info.st_blocks, 0);
  EXPECT_EQ(info.st_size, 0);
}

}  // namespace
}  // namespace lethe
