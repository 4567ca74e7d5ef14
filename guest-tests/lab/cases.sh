# The Linux tier's cases, run from the repository's root (or its copy in the lab) by run-tests.
# busybox sh, since the lab has nothing else. $LETHE: the program; $PROBE: memory_probe;
# $VSOCK_HOST: vsock_host; $FONT: of the guest's console; $OUT: the results' folder.
# shellcheck shell=sh
set -u
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/tmp}"
disks=build/guests/disks
failed=0
ran=0

# Disks start as holes, all zero.
mkdir -p "$disks"
for disk in smoke scratch restart; do
  rm -f "$disks/$disk.img"
  truncate -s 32M "$disks/$disk.img"
done

# A console's log has the guest's bytes alone: Lethe's own lines, in $log.err, come when they come, in
# the middle of the guest's.

# Waits until the file has the text, or the deadline passes.
wait_for() { # wait_for FILE TEXT SECONDS
  left=$(($3 * 5))
  until grep -q "$2" "$1" 2>/dev/null; do
    left=$((left - 1))
    [ $left -gt 0 ] || return 1
    sleep 0.2
  done
}

# Runs a guest beside us: its console goes to $log, $lethe_pid is a timeout(1), which passes signals on
# and sees to it that the guest ends one day. BEFORE: words of a program that runs lethe.
start() { # start CONFIG SECONDS [BEFORE...]
  config=guest-tests/lab/$1 limit=$2
  shift 2
  timeout -s KILL "$limit" "$@" "$LETHE" run "$config" </dev/null >"$log" 2>"$log.err" &
  lethe_pid=$!
}

# SIGTERM presses the power button, the guest powers off, exit code 0.
power_button() {
  log=$OUT/linux-powerbutton.log
  start signals/linux-powerbutton.toml 240
  if ! wait_for "$log" "powerbutton: ready" 120; then
    echo "FAIL linux-powerbutton: the guest never got ready"
    kill -INT $lethe_pid
    kill -TERM $lethe_pid
    return 1
  fi
  kill -TERM $lethe_pid
  code=0
  wait $lethe_pid || code=$?
  if [ $code != 0 ] || ! grep -q "powerbutton: passed" "$log"; then
    echo "FAIL linux-powerbutton: exit code $code; the end of its console:"
    tail -n 10 "$log" "$log.err"
    return 1
  fi
  echo "PASS linux-powerbutton"
}

# Memory that a stock guest frees is back at the host, and good again when the guest takes it: by
# the guest's own reports, or (with PULL) on demand. NAME is the case's; SHARE the percentage of the
# freed bytes that must be back.
memory_return() { # memory_return NAME SHARE PULL --set KEY=VALUE...
  name=$1 share=$2 pull=$3
  shift 3
  log=$OUT/linux-memory-$name.log
  line=$("$PROBE" -t "$log" -p "$pull" -w 240000 \
    "$LETHE" run guest-tests/lab/signals/linux-memory.toml "$@" 2>"$log.err") || {
    echo "FAIL linux-memory-$name: the end of its console:"
    tail -n 20 "$log" "$log.err"
    return 1
  }
  echo "$line" | tr ' ' '\n' >"$log.figures"
  figure() { sed -n "s/^$1=//p" "$log.figures"; }
  back=$((($(figure rss_filled) - $(figure rss_end)) * 100))
  freed=$(($(figure free_end) - $(figure free_filled)))
  if [ "$(figure exit)" != 0 ] || ! grep -q "lethe-test: memory: passed" "$log"; then
    echo "FAIL linux-memory-$name: $line; the end of its console:"
    tail -n 20 "$log" "$log.err"
    return 1
  fi
  if [ $freed -lt 100000 ] || [ $back -lt $((freed * share)) ]; then
    echo "FAIL linux-memory-$name: less than $share % of $freed KiB came back: $line"
    return 1
  fi
  echo "PASS linux-memory-$name: $((back / freed)) % of $((freed / 1024)) MiB back"
}

