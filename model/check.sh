#!/usr/bin/env bash
# Check model/lualock.pml with Spin: as it is, and then without each of its guards.
#
# Print the number of states of each run. Fail if the model does not hold, or if it holds without a
# guard. A run may take at most 4 GB.
set -euo pipefail

model=$(cd "$(dirname "$0")" && pwd)/lualock.pml
for tool in spin gcc; do
  if ! command -v "$tool" >/dev/null; then
    echo "could not check the model: $tool is missing. Install it: apt-get install $tool" >&2
    exit 2
  fi
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# explore safety|cycles -Doption ...: write the whole report to $work/report.
explore() {
  local kind=$1 flags=(-O1 -DSAFETY) search=()
  shift
  if [ "$kind" = cycles ]; then
    flags=(-O1 -DNP) search=(-l)
  fi
  spin -a "$@" "$model" >/dev/null
  gcc -w -DNOFAIR -DCOLLAPSE -DMEMLIM=4000 "${flags[@]}" -o pan pan.c
  ./pan -m100000 -w24 "${search[@]}" >report 2>&1
  states=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' report)
  seconds=$(sed -n 's/.*elapsed time \([0-9.]*\) .*/\1/p' report)
}

failed=0

holds() {
  local what=$1
  shift
  explore "$@"
  if grep -q 'errors: 0' report && ! grep -q 'not completed\|max search depth' report; then
    printf 'holds      %-58s %10d states %6.1f s\n' "$what" "$states" "$seconds"
  else
    printf 'VIOLATED   %s\n' "$what"
    cat report
    failed=1
  fi
}

missed() { # the removed guard, the property that must fail, the text of its assertion, ...
  local what=$1 property=$2 text=$3
  shift 3
  explore safety -DCALLERS=2 "$@"
  if grep 'assertion violated' report | grep -qF "$text"; then
    printf 'found (%s)  %-58s %10d states %6.1f s\n' "$property" "$what" "$states" "$seconds"
  else
    printf 'NOT FOUND  %s: (%s) must fail, and holds\n' "$what" "$property"
    cat report
    failed=1
  fi
}

holds 'two callers: a lost reply, one killed, both give up' safety -DCALLERS=2
holds 'the same with short times; cycles' cycles -DCALLERS=2 -DSHORT
holds 'the same with short times and two lost replies' safety -DCALLERS=2 -DLOST=2 -DSHORT
holds 'three callers, short times; cycles' cycles -DLOST=0 -DKILLED=0 -DGIVE_UP=0 -DSHORT
holds 'three callers, short times: one killed' safety -DLOST=0 -DKILLED=1 -DGIVE_UP=0 -DSHORT
holds 'three callers, short times: one gives up' safety -DLOST=0 -DKILLED=0 -DGIVE_UP=1 -DSHORT

missed 'acquire and wait without their deadline' 3 abandoning -DNO_DEADLINE
missed 'no second abandon when a lost request is late' 3 abandoning -DNO_LATER
missed 'a resource that does not compare fences' 2 'lease>=greatest' -DNO_FENCE
missed 'a fence that is not raised above the last one' 2 'f>last' -DNO_RAISE
missed 'release without an owner check' 1 'left>=callers' -DNO_OWNER
missed 'a lease that is counted from its reply' 1 'left>=callers' -DNO_BEFORE
missed 'waiters that rely on messages' 4 'callers[c].gone' -DNO_CHECK

exit $failed
