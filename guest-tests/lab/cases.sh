# The Linux tier's cases, run from the repository's root (or its copy in the lab) by run-tests.
# busybox sh, since the lab has nothing else. $LETHE: the program; $PROBE: memory_probe;
# $OUT: the results' folder.
# shellcheck shell=sh
set -u
disks=build/guests/disks
failed=0

# Disks start as holes, all zero.
mkdir -p "$disks"
for disk in smoke scratch restart; do
  rm -f "$disks/$disk.img"
  truncate -s 32M "$disks/$disk.img"
done

# Waits until the file has the text, or the deadline passes.
wait_for() { # wait_for FILE TEXT SECONDS
  left=$(($3 * 5))
  until grep -q "$2" "$1" 2>/dev/null; do
    left=$((left - 1))
    [ $left -gt 0 ] || return 1
    sleep 0.2
  done
}

# SIGTERM presses the power button, the guest powers off, exit code 0.
power_button() {
  log=$OUT/linux-powerbutton.log
  # A timeout(1) passes the signal on, and sees to it that the guest ends one day.
  timeout -s KILL 240 "$LETHE" run guest-tests/lab/signals/linux-powerbutton.toml \
    </dev/null >"$log" 2>&1 &
  lethe_pid=$!
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
    tail -n 10 "$log"
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
    "$LETHE" run guest-tests/lab/signals/linux-memory.toml "$@") || {
    echo "FAIL linux-memory-$name: the end of its console:"
    tail -n 20 "$log"
    return 1
  }
  echo "$line" | tr ' ' '\n' >"$log.figures"
  figure() { sed -n "s/^$1=//p" "$log.figures"; }
  back=$((($(figure rss_filled) - $(figure rss_end)) * 100))
  freed=$(($(figure free_end) - $(figure free_filled)))
  if [ "$(figure exit)" != 0 ] || ! grep -q "lethe-test: memory: passed" "$log"; then
    echo "FAIL linux-memory-$name: $line; the end of its console:"
    tail -n 20 "$log"
    return 1
  fi
  if [ $freed -lt 100000 ] || [ $back -lt $((freed * share)) ]; then
    echo "FAIL linux-memory-$name: less than $share % of $freed KiB came back: $line"
    return 1
  fi
  echo "PASS linux-memory-$name: $((back / freed)) % of $((freed / 1024)) MiB back"
}

"$LETHE" check --jobs 1 --out "$OUT" --junit "$OUT/junit.xml" "$@" || failed=1
power_button || failed=1
memory_return discard 90 true --set memory.policy=discard || failed=1
memory_return pull 95 "$LETHE reclaim linux-memory all" --set memory.policy=discard \
  --set balloon.free_page_reporting=false --set memory.size=1G || failed=1
memory_return auto 95 true --set memory.policy=discard --set memory.auto=true || failed=1
memory_return shared 90 true --set memory.policy=discard --set memory.backing=shared || failed=1
# In the lab's kernel, without UFFDIO_MOVE, chunks move by mremap, and stay in the pool for reuse.
memory_return pool 25 true --set memory.policy=pool || failed=1
exit $failed