# A stock guest that computes checksums is saved, killed, restored, and goes on.
snapshot() {
  log=$OUT/linux-snapshot.log
  rm -rf "$OUT/snapshot"
  "$LETHE" run guest-tests/lab/signals/linux-snapshot.toml </dev/null >"$log" 2>"$log.err" &
  lethe_pid=$!
  if ! wait_for "$log" "lethe-snapshot: round 4" 120 ||
    ! "$LETHE" snapshot linux-snapshot "$OUT/snapshot" >"$log.saved" 2>&1; then
    echo "FAIL linux-snapshot: it was not saved: $(cat "$log.saved"); the end of its console:"
    tail -n 20 "$log" "$log.err"
    kill -KILL $lethe_pid
    wait $lethe_pid
    return 1
  fi
  kill -KILL $lethe_pid
  wait $lethe_pid
  code=0
  timeout -s KILL 120 "$LETHE" restore "$OUT/snapshot" </dev/null >"$log.again" 2>"$log.err" || code=$?
  # Each round once, from where it was saved to the end.
  first=$(sed -n 's/.*lethe-snapshot: round \([0-9]*\).*/\1/p' "$log.again" | head -n 1)
  rounds=$(grep -c "lethe-snapshot: round" "$log.again")
  rm -rf "$OUT/snapshot"
  if [ $code != 0 ] || ! grep -q "lethe-test: snapshot: passed" "$log.again" ||
    [ "${first:-0}" -lt 4 ] || [ "$rounds" != $((13 - first)) ]; then
    echo "FAIL linux-snapshot: exit code $code, first round ${first:-none}; the restored console:"
    tail -n 30 "$log.again" "$log.err"
    return 1
  fi
  echo "PASS linux-snapshot: goes on with round $first; $(cat "$log.saved")"
}

# What the ledger says of a VM's shared buffers, in numbers, in bytes, and of those that are gone:
# "live":1,"orphan":0,... "live":N,"orphan":0,... ... "leaked":0
buffers() { # buffers VM
  "$LETHE" stats "$1" --json | tr -d ' \n' |
    sed 's/.*"buffers":{\([^}]*\)},"buffer_bytes":{\([^}]*\)},"buffers_ended_total":{\([^}]*\)}.*/\1 \2 \3/'
}
# All that is left is the console's own picture.
only_the_screen() { # only_the_screen VM
  case $(buffers "$1") in
    '"live":1,"orphan":0,"freeing":0 "live":'*',"orphan":0,"freeing":0 '*'"leaked":0'*) ;;
    *) return 1 ;;
  esac
}

# A guest with a screen: runs NAME, and lethe-shot's steps beside it.
start_screen() { # start_screen NAME
  name=$1
  log=$OUT/$name.log
  mkdir -p "$OUT/$name"
  start "screen/$name.toml" 600
  # The socket is there before the guest runs.
  left=100
  until [ -e "$XDG_RUNTIME_DIR/lethe/$name/gui.sock" ] || [ $left = 0 ]; do
    left=$((left - 1))
    sleep 0.1
  done
}
steps() { # steps FILE
  # As a user does it: `lethe shot` becomes lethe-shot, which is beside it.
  timeout -s KILL 480 "$LETHE" shot "$name" --steps "guest-tests/lab/screen/$1.json" --font "$FONT" \
    --out "$OUT/$name" >>"$log.steps" 2>&1 && return 0
  echo "FAIL $name: $1.json:"
  cat "$log.steps"
  # What a frontend that comes now sees, and what the VM has counted.
  for window in terminal clock; do
    timeout -s KILL 20 "$LETHE" shot "$name" "$OUT/$name/late-$window.png" --window $window --wait-ms 3000
  done
  "$LETHE" stats "$name" --json >"$log.stats"
  return 1
}
# The guest has ended, and well.
end_screen() { # end_screen WORD
  code=0
  wait $lethe_pid || code=$?
  if [ $code != 0 ] || ! grep -q "lethe-test: $1: passed" "$log"; then
    echo "FAIL $name: exit code $code; the end of its console:"
    tail -n 25 "$log" "$log.err"
    return 1
  fi
  echo "PASS $name"
}
give_up() {
  # The guest says what it misses, before long.
  wait_for "$log" "FAILED" 70
  sleep 2
  tail -n 60 "$log" "$log.err"
  kill -INT $lethe_pid
  sleep 1
  kill -KILL $lethe_pid 2>/dev/null
  wait $lethe_pid
  return 1
}

# A stock kernel's text console, a picture on it, keys, the driver's unbind, another size.
screen() {
  start_screen linux-screen
  steps console || give_up || return 1
  end_screen screen
}

