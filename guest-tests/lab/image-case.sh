# Boots IMAGE by its own config and types at its console; for test-image, in the lab or beside it.
# busybox sh. $LETHE: the program; $OUT: the results' folder.
# shellcheck shell=sh
set -u
image=$1
log=$OUT/image.log
keys=$OUT/keys
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/tmp}"

seconds() { cut -d. -f1 /proc/uptime; }
started=$(seconds)
# By the clock: on a busy host a turn of the loop takes longer than its sleep. A VM that has ended is
# not waited for.
wait_for() { # wait_for TEXT SECONDS
  deadline=$(($(seconds) + $2))
  until grep -aq "$1" "$log" 2>/dev/null; do
    kill -0 "$lethe_pid" 2>/dev/null || { grep -aq "$1" "$log"; return; }
    [ "$(seconds)" -lt $deadline ] || return 1
    sleep 0.2
  done
}
fail() {
  echo "FAIL image: $1; the end of its console:"
  tail -n 30 "$log"
  kill -KILL "$lethe_pid" 2>/dev/null
  exit 1
}

rm -f "$keys"
mkfifo "$keys"
exec 3<>"$keys"
# aesni_intel: the lab's processor has AVX without XSAVE, which no real one has, and that module's
# self-test then runs into an illegal instruction.
timeout -s KILL 800 "$LETHE" run "$image.toml" \
  --set boot.cmdline="console=ttyS0 root=LABEL=root rw quiet modprobe.blacklist=aesni_intel" \
  <"$keys" >"$log" 2>&1 &
lethe_pid=$!
wait_for 'root@disk:~#' 500 || fail "no shell on the console"
echo "the console's shell is there after $(($(seconds) - started)) s"
# The words that are waited for are not in what is typed: the terminal echoes that. A pager would take
# what is typed for its own commands, and bracketed paste writes its escapes before what is printed.
cat >&3 <<'KEYS'
bind 'set enable-bracketed-paste off'; export SYSTEMD_PAGER=cat
echo "state=$(systemctl is-system-running --wait)"; systemctl --failed --no-legend --plain
echo "root=$(findmnt -no LABEL,FSTYPE / | tr -s ' ' -)"
echo "agent=$(lethe-agent --help | head -n 1 | cut -d' ' -f1-2),$(systemctl --global is-enabled lethe-agent)"
echo "host=$(hostname)" "size=$(df -k --output=size / | tail -n 1)"
poweroff
KEYS
wait_for '^state=[a-z]' 300 || fail "systemd never got ready"
echo "systemd is ready after $(($(seconds) - started)) s"
code=0
wait $lethe_pid || code=$?
tr -d '\r' <"$log" >"$log.text"
for line in state=running root=root-ext4 'agent=usage: lethe-agent,enabled' host=disk; do
  grep -aq "^$line" "$log.text" || fail "no '$line'"
done
grep -aE 'BUG:|Call Trace|Kernel panic' "$log.text" && fail "the kernel complains"
[ $code = 0 ] || fail "exit code $code"
echo "PASS image: powered off after $(($(seconds) - started)) s"
