# Shared by the init scripts of Lethe's Linux guests; they source it as /lib/init-common.sh.
# busybox sh, not bash.
# shellcheck shell=sh

export PATH=/bin:/usr/bin HOME=/root

mount_all() {
  mount -t proc proc /proc
  mount -t sysfs sys /sys
  mount -t devtmpfs dev /dev
  mkdir -p /dev/pts
  mount -t devpts pts /dev/pts
  mount -t tmpfs tmp /tmp
}

# A module that finds no device is no error here: the check that needs it says so.
load_modules() {
  while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "lethe-init: insmod $module failed"
  done </lib/modules/order
}

# A word of the kernel's command line: cmdline_has lethe.x; value of lethe.x=v: cmdline_value lethe.x
cmdline_has() { grep -qE "(^| )$1( |\$)" /proc/cmdline; }
cmdline_value() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1; }
