#include "frontend/vnc/vnc_screen.h"

#include <rfb/rfb.h>

#include <cstdlib>
#include <cstring>

#include "base/log.h"

namespace lethe::gui {

struct VncScreen::Impl {
  rfbScreenInfoPtr screen = nullptr;
  std::vector<uint32_t> pixels;
  std::string name;
  std::string password;
  char* passwords[2] = {};  // libvncserver's list
  VncUser* user = nullptr;
  int clients = 0;
  std::chrono::steady_clock::time_point wrong_password_at{};

  ~Impl() {
    if (screen == nullptr) return;
    rfbShutdownServer(screen, TRUE);
    screen->cursor = nullptr;  // freed by rfbScreenCleanup only if it is the library's own
    screen->frameBuffer = nullptr;
    rfbScreenCleanup(screen);
  }
};

namespace {

constexpr int kInitialWidth = 640, kInitialHeight = 480;

VncScreen::Impl& impl_of(rfbClientPtr client) {
  return *static_cast<VncScreen::Impl*>(client->screen->screenData);
}

void on_client_gone(rfbClientPtr client) {
  VncScreen::Impl& impl = impl_of(client);
  if (client->clientData != nullptr) impl.user->user_gone();
  if (--impl.clients == 0) impl.user->no_client();
}

rfbNewClientAction on_new_client(rfbClientPtr client) {
  VncScreen::Impl& impl = impl_of(client);
  if (impl.clients >= VncScreen::kClientsMax) return RFB_CLIENT_REFUSE;
  ++impl.clients;
  client->clientGoneHook = on_client_gone;
  return RFB_CLIENT_ACCEPT;
}

// Who has typed or pointed may hold something down. Others, who may not even know the password,
// release nothing when they go.
VncUser& user_of(rfbClientPtr client) {
  VncScreen::Impl& impl = impl_of(client);
  client->clientData = &impl;
  return *impl.user;
}

void on_key(rfbBool down, rfbKeySym keysym, rfbClientPtr client) {
  user_of(client).keysym(static_cast<uint32_t>(keysym), down != 0);
}

void on_pointer(int buttons, int x, int y, rfbClientPtr client) {
  user_of(client).pointer(x, y, static_cast<uint8_t>(buttons));
  rfbDefaultPtrAddEvent(buttons, x, y, client);  // where the cursor is drawn for others
}

int on_desktop_size(int width, int height, int, rfbExtDesktopScreen*, rfbClientPtr client) {
  if (width < 1 || height < 1) return rfbExtDesktopSize_InvalidScreenLayout;
  impl_of(client).user->desktop_size(static_cast<uint32_t>(width), static_cast<uint32_t>(height));
  return rfbExtDesktopSize_Success;
}

rfbBool check_password(rfbClientPtr client, const char* response, int length) {
  if (rfbCheckPasswordByList(client, response, length) != 0) return TRUE;
  impl_of(client).wrong_password_at = std::chrono::steady_clock::now();
  LETHE_LOG_LIMITED(LogModule::kGui, "a VNC client gave a wrong password");
  return FALSE;
}

// What clients put on the clipboard is not for the guest.
void ignore_cut_text(char*, int, rfbClientPtr) {}
// Clients cause these lines: none is printed.
void no_log(const char*, ...) {}

}  // namespace

Result<std::unique_ptr<VncScreen>> VncScreen::create(const std::string& name,
                                                     const std::string& password, VncUser& user) {
  rfbLog = no_log;
  rfbErr = no_log;
  rfbMaxClientWait = kClientWaitMs;
  std::unique_ptr<VncScreen> self(new VncScreen);
  self->x_impl = std::make_unique<Impl>();
  Impl& impl = *self->x_impl;
  impl.user = &user;
  impl.name = name;
  impl.password = password;
  impl.passwords[0] = impl.password.data();
  impl.pixels.resize(size_t{kInitialWidth} * kInitialHeight);
  impl.screen = rfbGetScreen(nullptr, nullptr, kInitialWidth, kInitialHeight, 8, 3, 4);
  if (impl.screen == nullptr) return host_error("libvncserver does not start: out of memory");
  rfbScreenInfo& screen = *impl.screen;
  screen.screenData = &impl;
  // SAFETY: libvncserver works on char; it reads width * height pixels of 4 bytes, as many as there
  // are.
  screen.frameBuffer = reinterpret_cast<char*>(impl.pixels.data());
  screen.desktopName = impl.name.c_str();
  screen.autoPort = FALSE;
  screen.port = screen.ipv6port = 0;  // we listen ourselves
  screen.httpDir = nullptr;
  screen.alwaysShared = TRUE;
  screen.cursor = nullptr;
  // At once: what comes in between is in the next update's damage, and nothing waits for a timer.
  screen.deferUpdateTime = 0;
  screen.deferPtrUpdateTime = 0;
  screen.maxClientWait = kClientWaitMs;
  screen.permitFileTransfer = FALSE;
  screen.newClientHook = on_new_client;
  screen.kbdAddEvent = on_key;
  screen.ptrAddEvent = on_pointer;
  screen.setXCutText = ignore_cut_text;
  screen.setXCutTextUTF8 = ignore_cut_text;
  screen.setDesktopSizeHook = on_desktop_size;
  if (!password.empty()) {
    screen.authPasswdData = static_cast<void*>(impl.passwords);
    screen.passwordCheck = check_password;
  }
  rfbInitServer(impl.screen);
  return self;
}

VncScreen::~VncScreen() = default;

void VncScreen::add_client(UniqueFd socket, bool websocket) {
  rfbClientPtr client = rfbNewClient(x_impl->screen, socket.release());
  if (client != nullptr && (client->wsctx != nullptr) != websocket) rfbCloseClient(client);
}

int VncScreen::clients() const { return x_impl->clients; }

std::chrono::steady_clock::time_point VncScreen::wrong_password_at() const {
  return x_impl->wrong_password_at;
}

bool VncScreen::resize(uint32_t width, uint32_t height) {
  rfbScreenInfoPtr screen = x_impl->screen;
  if (screen->width == static_cast<int>(width) && screen->height == static_cast<int>(height))
    return false;
  // The old one is read until rfbNewFramebuffer has returned.
  std::vector<uint32_t> pixels(size_t{width} * height);
  // SAFETY: as above, and swapping the vectors leaves the pixels where they are.
  rfbNewFramebuffer(screen, reinterpret_cast<char*>(pixels.data()), static_cast<int>(width),
                    static_cast<int>(height), 8, 3, 4);
  x_impl->pixels.swap(pixels);
  return true;
}

uint32_t* VncScreen::pixels() { return x_impl->pixels.data(); }
size_t VncScreen::stride() const { return static_cast<size_t>(x_impl->screen->width); }

void VncScreen::damage(const Rect& rect) {
  rfbMarkRectAsModified(x_impl->screen, static_cast<int>(rect.x), static_cast<int>(rect.y),
                        static_cast<int>(rect.x + rect.width),
                        static_cast<int>(rect.y + rect.height));
}

void VncScreen::set_cursor(const CursorView* cursor) {
  if (cursor == nullptr || cursor->pixels == nullptr) {
    rfbSetCursor(x_impl->screen, nullptr);
    return;
  }
  // All of it is freed by the library, with free(3).
  auto* made = static_cast<rfbCursor*>(std::calloc(1, sizeof(rfbCursor)));
  const size_t pixels = size_t{cursor->width} * cursor->height;
  const size_t mask_line = (cursor->width + 7) / 8;
  auto* source = static_cast<unsigned char*>(std::calloc(pixels, kPixelBytes));
  auto* mask = static_cast<unsigned char*>(std::calloc(mask_line, cursor->height));
  auto* alpha = static_cast<unsigned char*>(std::calloc(pixels, 1));
  if (made == nullptr || source == nullptr || mask == nullptr || alpha == nullptr) std::abort();
  for (size_t i = 0; i < pixels; ++i) {
    unsigned char bytes[kPixelBytes];  // blue, green, red, alpha
    std::memcpy(bytes, cursor->pixels + i * kPixelBytes, sizeof bytes);
    source[i * kPixelBytes] = bytes[2];
    source[i * kPixelBytes + 1] = bytes[1];
    source[i * kPixelBytes + 2] = bytes[0];
    alpha[i] = bytes[3];
    const size_t x = i % cursor->width;
    if (bytes[3] >= 0x80)
      mask[i / cursor->width * mask_line + x / 8] |= static_cast<unsigned char>(0x80U >> x % 8);
  }
  made->width = static_cast<unsigned short>(cursor->width);
  made->height = static_cast<unsigned short>(cursor->height);
  made->xhot = static_cast<unsigned short>(cursor->hot_x);
  made->yhot = static_cast<unsigned short>(cursor->hot_y);
  made->richSource = source;
  made->mask = mask;
  made->alphaSource = alpha;
  made->cleanup = made->cleanupMask = made->cleanupRichSource = TRUE;
  rfbSetCursor(x_impl->screen, made);
}

void VncScreen::add_to(std::vector<pollfd>& waiting) const {
  for (rfbClientPtr client = x_impl->screen->clientHead; client != nullptr; client = client->next) {
    if (client->sock < 0) continue;
    waiting.push_back({.fd = client->sock, .events = POLLIN, .revents = 0});
  }
}

void VncScreen::process() { rfbProcessEvents(x_impl->screen, 0); }

}  // namespace lethe::gui
