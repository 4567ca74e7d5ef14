#include "guest-tests/linux/agent/x_connection.h"

#include <xcb/composite.h>
#include <xcb/xfixes.h>
#include <xcb/xtest.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "devices/virtio/gpu/window_protocol.h"

namespace lethe::agent {
namespace {

constexpr uint32_t kPropertyWordsMax = 256;  // of 4 bytes; titles are cut anyway

// WM_SIZE_HINTS (ICCCM 4.1.2.3): flags, 4 old fields, the smallest and the largest size.
constexpr size_t kSizeHintsWords = 9;
constexpr uint32_t kHasMinSize = 1u << 4;
constexpr uint32_t kHasMaxSize = 1u << 5;

// The bytes of the UTF-8 character at the start of `text`; 0: none.
size_t utf8_character(std::string_view text) {
  const auto first = static_cast<uint8_t>(text[0]);
  const size_t size = first < 0x80             ? 1
                      : (first & 0xE0) == 0xC0 ? 2
                      : (first & 0xF0) == 0xE0 ? 3
                      : (first & 0xF8) == 0xF0 ? 4
                                               : 0;
  if (size == 0 || size > text.size()) return 0;
  for (size_t i = 1; i < size; ++i)
    if ((static_cast<uint8_t>(text[i]) & 0xC0) != 0x80) return 0;
  return size;
}

}  // namespace

std::string utf8_cut(std::string_view text, size_t bytes_max) {
  std::string result;
  while (!text.empty()) {
    const size_t size = utf8_character(text);
    const std::string_view character = size == 0 ? "?" : text.substr(0, size);
    if (result.size() + character.size() > bytes_max) break;
    result += character;
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  return result;
}

Result<std::unique_ptr<XConnection>> XConnection::open(const std::string& name, bool manage) {
  int screen = 0;
  std::unique_ptr<XConnection> connection(
      new XConnection(xcb_connect(name.empty() ? nullptr : name.c_str(), &screen)));
  if (connection->broken())
    return host_error("no X server at {}", name.empty() ? "$DISPLAY" : name.c_str());
  LETHE_TRY(connection->init(screen, manage));
  return connection;
}

Result<> XConnection::init(int screen, bool manage) {
  auto roots = xcb_setup_roots_iterator(xcb_get_setup(x_connection));
  for (; roots.rem > 1 && screen > 0; --screen) xcb_screen_next(&roots);
  x_screen = roots.data;
  if (x_screen->root_depth != 24)
    return host_error("the X server's screen has {} bits a pixel; 24 are needed",
                      x_screen->root_depth);
  constexpr std::array kNames = {"WM_PROTOCOLS", "WM_DELETE_WINDOW", "WM_TAKE_FOCUS",
                                 "WM_STATE",     "_NET_WM_NAME",     "UTF8_STRING"};
  static_assert(kNames.size() == static_cast<size_t>(Atom::kCount));
  for (size_t i = 0; i < kNames.size(); ++i) {
    const auto length = static_cast<uint16_t>(std::strlen(kNames[i]));
    XReply<xcb_intern_atom_reply_t> reply(xcb_intern_atom_reply(
        x_connection, xcb_intern_atom(x_connection, 0, length, kNames[i]), nullptr));
    if (!reply) return host_error("the X server went away");
    x_atoms[i] = reply->atom;
  }
  LETHE_TRY(init_extensions());

  // The one who redirects the root's children is the window manager: there can be one.
  uint32_t mask = XCB_EVENT_MASK_SUBSTRUCTURE_NOTIFY | XCB_EVENT_MASK_SUBSTRUCTURE_REDIRECT;
  if (manage) {
    XReply<xcb_generic_error_t> refused(xcb_request_check(
        x_connection,
        xcb_change_window_attributes_checked(x_connection, root(), XCB_CW_EVENT_MASK, &mask)));
    x_manages = !refused;
  }
  if (!x_manages) {
    mask = XCB_EVENT_MASK_SUBSTRUCTURE_NOTIFY;
    xcb_change_window_attributes(x_connection, root(), XCB_CW_EVENT_MASK, &mask);
  }
  // Every window keeps its whole content, whatever covers it. The server goes on to show them.
  xcb_composite_redirect_subwindows(x_connection, root(), XCB_COMPOSITE_REDIRECT_AUTOMATIC);
  return {};
}

// Each extension must be told the version we speak before it answers anything else.
Result<> XConnection::init_extensions() {
  const std::array<std::pair<xcb_extension_t*, const char*>, 5> extensions{
      {{&xcb_composite_id, "Composite"},
       {&xcb_damage_id, "DAMAGE"},
       {&xcb_xfixes_id, "XFIXES"},
       {&xcb_test_id, "XTEST"},
       {&xcb_shm_id, "MIT-SHM"}}};
  for (const auto& [extension, name] : extensions) {
    const auto* data = xcb_get_extension_data(x_connection, extension);
    if (data == nullptr || data->present == 0)
      return host_error("the X server has no extension {}", name);
  }
  x_damage_notify = static_cast<uint8_t>(
      xcb_get_extension_data(x_connection, &xcb_damage_id)->first_event + XCB_DAMAGE_NOTIFY);
  XReply<xcb_composite_query_version_reply_t> composite(xcb_composite_query_version_reply(
      x_connection, xcb_composite_query_version(x_connection, 0, 4), nullptr));
  XReply<xcb_damage_query_version_reply_t> damage(xcb_damage_query_version_reply(
      x_connection, xcb_damage_query_version(x_connection, 1, 1), nullptr));
  XReply<xcb_xfixes_query_version_reply_t> xfixes(xcb_xfixes_query_version_reply(
      x_connection, xcb_xfixes_query_version(x_connection, 4, 0), nullptr));
  XReply<xcb_shm_query_version_reply_t> shm(
      xcb_shm_query_version_reply(x_connection, xcb_shm_query_version(x_connection), nullptr));
  if (!composite || !damage || !xfixes || !shm) return host_error("the X server went away");
  if (shm->major_version == 1 && shm->minor_version < 2)
    return host_error("the X server's MIT-SHM is older than 1.2: it takes no descriptors");
  x_shared_pixmaps = shm->shared_pixmaps != 0 && shm->pixmap_format == XCB_IMAGE_FORMAT_Z_PIXMAP;
  return {};
}

void XConnection::sync() const {
  XReply<xcb_get_input_focus_reply_t> reply(
      xcb_get_input_focus_reply(x_connection, xcb_get_input_focus(x_connection), nullptr));
}

std::vector<xcb_window_t> XConnection::children(xcb_window_t window) const {
  XReply<xcb_query_tree_reply_t> tree(
      xcb_query_tree_reply(x_connection, xcb_query_tree(x_connection, window), nullptr));
  if (!tree) return {};
  const xcb_window_t* first = xcb_query_tree_children(tree.get());
  return {first, first + xcb_query_tree_children_length(tree.get())};
}

XReply<xcb_get_property_reply_t> XConnection::property(xcb_window_t window, xcb_atom_t property,
                                                       xcb_atom_t type, uint32_t words) const {
  XReply<xcb_get_property_reply_t> reply(xcb_get_property_reply(
      x_connection, xcb_get_property(x_connection, 0, window, property, type, 0, words), nullptr));
  if (reply && (reply->type == XCB_ATOM_NONE || (type != XCB_ATOM_ANY && reply->type != type)))
    reply.reset();
  return reply;
}

std::string XConnection::title(xcb_window_t window) const {
  auto reply = property(window, atom(Atom::kNetWmName), atom(Atom::kUtf8String), kPropertyWordsMax);
  if (!reply || reply->format != 8)
    reply = property(window, XCB_ATOM_WM_NAME, XCB_ATOM_ANY, kPropertyWordsMax);
  if (!reply || reply->format != 8) return {};
  std::string_view text(static_cast<const char*>(xcb_get_property_value(reply.get())),
                        static_cast<size_t>(xcb_get_property_value_length(reply.get())));
  text = text.substr(0, text.find('\0'));
  if (reply->type != XCB_ATOM_STRING) return utf8_cut(text, window::kTitleBytes - 1);
  // STRING is Latin-1 (ICCCM 2.7.1).
  std::string utf8;
  for (const char c : text) {
    const auto code = static_cast<uint8_t>(c);
    if (code < 0x80) {
      utf8 += c;
    } else {
      utf8 += static_cast<char>(0xC0 | (code >> 6));
      utf8 += static_cast<char>(0x80 | (code & 0x3F));
    }
  }
  return utf8_cut(utf8, window::kTitleBytes - 1);
}

std::optional<xcb_window_t> XConnection::transient_for(xcb_window_t window) const {
  auto reply = property(window, XCB_ATOM_WM_TRANSIENT_FOR, XCB_ATOM_WINDOW, 1);
  if (!reply || reply->format != 32 || xcb_get_property_value_length(reply.get()) != 4) return {};
  xcb_window_t other = 0;
  std::memcpy(&other, xcb_get_property_value(reply.get()), sizeof(other));
  return other;
}

bool XConnection::resizable(xcb_window_t window) const {
  auto reply = property(window, XCB_ATOM_WM_NORMAL_HINTS, XCB_ATOM_WM_SIZE_HINTS, kSizeHintsWords);
  std::array<uint32_t, kSizeHintsWords> hints{};
  if (!reply || reply->format != 32 ||
      xcb_get_property_value_length(reply.get()) < static_cast<int>(sizeof(hints)))
    return true;
  std::memcpy(hints.data(), xcb_get_property_value(reply.get()), sizeof(hints));
  const bool fixed = hints[5] == hints[7] && hints[6] == hints[8];
  return (hints[0] & (kHasMinSize | kHasMaxSize)) != (kHasMinSize | kHasMaxSize) || !fixed;
}

bool XConnection::has_property(xcb_window_t window, xcb_atom_t which) const {
  return property(window, which, XCB_ATOM_ANY, 0) != nullptr;
}

bool XConnection::speaks(xcb_window_t window, Atom protocol) const {
  auto reply = property(window, atom(Atom::kWmProtocols), XCB_ATOM_ATOM, kPropertyWordsMax);
  if (!reply || reply->format != 32) return false;
  const auto* first = static_cast<const xcb_atom_t*>(xcb_get_property_value(reply.get()));
  const auto* last = first + xcb_get_property_value_length(reply.get()) / 4;
  return std::find(first, last, atom(protocol)) != last;
}

void XConnection::send_protocol(xcb_window_t window, Atom protocol) const {
  xcb_client_message_event_t event{};
  event.response_type = XCB_CLIENT_MESSAGE;
  event.format = 32;
  event.window = window;
  event.type = atom(Atom::kWmProtocols);
  event.data.data32[0] = atom(protocol);
  event.data.data32[1] = XCB_CURRENT_TIME;
  // SAFETY: xcb takes any 32-byte event as bytes.
  xcb_send_event(x_connection, 0, window, XCB_EVENT_MASK_NO_EVENT,
                 reinterpret_cast<const char*>(&event));
}

void XConnection::set_wm_state(xcb_window_t window, bool shown) const {
  const std::array<uint32_t, 2> state = {shown ? 1u : 0u, XCB_NONE};  // Normal, Withdrawn; no icon
  xcb_change_property(x_connection, XCB_PROP_MODE_REPLACE, window, atom(Atom::kWmState),
                      atom(Atom::kWmState), 32, state.size(), state.data());
}

}  // namespace lethe::agent
