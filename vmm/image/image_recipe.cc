#include "vmm/image/image_recipe.h"

#include <fmt/format.h>

#include <filesystem>

#include "agent_units.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

// What a small Debian lacks to boot as a guest and be lived with. `login` and `util-linux`'s getty
// are essential or required already. lz4: the guest unpacks its initrd faster than zstd's.
constexpr const char* kBasePackages[] = {
    "initramfs-tools", "busybox",          "lz4",  "kmod",     "udev",  "systemd-sysv",
    "libpam-systemd",  "systemd-resolved", "dbus", "iproute2", "procps"};
// The agent's windows need no desktop; this is what shows some.
constexpr const char* kDesktopPackages[] = {"xserver-xorg-core",
                                            "xserver-xorg-input-libinput",
                                            "xinit",
                                            "x11-xserver-utils",
                                            "x11-xkb-utils",
                                            "xfonts-base",
                                            "openbox",
                                            "xterm",
                                            "dbus-user-session",
                                            "fonts-dejavu-core"};

constexpr std::string_view kFstab =
    "# <device>  <directory>  <type>  <options>  <dump>  <pass>\n"
    "LABEL=root  /  ext4  errors=remount-ro  0  1\n";

// Any Ethernet card, whatever its slot makes of its name.
constexpr std::string_view kNetwork =
    "[Match]\n"
    "Type=ether\n"
    "\n"
    "[Network]\n"
    "DHCP=yes\n";

constexpr std::string_view kInitramfsConf =
    "# The machine's disk is virtio's, always: a small initrd that unpacks fast.\n"
    "MODULES=list\n"
    "COMPRESS=lz4\n";

constexpr std::string_view kInitramfsHook = R"(#!/bin/sh
# The modules that reach the root disk of a guest of Lethe.
[ "$1" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk virtio_rng ext4 crc32c_generic
)";

constexpr std::string_view kAutologin =
    "# Whoever has the console of a VM has the VM.\n"
    "[Service]\n"
    "ExecStart=\n"
    "ExecStart=-/sbin/agetty --autologin root --keep-baud 115200,57600,38400,9600 - $TERM\n";

// Two guests of one image must not have one key.
constexpr std::string_view kSshKeys =
    "[Service]\n"
    "ExecStartPre=\n"
    "ExecStartPre=/usr/bin/ssh-keygen -A\n"
    "ExecStartPre=/usr/sbin/sshd -t\n";

// systemd-networkd would have the kernel load all of Wi-Fi: seconds of a slow guest's start.
constexpr std::string_view kModprobe =
    "# A guest has no radio.\n"
    "alias net-pf-16-proto-16-family-nl80211 off\n";

// No OpenGL: the machine's gpu has none, and X would look for it.
constexpr std::string_view kXorg =
    "Section \"Device\"\n"
    "  Identifier \"virtio-gpu\"\n"
    "  Driver \"modesetting\"\n"
    "  Option \"AccelMethod\" \"none\"\n"
    "EndSection\n";

constexpr std::string_view kSessionUnit = R"([Unit]
Description=X session of the user on the virtual screen
After=systemd-user-sessions.service dbus.service systemd-logind.service
Conflicts=getty@tty1.service
After=getty@tty1.service
ConditionPathExists=/dev/dri/card0

[Service]
User=user
PAMName=login
TTYPath=/dev/tty1
TTYReset=yes
TTYVHangup=yes
StandardInput=tty
StandardOutput=journal
UtmpIdentifier=tty1
UtmpMode=user
Environment=XDG_SESSION_TYPE=x11
ExecStart=/usr/bin/startx /usr/lib/lethe/session -- vt1 -keeptty -nolisten tcp
# xinit does not tell how the session ended, and the screen has no other login.
Restart=always
RestartSec=2

[Install]
WantedBy=graphical.target
)";

constexpr std::string_view kSession = R"(#!/bin/sh
# The programs of the X session. lethe-agent starts with graphical-session.target, when openbox
# runs: where it finds no window manager, it is the window manager, and openbox would end.
systemctl --user import-environment DISPLAY XAUTHORITY
xterm &
openbox --startup "systemctl --user start lethe-session.target"
systemctl --user stop lethe-session.target
)";

constexpr std::string_view kSessionTarget =
    "[Unit]\n"
    "Description=X session on the virtual screen\n"
    "BindsTo=graphical-session.target\n"
    "Wants=graphical-session-pre.target\n"
    "After=graphical-session-pre.target\n";

constexpr std::string_view kEssentialHook = R"(set -eu
cp -R "$LETHE_IMAGE_FILES/." "$1/"
)";

constexpr std::string_view kCustomizeHook = R"(set -eu
root=$1
in_image() { chroot "$root" "$@"; }

printf '%s\n' "$LETHE_IMAGE_HOSTNAME" >"$root/etc/hostname"
chmod 0644 "$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost\n' \
  "$LETHE_IMAGE_HOSTNAME" >"$root/etc/hosts"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
