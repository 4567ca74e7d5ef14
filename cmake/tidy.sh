#!/usr/bin/env bash
# The style rules that a machine can check: file, line and function lengths, include directions,
# links between documents, format.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
status=0
complain() { printf 'tidy: %s\n' "$*" >&2; status=1; }

mapfile -t sources < <(git ls-files '*.cc' '*.h' '*.c' '*.S' dev '*.sh' 'guest-tests/lab/*' 'guest-tests/linux/*' | sort -u)
mapfile -t cpp < <(git ls-files '*.cc' '*.h')

for file in "${sources[@]}"; do
  [[ -f $file ]] || continue
  lines=$(wc -l <"$file")
  ((lines <= 500)) || complain "$file has $lines lines: 500 at most"
done
while IFS= read -r line; do complain "$line: longer than 100 columns"; done < <(
  LC_ALL=C.UTF-8 awk 'length($0) > 100 { print FILENAME ":" FNR }' "${cpp[@]}")

# base <- memory <- devices <- vmm; frontend knows base, and the GUI channel's protocol.
forbid() {  # forbid FOLDER PATTERN
  local hit
  while IFS= read -r hit; do complain "$hit: $1/ must not include that"; done < <(
    grep -rnE "^#include \"($2)" "$1" --include='*.h' --include='*.cc' || true)
}
forbid base '(memory|devices|vmm|frontend)/'
forbid memory '(devices|vmm|frontend)/'
forbid devices '(vmm|frontend)/'
forbid frontend '(memory|vmm|devices/[^g]|devices/gui/[^p]|devices/gui/p[^r])'

# A function: from a line that opens a brace at column 0 or 2 to the brace that closes it there.
while IFS= read -r line; do complain "$line"; done < <(awk '
  FNR == 1 { start = 0 }
  /^( ? ?)[A-Za-z~].*\) *(const|noexcept|override|[A-Z_]+\(.*\)| )*\{$/ { start = FNR }
  /^( ? ?)\}$/ { if (start && FNR - start > 72)
      print FILENAME ":" start ": function of " FNR - start - 1 " lines: 70 at most"; start = 0 }
  ' "${cpp[@]}")

# Links between the documents lead somewhere.
while IFS=: read -r file link; do
  link=${link#](}
  link=${link%%[#)]*}
  [[ -z $link || $link == http* || -e $(dirname "$file")/$link ]] || complain "$file links to $link"
done < <(git ls-files -z '*.md' | xargs -0 grep -oE '\]\([^)]*\)')

if ! clang-format-19 --dry-run -Werror "${cpp[@]}" 2>/tmp/lethe-format.$$; then
  grep -E 'error:' "/tmp/lethe-format.$$" | head -20 >&2
  complain "not formatted: run ./dev format"
fi
rm -f "/tmp/lethe-format.$$"
exit "$status"
