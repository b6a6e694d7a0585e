#!/usr/bin/env bash
# scripts/gpu_report.py on made-up figures. $1 is the source tree.
set -u
root=$(readlink -f "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
python=$(python3 -c 'import sys; print(sys.executable)') # the interpreter itself: a wrapper may start slowly
# shellcheck source=tests/cli/gpu_test_tools.sh
. "$root/tests/cli/gpu_test_tools.sh"

# ---- reports -------------------------------------------------------------------------------------------------------------
echo occupied >file
report=("$python" -I -S "$root/scripts/gpu_report.py") # without the machine's own site packages
mkdir -p first second
cat >first/suite.json <<'JSON'
{"suite": 1, "commit": "abc", "made": "2030-01-01T00:00:00Z", "driver": "999.1", "small": false, "emulated": false,
 "host": {"system": "Linux", "cpu": "some", "cores": 3},
 "parts": [{"part": "tests", "outcome": "FAILED", "exit": 1, "seconds": 5, "why": "1 of 2", "failed": ["one | two"]},
           {"part": "peers-compiled", "outcome": "skipped", "exit": 0, "seconds": 0, "why": "no time"}]}
JSON
cat >first/cases.json <<'JSON'
{"program": "nacre_bench", "device": "cuda", "small": false, "cases": [
 {"name": "snake/a", "bytes": 8, "flops": 9, "arithmetic": "fp32", "parameters": {"op": "snake"}},
 {"name": "snake/b", "bytes": 8, "flops": 9, "arithmetic": "fp32", "parameters": {"op": "snake"}},
 {"name": "conv1d/c", "bytes": 8, "flops": 9, "arithmetic": "bf16", "parameters": {"op": "conv1d"}},
 {"name": "conv1d/d", "bytes": 8, "flops": 9, "arithmetic": "bf16", "parameters": {"op": "conv1d"}},
 {"name": "codec/e", "bytes": 0, "flops": 9, "arithmetic": "bf16", "parameters": {"op": "codec"}}]}
JSON
cat >first/bench.json <<'JSON'
{"context": {"description": "NVIDIA H200, compute capability 9.0", "small": "false", "host_name": "somebodys",
  "copy_GB/s 1 of 8 KiB": "4300.0", "us per launch in a graph": "1.5", "cuBLAS": "13.1"},
 "benchmarks": [
 {"name": "snake/a/iterations:1/manual_time", "run_type": "iteration", "real_time": 1, "cold_us": 100, "warm_us": 80, "p10_us": 99,
  "p90_us": 103, "runs": 50, "launches": 1, "copy%": 91.4, "peak%": 12, "floor%": 91.4, "warm_floor%": 88, "peak_MiB": 34},
 {"name": "snake/b/iterations:1/manual_time", "run_type": "iteration", "cold_us": 50, "warm_us": NaN, "launches": 0},
 {"name": "conv1d/c/iterations:1/manual_time", "run_type": "iteration", "error_occurred": true, "error_message": "CUDA: broke"},
 {"name": "codec/e/iterations:1/manual_time", "run_type": "iteration", "warm_us": 2000, "x_realtime": 35.5}]}
JSON
cat >first/peers-eager.json <<'JSON'
{"context": {"torch": "2.11", "device": "NVIDIA H200", "cuda": "13.0", "cudnn": 91000}, "peers": [
 {"name": "snake/a", "peer": "eager", "cold_us": 250, "warm_us": 100},
 {"name": "snake/a", "peer": "jit", "cold_us": 120.25, "warm_us": 300, "peak_MiB": 56, "note": "scripted"},
 {"name": "snake/a", "peer": "odd", "error": "out of\nmemory"},
 {"name": "conv1d/c", "peer": "eager", "cold_us": 40},
 {"name": "codec/e", "peer": "eager", "warm_us": 5000}]}
JSON
cat >first/baselines.json <<'JSON'
{"context": {"description": "NVIDIA H200, compute capability 9.0", "small": "false", "copy_GB/s 1 of 8 KiB": "1.0"}, "benchmarks": [
 {"name": "conv1d/d/cudnn_nhwc/iterations:1/manual_time", "run_type": "iteration", "cold_us": 70, "warm_us": 65},
 {"name": "snake/a/gemm/iterations:1/manual_time", "run_type": "iteration", "cold_us": 50, "warm_us": 40},
 {"name": "conv1d/d/gemm/iterations:1/manual_time", "run_type": "iteration", "error_occurred": true, "error_message": "skipped: no cuBLAS"}]}
JSON
# This file is cut in the middle of its second result.
printf '%s' '{"context": {"torch": "2.11", "device": "NVIDIA H200"}, "peers": [
 {"name": "snake/a", "peer": "compile", "cold_us": 90, "warm_us": 60}, {"name": "snake/b", "pe' >second/peers-compiled.json
row() { # file, pattern of a row, its expected cells
  grep -qF -- "$2" "$1" || fail "$1 has no row '$2' but '$(grep -F -- "${2:0:14}" "$1" | head -n 3)'"
}

run "${report[@]}" --out results first
expect_code 0 "a report"
page=results/nvidia-h200/report.md
row $page "| snake/a | 100.0 | 80.0 | 99.0 to 103.0 | 91 | 12 | 91 | 88 | 50 | 1 | 34 | jit | 120.2 | 1.20 | eager | 100.0 | 1.25 |"
row $page "| snake/b | 50.0 | - | - | - | - | - | - | - | - | - | - | - | - | - | - | - |"
row $page "| conv1d/c | - | - | - | - | - | - | - | - | - | - | eager | 40.0 | - | - | - | - |"
row $page "| conv1d/d | - | - | - | - | - | - | - | - | - | - | cudnn_nhwc | 70.0 | - | cudnn_nhwc | 65.0 | - |"
row $page "| conv1d/d | cudnn_nhwc | 70.0 | 65.0 | - | - | - | - | without the bias |"
row $page "| conv1d/d | gemm | - | - | - | - | - | - | skipped: no cuBLAS |"
grep -q "^| conv1d/d/" $page && fail "another library's case stands among ours"
row $page "| codec/e | - | 2000 | - | - | - | - | - | - | - | - | - | - | - | eager | 5000 | 2.50 |"
row $page "| snake/a | jit | 120.2 | 300.0 | - | 1.20 | 3.75 | 56 | scripted |"
row $page "| snake/a | odd | - | - | - | - | - | - | failed: out of memory |"
row $page "- conv1d/c: FAILED CUDA: broke"
row $page "- codec/e: x_realtime 35.5"
row $page "| tests | FAILED (exit 1) | 5 | 1 of 2 |"
row $page "- tests: FAILED one | two"
row $page "| commit | abc |"
row $page "| driver | 999.1 |"
row $page "| peers' PyTorch | 2.11 |"
row $page "| copy_GB/s 1 of 8 KiB | 4300.0 |"
row $page "| us per launch in a graph | 1.5 |"
row $page "| cuBLAS | 13.1 |"
grep -rq somebodys results && fail "a result names the machine"
row $page "| snake | 2 | 2 | 91 to 91 | 1 of 1 | 1.20 | 1.20 |"
row $page "| conv1d | 2 | 0 | - | - | - | - |"

# The compiled peers come later, in their own file. Nothing else changes.
cp $page before.md
run "${report[@]}" --out results --add second
expect_code 0 --add
row $page "| snake/a | 100.0 | 80.0 | 99.0 to 103.0 | 91 | 12 | 91 | 88 | 50 | 1 | 34 | compile | 90.0 | 0.90 | compile | 60.0 | 0.75 |"
row $page "- peers-compiled.json is incomplete: 1 of its results count"
row $page "| snake | 2 | 2 | 91 to 91 | 0 of 1 | 0.90 | 0.90 |"
for line in "| commit | abc |" "| tests | FAILED (exit 1) | 5 | 1 of 2 |" "| codec/e | eager | - | 5000 | - | - | 2.50 | - |  |"; do row $page "$line"; done
run "${report[@]}" --out together first second
expect_code 0 "two folders"
cmp -s together/nvidia-h200/report.md $page || fail "two folders at once and one after the other differ: $(diff together/nvidia-h200.md $page | head -n 4)"

# Bad input is reported in one line, and the existing page stays.
spoil() { # exit code, words of the message, file, its content
  rm -rf bad
  cp -r first bad
  printf '%s' "$4" >"bad/$3"
  refused "$1" "${report[@]}" --out results bad
  expect_text "$2" "$3 of $4"
}
cp $page before.md
refused 2 "${report[@]}"
refused 2 "${report[@]}" --nonsense first
refused 4 "${report[@]}" --out results nowhere
mkdir empty
refused 3 "${report[@]}" --out results empty
refused 4 "${report[@]}" --out nothing --add second
refused 4 "${report[@]}" --out file first
spoil 3 "invalid JSON" suite.json "{"
spoil 3 "invalid JSON" bench.json "no JSON at all"
spoil 3 "expected an object" bench.json "[]"
spoil 3 "expected an object" cases.json '{"cases": 3}'
spoil 3 "other than objects" peers-eager.json '{"peers": [3]}'
spoil 3 "has no name" peers-eager.json '{"peers": [{"peer": "eager"}]}'
spoil 3 'has no "peer"' peers-eager.json '{"peers": [{"name": "snake/a"}]}'
spoil 3 "outcome other than" suite.json '{"parts": [{"part": "tests", "outcome": "fine"}]}'
spoil 3 "two devices" peers-eager.json '{"context": {"device": "NVIDIA A100"}, "peers": []}'
cp -r first other
sed -i 's/"commit": "abc"/"commit": "def"/' other/suite.json
refused 3 "${report[@]}" --out results first other
expect_text "bench results of commit def, after those of abc" "two commits"
sed 's/"small": false/"small": true/' first/suite.json >other/suite.json
refused 3 "${report[@]}" --out results --add other
cmp -s $page before.md || fail "bad input changed the result"

[ $failures = 0 ] && echo "all is well" || echo "$failures failures"
[ $failures = 0 ]