# X programs of a guest, each a window: typing, closing; the agent's death gives all buffers back.
windows() {
  start_screen linux-windows
  steps windows || give_up || return 1
  if ! wait_for "$log" "windows: agent killed" 60; then
    echo "FAIL linux-windows: the agent was not killed"
    give_up || return 1
  fi
  left=20
  until only_the_screen linux-windows || [ $left = 0 ]; do
    left=$((left - 1))
    sleep 0.2
  done
  if [ $left = 0 ]; then
    echo "FAIL linux-windows: buffers are left: $(buffers linux-windows)"
    give_up || return 1
  fi
  steps windows-again || give_up || return 1
  grep -q "windows: typed typed on the host" "$log" || {
    echo "FAIL linux-windows: what was typed did not arrive"
    give_up || return 1
  }
  end_screen windows
}

# A stock kernel's sockets: 100 streams each way at once, every byte compared.
vsock() {
  log=$OUT/linux-vsock.log
  start signals/linux-vsock.toml 240
  code=0
  if ! wait_for "$log" "vsock_peer: ready" 120; then
    echo "FAIL linux-vsock: the guest never listened"
    code=1
  elif ! timeout -s KILL 120 "$VSOCK_HOST" \
    "$XDG_RUNTIME_DIR/lethe/linux-vsock/vsock.sock" 100 16384 >"$log.host" 2>&1; then
    echo "FAIL linux-vsock: the host's side:"
    tail -n 10 "$log.host"
    code=1
  fi
  [ $code = 0 ] || kill -KILL $lethe_pid
  wait $lethe_pid || code=$?
  if [ $code != 0 ] || ! grep -q "lethe-test: vsock: passed" "$log"; then
    echo "FAIL linux-vsock: exit code $code; the end of its console:"
    tail -n 20 "$log" "$log.err"
    return 1
  fi
  echo "PASS linux-vsock: $(sed -n 's/^vsock_peer: //p' "$log.host")"
}

# An interface with an address and a route for passt to copy.
net_host() {
  ip link set lo up
  mkdir -p /etc
  [ ! -d /ship/.lab ] || chmod 755 / /tmp # for passt, which becomes nobody
  [ -e /etc/passwd ] || echo "nobody:x:65534:65534::/:/bin/false" >/etc/passwd
  if ! ip link show up0 >/dev/null 2>&1; then
    busybox tunctl -t up0 >/dev/null && ip addr add 192.0.2.7/24 dev up0 && ip link set up0 up &&
      ip route add default via 192.0.2.1 dev up0 || return 1
  fi
}

# A server of one file on the host.
serve() { # serve ADDRESS:PORT
  mkdir -p /tmp/www
  dd if=/dev/urandom of=/tmp/www/file bs=64k count=64 2>/dev/null
  sum=$(md5sum </tmp/www/file | cut -d ' ' -f 1)
  busybox httpd -f -p "$1" -h /tmp/www &
  httpd_pid=$!
}

# Not on a user's own network: in a namespace, unless this is the lab's machine.
apart() { # apart CASE
  if [ -d /ship/.lab ] || [ -n "${NET_APART:-}" ]; then
    "$1"
  else
    NET_APART=1 CASES=$1 unshare --user --map-root-user --net sh "$0"
  fi
}

# The file that the guest serves comes out as the guest says; tells it that this was enough.
fetch_from_guest() { # fetch_from_guest LOG ADDRESS:PORT
  fetched=nothing
  wait_for "$1" "lethe-test: .*: serves " 120 || return 1
  fetched=$(timeout 60 busybox wget -q -O - "http://$2/file" | md5sum | cut -d ' ' -f 1)
  timeout 60 busybox wget -q -O /dev/null "http://$2/cgi-bin/enough"
  grep -q "serves $fetched" "$1"
}

# A stock guest gets an address by DHCP through passt, and a file from the host's loopback; a port
# of the host's leads to its own server.
net() {
  log=$OUT/linux-net.log
  net_host || {
    echo "FAIL linux-net: no interface for passt"
    return 1
  }
  serve 127.0.0.1:8000
  # passt makes itself another root, which a program in the kernel's first one, the lab's, can not.
  # shellcheck disable=SC2016
  [ ! -d /ship/.lab ] || set -- unshare -m sh -c 'mkdir -p /tmp/root && mount -o rbind / /tmp/root &&
    cd /tmp/root && mount -o move . / && exec chroot . sh -c "cd /ship && exec \"\$@\"" sh "$@"' sh
  start signals/linux-net.toml 240 "$@"
  forwarded=0
  fetch_from_guest "$log" 127.0.0.1:8081 || forwarded=1
  code=0
  wait $lethe_pid || code=$?
  kill $httpd_pid
  if [ $code != 0 ] || [ $forwarded != 0 ] || ! grep -q "lethe-test: net: passed" "$log" ||
    ! grep -q "lethe-test: net: address 192.0.2.7 router 192.0.2.1 mtu 65520" "$log" ||
    ! grep -q "lethe-test: net: sum $sum" "$log"; then
    echo "FAIL linux-net: exit code $code, the file's sum is $sum, that of what came through the" \
      "forwarded port $fetched; the end of its console:"
    tail -n 20 "$log" "$log.err"
    return 1
  fi
  echo "PASS linux-net: an address by DHCP, 4 MiB from the host's loopback, 4 MiB by a forwarded port"
}

