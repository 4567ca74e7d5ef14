# The Linux tier's cases, run from the repository's root (or its copy in the lab) by run-tests.
# busybox sh, since the lab has nothing else. $LETHE: the program; $OUT: the results' folder.
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

"$LETHE" check --jobs 1 --out "$OUT" --junit "$OUT/junit.xml" "$@" || failed=1
power_button || failed=1
exit $failed
