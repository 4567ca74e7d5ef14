// Gui and its channel: what frontends see, and what creators hear.
#include "devices/gui/gui.h"

#include <gtest/gtest.h>
#include <linux/virtio_gpu.h>

#include "base/test_util.h"
#include "devices/gui/fake_frontend.h"
#include "devices/gui/gui_test_util.h"

namespace lethe {
namespace {

TEST(GuiTest, shows_a_frontend_what_there_is_and_what_changes) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("hello", 64, 32);
  const BufferId buffer = rig.create_buffer(64 * 32 * 4);
  rig.on_gui([&] {
    std::memset(rig.gui->buffer(buffer)->data(), 0x5A, 64 * 32 * 4);
    EXPECT_EQ(rig.gui->present(surface, rig.content(buffer, 64, 32), {0, 0, 1, 1}), 1U);
  });
  auto frontend = FakeFrontend::connect(rig.path());
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  EXPECT_STREQ(frontend.surfaces[surface].title, "hello");
  const gui::Frame first = frontend.frames[surface];
  EXPECT_EQ(first.generation, buffer.generation);
  EXPECT_EQ(first.damage_width, 64U) << "the first frame is whole";
  EXPECT_EQ(frontend.buffers[buffer.generation].data[64 * 32 * 4 - 1], 0x5A);

  rig.on_gui([&] { (void)rig.gui->present(surface, rig.content(buffer, 64, 32), {3, 4, 5, 6}); });
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  const gui::Frame second = frontend.frames[surface];
  EXPECT_EQ(second.damage_x, 3U);
  EXPECT_EQ(second.damage_y, 4U);
  EXPECT_EQ(second.damage_width, 5U);
  EXPECT_EQ(second.damage_height, 6U);
  EXPECT_EQ(frontend.packets_received, 5U) << "welcome, surface, buffer, two frames";
  EXPECT_TRUE(eventually([&] { return rig.done(surface) == second.frame; }));

  rig.on_gui([&] {
    rig.gui->remove_surface(surface);
    rig.gui->release_buffer(buffer);
  });
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBufferGone));
  EXPECT_EQ(frontend.surfaces_gone, std::vector<SurfaceId>{surface});
  EXPECT_EQ(frontend.gone.at(0).revoked, 0U);
  EXPECT_TRUE(eventually([&] { return rig.freed() == std::vector<BufferId>{buffer}; }));
  EXPECT_EQ(rig.count(rig.ledger().freed.buffers), 1U);
  EXPECT_EQ(rig.count(rig.ledger().freed.bytes), 8192U);
  EXPECT_EQ(rig.count(rig.ledger().orphan.bytes), 0U);
}

TEST(GuiTest, hands_input_to_the_creator) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("input", 100, 50);
  auto frontend = FakeFrontend::connect(rig.path());
  frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 1});
  frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 0});
  frontend.send(gui::Type::kMotion, gui::Motion{{}, surface, -5, 70});
  frontend.send(gui::Type::kButton, gui::Button{{}, surface, 0x110, 1});
  frontend.send(gui::Type::kWheel, gui::Wheel{{}, surface, -1, 2});
  frontend.send(gui::Type::kFocus, gui::Focus{{}, surface, 1, 0});
  frontend.send(gui::Type::kConfigure, gui::Configure{{}, surface, -7, 8, 640, 480});
  frontend.send(gui::Type::kClose, gui::Close{{}, surface});
  const std::vector<FakeCreator::Event> expected{{"key", surface, 30, 1},
                                                 {"key", surface, 30, 0},
                                                 {"motion", surface, 0, 49},
                                                 {"button", surface, 0x110, 1},
                                                 {"wheel", surface, -1, 2},
                                                 {"focus", surface, 1},
                                                 {"configure", surface, -7, 8, 640, 480},
                                                 {"close", surface}};
  EXPECT_TRUE(eventually([&] { return rig.events().size() == expected.size(); }));
  EXPECT_EQ(rig.events(), expected);
}

}  // namespace
}  // namespace lethe
