# The cases of init-test that need a screen; it sources this. busybox sh, not bash.
# shellcheck shell=sh

# Waits until a command succeeds, 100 ms at a time.
wait_until() { # wait_until SECONDS COMMAND...
  left=$(($1 * 10))
  shift
  until "$@"; do
    left=$((left - 1))
    [ $left -gt 0 ] || return 1
    sleep 0.1
  done
}

# A picture on the text console that depends on nothing but its size, 80x30 (640x480 pixels).
draw_picture() { # draw_picture TITLE
  {
    printf '\033[0m\033[2J\033[H\033[?25l%s\n\n' "$1"
    for row in 1 2 3; do
      for colour in 0 1 2 3 4 5 6 7; do printf '\033[4%sm  %s%s  ' $colour $row $colour; done
      printf '\033[0m\n'
    done
    printf '\n\033[7mreverse\033[0m \033[1;33mbright\033[0m plain\n\n'
  } >/dev/tty1
}

# The line that the host's user types at the console, which echoes it. Descriptor 3 is the console:
# what is typed while nobody has it open is dropped.
read_typed() {
  printf 'type: ' >/dev/tty1
  read -r typed <&3
  echo "lethe-test: screen: typed $typed"
  printf 'got: %s\n' "$typed" >/dev/tty1
}

# The driver lets go of the device, with the frontend's maps and the console's buffer in use, and
# takes it again.
rebind_gpu() {
  for console in /sys/class/vtconsole/vtcon*; do
    grep -q "frame buffer" "$console/name" && echo 0 >"$console/bind"
  done
  rmmod virtio_gpu || fail "virtio_gpu stays"
  [ -e /dev/dri/card0 ] && fail "the screen is there without its driver"
  insmod /lib/modules/virtio_gpu.ko || fail "virtio_gpu does not load again"
  wait_until 10 [ -e /dev/dri/card0 ] || fail "the screen is not back"
}

# The kernel's own lines are on the screen, too (console=tty0), until dmesg -n 1.
test_screen() {
  exec 3</dev/tty1
  wait_until 10 [ -e /dev/dri/card0 ] || fail "no screen"
  echo "lethe-test: screen: up"
  sleep 2 # for who reads the kernel's lines
  dmesg -n 1
  draw_picture "lethe screen test"
  read_typed
  rebind_gpu
  draw_picture "lethe screen again"
  read_typed
  sleep 2 # for who waits for the answer
  check_kernel_log
}

# X programs, each in its window.
windows_up() {
  export DISPLAY=:0 LC_ALL=C XLOCALEDIR=/usr/share/X11/locale
  Xvfb :0 -screen 0 1024x768x24 -noreset -nolisten tcp -fp built-ins >/tmp/xvfb.log 2>&1 &
  xserver=$!
  # All deadlines are long: in the lab, on a busy host, X needs minutes.
  wait_until 200 [ -e /tmp/.X11-unix/X0 ] || fail "X does not start: $(cat /tmp/xvfb.log)"
  # xterm asks for keys a little after it is there.
  xterm -title terminal -geometry 40x10+10+10 -e sh -c \
    'sleep 2; echo "type:"; read -r line; echo "$line" >/tmp/typed; exec sleep 1000' 2>/tmp/xterm.log &
  xterm=$!
  xclock -title clock -norender -geometry 120x120+300+10 2>/tmp/xclock.log &
  xclock=$!
}

agent_up() {
  lethe-agent --display :0 --verbose >/tmp/agent.log 2>&1 &
  agent=$!
}

agent_runs() { kill -0 $agent 2>/dev/null; }
xterm_ended() { ! kill -0 $xterm 2>/dev/null; }
xclock_ended() { ! kill -0 $xclock 2>/dev/null; }

# The host types a line at the terminal and closes the clock (steps/windows.json); then the agent
# dies, and another one shows what is left.
test_windows() {
  wait_until 10 [ -e /dev/dri/renderD128 ] || fail "no render node"
  agent_up
  windows_up
  wait_until 300 [ -s /tmp/typed ] || {
    fail "nothing was typed"
    kill "$xserver" # the agent says what it has shown
    sleep 2
    tail /tmp/*.log
    ps
    return
  }
  echo "lethe-test: windows: typed $(cat /tmp/typed)"
  wait_until 60 xclock_ended || fail "the clock was not closed"
  agent_runs || fail "the agent ended: $(cat /tmp/agent.log)"
  kill -KILL $agent
  echo "lethe-test: windows: agent killed"
  sleep 5 # the host looks at what became of its buffers
  agent_up
  wait_until 120 xterm_ended || fail "the terminal was not closed"
  kill "$xserver"
  wait_until 20 grep -q frames /tmp/agent.log
  agent_runs || fail "the second agent ended with X: $(cat /tmp/agent.log)"
  # The X server drew into the host's memory itself.
  grep -q ' [1-9][0-9]* frames, [1-9][0-9]* of them drawn by the X server' /tmp/agent.log ||
    fail "the agent copies: $(cat /tmp/agent.log)"
  check_kernel_log
  [ $failed = 0 ] || cat /tmp/*.log
}
