# Shared by the scripts of guest-tests/: where things are, and how they speak. Sourced, not run.
# shellcheck shell=bash

# The repository's root.
LETHE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Kernels and images: build/guests/, as configs/linux.toml expects.
GUESTS_DIR=${LETHE_GUESTS_DIR:-$LETHE_ROOT/build/guests}
export LETHE_ROOT GUESTS_DIR

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

need_tool() { # need_tool TOOL PACKAGE
  PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ||
    die "$1 is missing: apt-get install $2 (or ./dev setup)"
}

# True when TARGET is missing or older than one of the other files.
is_stale() { # is_stale TARGET SOURCE...
  local target=$1 source
  shift
  [[ -e $target ]] || return 0
  for source in "$@"; do
    [[ $source -nt $target ]] && return 0
  done
  return 1
}

# One builder at a time: two test runs may start in one tree.
lock_guests_dir() {
  mkdir -p "$GUESTS_DIR"
  exec {GUESTS_LOCK_FD}>"$GUESTS_DIR/.lock"
  flock -w 600 "$GUESTS_LOCK_FD" || die "$GUESTS_DIR/.lock is held for 10 minutes: who?"
}

unlock_guests_dir() { exec {GUESTS_LOCK_FD}>&-; }

# Copies kernel modules, and what they depend on, into ROOT/lib/modules, and appends their names to
# ROOT/lib/modules/order in the order in which they have to be loaded. Names take '-' for '_' too.
copy_modules() { # copy_modules KERNEL_DIR ROOT MODULE...
  local kernel=$1 root=$2 module
  shift 2
  mkdir -p "$root/lib/modules"
  touch "$root/lib/modules/order"
  for module in "$@"; do copy_module "$kernel" "$root" "$module"; done
}

copy_module() { # copy_module KERNEL_DIR ROOT MODULE
  local kernel=$1 root=$2 name=${3//-/_} file depends dependency
  grep -qx "$name" "$root/lib/modules/order" && return
  file=$(find "$kernel/modules" -name "${name//_/[-_]}.ko" -print -quit)
  if [[ -z $file ]]; then
    grep -q "/${name//_/[-_]}\.ko$" "$kernel/modules/modules.builtin" && return
    die "$kernel/modules: no module $name, and it is not built in"
  fi
  # The .modinfo section is a list of NUL-terminated key=value strings.
  depends=$(tr '\0' '\n' <"$file" | LC_ALL=C sed -n 's/^depends=//p' | head -n 1 | tr ',' ' ')
  for dependency in $depends; do copy_module "$kernel" "$root" "$dependency"; done
  cp "$file" "$root/lib/modules/$name.ko"
  echo "$name" >>"$root/lib/modules/order"
}

# busybox with every applet as a link.
copy_busybox() { # copy_busybox ROOT
  local root=$1 applet
  need_tool busybox busybox-static
  mkdir -p "$root/bin"
  cp "$(command -v busybox)" "$root/bin/busybox"
  while read -r applet; do
    [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
  done < <("$root/bin/busybox" --list)
}

# A cpio archive of ROOT, uncompressed: a guest's unpacking costs more than the bytes.
pack_initrd() { # pack_initrd ROOT FILE
  local root=$1 file=$2
  find "$root" -exec touch -h -d @0 {} +
  (cd "$root" && find . | LC_ALL=C sort | busybox cpio -o -H newc -R 0:0 2>/dev/null) >"$file.new"
  mv "$file.new" "$file"
}

# A program and the libraries it loads, at their own paths under ROOT.
ship_program() { # ship_program PROGRAM ROOT
  local file
  for file in "$1" $(ldd "$1" | grep -o '/[^ ]*'); do
    install -D "$(readlink -f "$file")" "$2$file"
  done
}
