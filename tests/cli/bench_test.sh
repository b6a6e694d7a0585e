#!/usr/bin/env bash
# nacre_bench is killed and started again, as scripts/gpu_suite.sh does. $1 is the program.
set -u
bench=$(readlink -f "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
fail() {
  echo "FAILED: $1"
  head -n 20 out err begun 2>/dev/null
  exit 1
}
# The name of a case is written to the file when the case begins. Cases that the file names are skipped.
echo convert/to_bf16/2x70x40 >begun
"$bench" --small --benchmark_filter='^(convert|adamw)' --progress begun >out 2>err || fail "small cases"
if ! grep -qx adamw/3001 begun || [ -n "$(sort begun | uniq -d)" ]; then fail "names that began"; fi
! grep -q "^convert/to_bf16/2x70x40" out || fail "a case that began before runs again"
cp begun before
"$bench" --small --benchmark_filter='^(convert|adamw)' --progress begun >out 2>err || fail "nothing to do"
cmp -s begun before || fail "a case runs again"
# A case past its limit ends the program. The file has the earlier results.
rm begun
"$bench" --threads 1 --seconds 20 --limit 1 --benchmark_filter='^convert/to_bf16' --progress begun --benchmark_out=found.json >out 2>err
[ $? = 124 ] || fail "no case ran past its limit"
grep -qxF "nacre_bench: $(tail -n 1 begun): ran past its limit" err || fail "the case is not named"
[ "$(grep -c '^      "run_type": "iteration"' found.json)" = $(($(wc -l <begun) - 1)) ] || fail "results are lost"
echo "all is well"