rm -f "$root/etc/.resolv.conf.systemd-resolved.bak"
in_image systemctl --quiet enable systemd-networkd systemd-resolved fstrim.timer
[ ! -e "$root/usr/bin/lethe-exec" ] || in_image systemctl --quiet enable lethe-exec
in_image systemctl --quiet --global enable lethe-agent
if [ -n "$LETHE_IMAGE_DESKTOP" ]; then
  in_image useradd --create-home --shell /bin/bash user
  in_image systemctl --quiet enable lethe-session
  in_image systemctl --quiet set-default graphical.target
fi
if [ -n "$LETHE_IMAGE_PASSWORD" ]; then
  printf 'root:%s\n' "$LETHE_IMAGE_PASSWORD" | in_image chpasswd
  [ -z "$LETHE_IMAGE_DESKTOP" ] ||
    printf 'user:%s\n' "$LETHE_IMAGE_PASSWORD" | in_image chpasswd
fi
if [ -n "$LETHE_IMAGE_SSH_KEYS" ]; then
  install -d -m 0700 "$root/root/.ssh"
  printf '%s' "$LETHE_IMAGE_SSH_KEYS" >"$root/root/.ssh/authorized_keys"
  chmod 0600 "$root/root/.ssh/authorized_keys"
  rm -f "$root"/etc/ssh/ssh_host_*
fi
)";

template <size_t N>
void append(std::vector<std::string>& to, const char* const (&names)[N]) {
  to.insert(to.end(), std::begin(names), std::end(names));
}

RecipeFile file(std::string path, std::string_view text) {
  return {.path = std::move(path), .text = std::string(text)};
}

// A TOML basic string; check_image_options() has seen to control characters.
std::string toml_text(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

}  // namespace

std::vector<std::string> image_packages(const ImageOptions& options) {
  std::vector<std::string> packages = {options.kernel};
  append(packages, kBasePackages);
  if (options.desktop) append(packages, kDesktopPackages);
  if (!options.ssh_key_file.empty()) packages.emplace_back("openssh-server");
  packages.insert(packages.end(), options.packages.begin(), options.packages.end());
  return packages;
}

std::vector<RecipeFile> image_files(const ImageOptions& options) {
  std::vector<RecipeFile> files = {
      file("etc/fstab", kFstab),
      file("etc/systemd/network/80-ether.network", kNetwork),
      file("etc/modprobe.d/lethe.conf", kModprobe),
      file("etc/initramfs-tools/conf.d/lethe", kInitramfsConf),
      {"etc/initramfs-tools/hooks/lethe", std::string(kInitramfsHook), true},
      file("usr/lib/systemd/user/lethe-agent.service", kLetheAgentUnit),
      file("usr/lib/systemd/system/lethe-exec.service", kLetheExecUnit),
  };
  if (!options.password && options.ssh_key_file.empty())
    files.push_back(file("etc/systemd/system/serial-getty@ttyS0.service.d/lethe.conf", kAutologin));
  if (!options.ssh_key_file.empty())
    files.push_back(file("etc/systemd/system/ssh.service.d/lethe.conf", kSshKeys));
  if (!options.desktop) return files;
  files.push_back(file("etc/X11/xorg.conf.d/20-lethe.conf", kXorg));
  files.push_back(file("usr/lib/systemd/system/lethe-session.service", kSessionUnit));
  files.push_back(file("usr/lib/systemd/user/lethe-session.target", kSessionTarget));
  files.push_back({"usr/lib/lethe/session", std::string(kSession), true});
  return files;
}

std::string_view essential_hook() { return kEssentialHook; }
std::string_view customize_hook() { return kCustomizeHook; }

std::vector<std::string> hook_environment(const ImageOptions& options,
                                          const std::string& public_keys) {
  const std::string hostname =
      options.hostname.empty() ? vm_name_of(options.out) : options.hostname;
  return {"LETHE_IMAGE_HOSTNAME=" + hostname,
          "LETHE_IMAGE_PASSWORD=" + options.password.value_or(""),
          "LETHE_IMAGE_SSH_KEYS=" + public_keys,
          std::string("LETHE_IMAGE_DESKTOP=") + (options.desktop ? "yes" : "")};
}

std::string image_config(const ImageOptions& options) {
  const std::string out = std::filesystem::path(options.out).filename().string();
  std::string text = fmt::format(
      "# Boots {0}, which `lethe image debian` made.\n"
      "name = {1}\n"
      "{2}"
      "\n"
      "[memory]\n"
      "size = \"{3}\"\n"
      "\n"
      "[boot]\n"
      "kernel = {4}\n"
      "initrd = {5}\n"
      "cmdline = \"console=ttyS0 root=LABEL={6} rw quiet\"\n"
      "stop_timeout_ms = 60000   # systemd's services may take their time to end\n"
      "\n"
      "[[disk]]\n"
      "path = {7}\n"
      "\n"
      "# [[net]]\n"
      "# user = true   # a network by passt, with no rights\n"
      "\n"
      "[vsock]\n"
      "enabled = true   # `lethe exec` runs commands in the guest\n",
      out, toml_text(vm_name_of(options.out)), options.desktop ? "cpus = 2\n" : "",
      options.desktop ? "2G" : "512M", toml_text(out + ".vmlinuz"), toml_text(out + ".initrd"),
      kRootLabel, toml_text(out));
  if (options.desktop)
    text +=
        "\n"
        "[gui]\n"
        "enabled = true\n";
  return text;
}

}  // namespace lethe