# A stock guest on a tap that Lethe makes: two pairs of queues, checksums and segments left to the
# host, a file each way.
tap() {
  log=$OUT/linux-tap.log
  start signals/linux-tap.toml 240
  left=100
  until ip addr add 198.51.100.1/24 dev vm0 2>/dev/null || [ $left = 0 ]; do
    left=$((left - 1))
    sleep 0.1
  done
  ip link set vm0 up
  serve 198.51.100.1:8000
  served=0
  fetch_from_guest "$log" 198.51.100.2:80 || served=1
  code=0
  wait $lethe_pid || code=$?
  kill $httpd_pid
  if [ $code != 0 ] || [ $served != 0 ] || ! grep -q "lethe-test: tap: passed" "$log" ||
    ! grep -q "lethe-test: tap: sum $sum" "$log"; then
    echo "FAIL linux-tap: exit code $code, the file's sum is $sum, that of what the guest sent" \
      "$fetched; the end of its console:"
    tail -n 20 "$log" "$log.err"
    return 1
  fi
  echo "PASS linux-tap: $(sed -n 's/.*lethe-test: tap: \([0-9]* bytes.*\)/\1/p' "$log" | tr -d '\r' |
    tr '\n' ' ')"
}

# A stock guest's agent runs commands for `lethe check`: a wrong exit code is found and named, and
# what the guest made comes out whole.
commands() {
  log=$OUT/linux-exec.report
  code=0
  "$LETHE" check guest-tests/lab/exec/linux-exec.toml --out "$OUT" --junit "$OUT/exec.xml" \
    >"$log" 2>&1 || code=$?
  wrong="exec: step 2 of 2 'sh -c echo \"\$WHY\" >&2; exit 3': exit code 3, expected exit code 0; its"
  if [ $code != 1 ] || ! grep -qF "$wrong stderr ends with 'as it should be'" "$log" ||
    ! grep -q '<failure message="exec: step 2 of 2' "$OUT/exec.xml" ||
    ! (cd "$OUT/linux-exec.artifacts/tmp" && sha256sum -c out/sum); then
    echo "FAIL linux-exec: exit code $code; its report:"
    cat "$log"
    return 1
  fi
  echo "PASS linux-exec"
}

# $CASES, if given, are the only ones; those of $EXCEPT are none.
wanted() { # wanted CASE
  case " ${EXCEPT:-} " in *" $1 "*) return 1 ;; esac
  [ -z "${CASES:-}" ] && return 0
  case " $CASES " in *" $1 "*) return 0 ;; esac
  return 1
}
run() { # run CASE COMMAND...
  wanted "$1" || return 0
  ran=1
  shift
  "$@" || failed=1
}

run check "$LETHE" check --jobs 1 --out "$OUT" --junit "$OUT/junit.xml" "$@"
run powerbutton power_button
run snapshot snapshot
run net apart net
run tap apart tap
run exec commands
run screen screen
run windows windows
run vsock vsock
run memory-discard memory_return discard 90 true --set memory.policy=discard \
  --set "boot.cmdline=console=ttyS0 lethe.test=memory lethe.unload quiet"
run memory-pull memory_return pull 95 "$LETHE reclaim linux-memory all" --set memory.policy=discard \
  --set balloon.free_page_reporting=false --set memory.size=1G
run memory-auto memory_return auto 95 true --set memory.policy=discard --set memory.auto=true
run memory-shared memory_return shared 90 true --set memory.policy=discard --set memory.backing=shared
# In the lab's kernel, without UFFDIO_MOVE, chunks move by mremap, and stay in the pool for reuse.
run memory-pool memory_return pool 25 true --set memory.policy=pool
[ "$ran" = 1 ] || echo "FAIL: there is no case '$CASES'"
[ "$ran" = 1 ] && exit $failed
exit 1
