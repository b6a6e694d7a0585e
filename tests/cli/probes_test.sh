#!/usr/bin/env bash
# nacre_probes on the emulated device, as scripts/gpu_suite.sh uses it. $1 is the program.
set -u
probes=$(readlink -f "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
fail() {
  echo "FAILED: $1"
  head -n 40 out err found.json 2>/dev/null
  exit 1
}
expect() { # code, arguments: expects this exit code and one line on stderr
  local expected=$1 code=0
  shift
  "$probes" "$@" >out 2>err || code=$?
  [ "$code" = "$expected" ] || fail "nacre_probes $*: exit code $code, expected $expected"
  [ "$(wc -l <err)" = 1 ] || fail "nacre_probes $*: more or less than one line on stderr"
}
outcome() { grep -o "^{\"probe\": \"$1\", \"outcome\": \"[a-z]*\"" found.json | grep -o '[a-z]*"$' | tr -d '"'; }

# All probes. Those that the emulator can answer pass; the others are skipped with a reason.
"$probes" --list >names || fail "--list"
[ "$(sort names | uniq -d | wc -l)" = 0 ] || fail "a name is there twice"
"$probes" --small --out found.json >out 2>err || fail "all probes"
[ ! -s err ] || fail "something on stderr"
head -n 1 found.json | grep -q '^{"device": "' || fail "the first line does not describe the device"
[ "$(wc -l <found.json)" = $(($(wc -l <names) + 1)) ] || fail "not a line each"
[ "$(wc -l <out)" = $(($(wc -l <names) + 1)) ] || fail "not a line each on stdout"
runs="mma_fragments ldmatrix_fragments tile_engines tensor_core_sums ignored_sources upload_beside_graph launch_gap copy_ceiling"
while read -r name; do
  expected=skipped
  case " $runs " in *" $name "*) expected=ok ;; esac
  [ "$(outcome "$name")" = $expected ] || fail "$name: $(outcome "$name"), expected $expected"
done <names
if command -v python3 >/dev/null; then
  python3 - <<'PYTHON' || fail "not one JSON object a line"
import json
lines = [json.loads(line) for line in open("found.json")]
assert all(isinstance(line, dict) for line in lines)
assert all(line["says"] and line["answered"] for line in lines[1:])
assert lines[0]["compute_capability"] and lines[0]["multiprocessors"] > 0
sums = next(line for line in lines if line.get("probe") == "tensor_core_sums")
assert 0 < sums["share_of_bound"] < 1
PYTHON
fi

# Some probes, written to the same file. Lines are appended, and the device is not described again.
before=$(wc -l <found.json)
"$probes" --small --out found.json --device cuda:0 launch_gap mma_fragments >out 2>err || fail "two probes"
[ "$(wc -l <found.json)" = $((before + 2)) ] || fail "two lines are not added"
tail -n 2 found.json | head -n 1 | grep -q '"launch_gap"' || fail "not in the order asked for"

# A probe without an answer, here because of its time limit, has failed. It still has its line.
rm found.json
code=0
"$probes" --small --seconds 0.000001 --out found.json mma_fragments launch_gap >out 2>err || code=$?
[ $code = 1 ] || fail "no time at all: exit code $code"
[ "$(grep -c '"outcome": "failed", "says": "no answer: .*"answered": false' found.json)" = 2 ] || fail "no answers have no lines"

expect 2 no_such_probe
expect 2 --no-such-option
expect 2 --seconds soon
expect 2 --seconds
expect 2 --device cpu
expect 2 --device cuda:x
expect 4 --small --out no/such/folder/found.json mma_fragments
expect 6 --small --device cuda:99 mma_fragments
# The device exists but does not describe itself when asked twice.
NACRE_EMULATED_DEVICE=nobody expect 1 mma_fragments
grep -q "^nacre_probes: the device did not answer: NACRE_EMULATED_DEVICE" err || fail "a device without an answer"
echo "all is well"
