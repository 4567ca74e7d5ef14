#include "frontend/view/fake_x_server.h"

#include <X11/Xlib.h>
#include <X11/Xutil.h>
#include <X11/extensions/XTest.h>
#include <X11/extensions/Xfixes.h>
#include <X11/keysym.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/test_util.h"

namespace lethe::gui {
namespace {

Display* display_of(void* display) { return static_cast<Display*>(display); }

// Windows come and go while they are looked at: that is no reason to die.
int ignore_error(Display*, XErrorEvent*) { return 0; }

void collect(Display* display, ::Window parent, std::vector<XServer::Window>& found) {
  ::Window root = 0, above = 0, *children = nullptr;
  unsigned count = 0;
  if (XQueryTree(display, parent, &root, &above, &children, &count) == 0) return;
  for (unsigned i = 0; i < count; ++i) {
    XWindowAttributes attributes{};
    XTextProperty name{};
    const bool alive = XGetWindowAttributes(display, children[i], &attributes) != 0;
    if (alive && XGetWMName(display, children[i], &name) != 0 && name.value != nullptr) {
      ::Window transient_for = 0;
      (void)XGetTransientForHint(display, children[i], &transient_for);
      found.push_back({.id = children[i],
                       .title = reinterpret_cast<const char*>(name.value),
                       .x = attributes.x,
                       .y = attributes.y,
                       .width = static_cast<uint32_t>(attributes.width),
                       .height = static_cast<uint32_t>(attributes.height),
                       .viewable = attributes.map_state == IsViewable,
                       .override_redirect = attributes.override_redirect != 0,
                       .transient_for = transient_for});
      XFree(name.value);
    }
    collect(display, children[i], found);
  }
  XFree(children);
}

}  // namespace

XServer::XServer() {
  int ends[2];
  if (::pipe(ends) != 0) return;
  x_pid = ::fork();
  if (x_pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::close(ends[0]);
    const std::string descriptor = std::to_string(ends[1]);
    ::execlp("Xvfb", "Xvfb", "-displayfd", descriptor.c_str(), "-screen", "0", "1024x768x24",
             "-nolisten", "tcp", "-noreset", static_cast<char*>(nullptr));
    std::_Exit(127);
  }
  ::close(ends[1]);
  // The number comes in pieces, and ends with a newline.
  std::string text;
  pollfd waiting{.fd = ends[0], .events = POLLIN, .revents = 0};
  char piece = 0;
  while (piece != '\n' && ::poll(&waiting, 1, 20'000) == 1 && ::read(ends[0], &piece, 1) == 1)
    text += piece;
  if (piece == '\n') x_name = ":" + std::to_string(std::atoi(text.c_str()));
  ::close(ends[0]);
  if (x_name.empty()) return;
  XSetErrorHandler(ignore_error);
  (void)eventually([&] { return (x_display = XOpenDisplay(x_name.c_str())) != nullptr; });
}

XServer::~XServer() {
  if (x_display != nullptr) XCloseDisplay(display_of(x_display));
  if (x_pid <= 0) return;
  ::kill(x_pid, SIGTERM);
  ::waitpid(x_pid, nullptr, 0);
}

std::vector<XServer::Window> XServer::windows() const {
  std::vector<Window> found;
  Display* display = display_of(x_display);
  collect(display, DefaultRootWindow(display), found);
  return found;
}

std::optional<XServer::Window> XServer::wait_for_window(const std::string& title,
                                                        std::chrono::milliseconds patience) const {
  std::optional<Window> result;
  (void)eventually(
      [&] {
        for (const Window& window : windows())
          if (window.viewable && window.title.find(title) != std::string::npos) result = window;
        return result.has_value();
      },
      patience);
  return result;
}

std::optional<Picture> XServer::screenshot(const Window& window) const {
  Display* display = display_of(x_display);
  XImage* image =
      XGetImage(display, window.id, 0, 0, window.width, window.height, AllPlanes, ZPixmap);
  if (image == nullptr) return std::nullopt;
  Picture picture(window.width, window.height);
  for (uint32_t y = 0; y < window.height; ++y)
    for (uint32_t x = 0; x < window.width; ++x)
      picture.line(y)[x] =
          static_cast<Pixel>(XGetPixel(image, static_cast<int>(x), static_cast<int>(y)) & 0xFFFFFF);
  XDestroyImage(image);
  return picture;
}

bool XServer::wait_for_picture(const Window& window, const Picture& expected,
                               std::chrono::milliseconds patience) const {
  return eventually(
      [&] {
        const auto picture = screenshot(window);
        return picture && *picture == expected;
      },
      patience);
}

void XServer::key(unsigned keysym, bool down) const {
  Display* display = display_of(x_display);
  XTestFakeKeyEvent(display, XKeysymToKeycode(display, keysym), down ? True : False, 0);
  XFlush(display);
}
void XServer::move_pointer(int x, int y) const {
  XTestFakeMotionEvent(display_of(x_display), 0, x, y, 0);
  XFlush(display_of(x_display));
}
void XServer::button(unsigned number, bool down) const {
  XTestFakeButtonEvent(display_of(x_display), number, down ? True : False, 0);
  XFlush(display_of(x_display));
}
void XServer::resize(const Window& window, uint32_t width, uint32_t height) const {
  XResizeWindow(display_of(x_display), window.id, width, height);
  XFlush(display_of(x_display));
}
void XServer::focus(const Window& window) const {
  XSetInputFocus(display_of(x_display), window.id, RevertToParent, CurrentTime);
  XFlush(display_of(x_display));
}
// As a window manager does (ICCCM 4.2.8.1).
void XServer::ask_to_close(const Window& window) const {
  Display* display = display_of(x_display);
  XEvent event{};
  event.xclient.type = ClientMessage;
  event.xclient.window = window.id;
  event.xclient.message_type = XInternAtom(display, "WM_PROTOCOLS", False);
  event.xclient.format = 32;
  event.xclient.data.l[0] = static_cast<long>(XInternAtom(display, "WM_DELETE_WINDOW", False));
  XSendEvent(display, window.id, False, NoEventMask, &event);
  XFlush(display);
}

XServer::CursorImage XServer::cursor() const {
  XFixesCursorImage* image = XFixesGetCursorImage(display_of(x_display));
  if (image == nullptr) return {};
  CursorImage cursor{.width = image->width,
                     .height = image->height,
                     .hot_x = image->xhot,
                     .hot_y = image->yhot,
                     .pixels = {}};
  // Longs, of which 32 bits are used.
  for (uint32_t i = 0; i < cursor.width * cursor.height; ++i)
    cursor.pixels.push_back(static_cast<uint32_t>(image->pixels[i]));
  XFree(image);
  return cursor;
}

bool XServer::managed() const {
  Display* display = display_of(x_display);
  const ::Window root = DefaultRootWindow(display);
  const ::Window probe = XCreateSimpleWindow(display, root, 10, 10, 50, 50, 0, 0, 0);
  XMapWindow(display, probe);
  const bool framed = eventually(
      [&] {
        XWindowAttributes attributes{};
        ::Window top = 0, parent = 0, *children = nullptr;
        unsigned count = 0;
        if (XGetWindowAttributes(display, probe, &attributes) == 0 ||
            XQueryTree(display, probe, &top, &parent, &children, &count) == 0)
          return false;
        if (children != nullptr) XFree(children);
        return attributes.map_state == IsViewable && parent != root;
      },
      std::chrono::milliseconds(300));
  XDestroyWindow(display, probe);
  XSync(display, False);
  return framed;
}

std::pair<int, int> XServer::place_of(const Window& window) const {
  Display* display = display_of(x_display);
  int x = 0, y = 0;
  ::Window child = 0;
  XTranslateCoordinates(display, window.id, DefaultRootWindow(display), 0, 0, &x, &y, &child);
  return {x, y};
}

bool XServer::keyboard_grabbed() const {
  auto* const display = static_cast<Display*>(x_display);
  const int answer = XGrabKeyboard(display, DefaultRootWindow(display), False, GrabModeAsync,
                                   GrabModeAsync, CurrentTime);
  if (answer == GrabSuccess) XUngrabKeyboard(display, CurrentTime);
  XSync(display, False);
  return answer == AlreadyGrabbed;
}

}  // namespace lethe::gui
