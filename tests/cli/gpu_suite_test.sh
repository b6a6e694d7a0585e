#!/usr/bin/env bash
# scripts/gpu_suite.sh, gpu_pack.sh and gpu_report.py without a GPU: programs that only pretend, and figures made up for
# the purpose. $1 is the source tree; $2, if given, the test program, which must have the tests that the suite asks for.
set -u
root=$(readlink -f "$1")
tests_program=${2:+$(readlink -f "$2")}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0
python=$(python3 -c 'import sys; print(sys.executable)') # itself: what stands before it may take a while at every start
fail() {
  echo "FAILED: $1"
  [ -s out ] && sed 's/^/  out| /' out | tail -n 15
  [ -s err ] && sed 's/^/  err| /' err | tail -n 15
  failures=$((failures + 1))
}
run() {
  "$@" >out 2>err </dev/null
  code=$?
}
expect_code() { [ "$code" = "$1" ] || fail "$2: exit code $code, expected $1"; }
expect_text() { cat out err | grep -qF -- "$1" || fail "$2: does not say '$1'"; }
expect_line() { grep -qE -- "$2" "$1" || fail "$1 has no line like '$2'"; }
refused() { # exit code, program, options: one line, which names the program
  run "${@:2}"
  expect_code "$1" "${*:2}"
  if [ -s out ] || [ "$(wc -l <err)" != 1 ] || ! grep -q "^gpu_" err; then fail "${*:2}: not one clear line"; fi
}

# ---- a tree with programs that pretend -----------------------------------------------------------------------------------
mkdir -p tree/scripts tree/bench/peers tree/tests/golden tree/build/cuda/bench tree/build/cuda/tests
cp "$root"/scripts/gpu_*.sh "$root"/scripts/gpu_report.py tree/scripts/
cp "$root/LICENSE" tree/
echo 0123456789abcdef >tree/COMMIT
cat >tree/build/cuda/nacre <<'SH'
#!/usr/bin/env bash
verb=$1
shift
while [ $# -gt 0 ]; do
  case "$1" in
    --checkpoint_dir) run=$2 ;;
    --precision) precision=$2 ;;
    --max_steps) steps=$2 ;;
    -o) to=$2 ;;
  esac
  shift
done
case "$verb" in
  --version) printf 'nacre 0.1.0\ncommit %s\nbuilt by Pretender 1\n' "${PRETEND_COMMIT:-0123456789ab}" ;; # nacre-commit:0123456789ab
  info) [ -z "${PRETEND_NO_DEVICE:-}" ] || { echo "nacre: device cuda: no NVIDIA driver was found" >&2; exit 6; } ;;
  train)
    at=$(printf '%s/step-%08d' "$run" "$steps")
    mkdir -p "$at"
    for file in model optimizer; do echo "$precision $steps ${PRETEND_RACE:+$RANDOM$RANDOM}" >"$at/$file.safetensors"; done
    ;;
  encode) mkdir -p "$to" && echo codes >"$to/0.nacre" ;;
  decode) mkdir -p "$to" && echo speech >"$to/0.wav" ;;
esac
SH
cat >tree/build/cuda/bench/nacre_bench <<'SH'
#!/usr/bin/env bash
# nacre-commit:0123456789ab
small=false progress=/dev/null limit=99
while [ $# -gt 0 ]; do
  case "$1" in
    --small) small=true ;;
    --benchmark_out=*) out=${1#*=} ;;
    --cases) cases=$2 ;;
    --progress) progress=$2 ;;
    --limit) limit=$2 ;;
  esac
  shift
done
if [ -n "${cases:-}" ]; then
  printf '{"program":"nacre_bench","device":"cuda","small":%s,"cases":[{"name":"snake_forward/bf16/2x3x4","bytes":96,"flops":240,"arithmetic":"bf16","parameters":{"op":"snake"}}]}' $small >"$cases"
  exit
fi
[ -n "${out:-}" ] || exit 0
echo measured >>"$PRETEND_COUNT"
{
  printf '{\n  "context": {\n    "host_name": "somebodys",\n    "description": "NVIDIA Pretender 1, compute capability 9.0",\n'
  printf '    "copy_GB/s 1": "4300",\n    "small": "%s"\n  },\n  "benchmarks": [\n' $small
} >"$out"
comma=''
begin() { # name: begins it, unless it was begun before
  ! grep -qxF "$1" "$progress" || return 1
  echo "$1" >>"$progress"
  [ -z "$comma" ] || printf ',\n' >>"$out"
  comma=,
}
result() { # name, more
  printf '    {\n      "name": "%s/iterations:1/manual_time",\n      "run_name": "%s",\n      "run_type": "iteration",\n%s      "launches": 2\n    }' "$1" "$1" "$2" >>"$out"
}
times='      "real_time": 7.5,
      "cold_us": 12.5,
      "warm_us": 7.5,
'
begin snake_forward/bf16/2x3x4 && result snake_forward/bf16/2x3x4 "$times"
[ -z "${PRETEND_SLOW:-}" ] || { begin slow && sleep 30; }
if [ -n "${PRETEND_BREAK:-}" ]; then
  begin broken/1 && { result broken/1 '      "error_occurred": true,
      "error_message": "CUDA: an illegal memory access",
'; echo "nacre_bench: the device is lost" >&2; exit 6; }
  begin broken/2 && kill -SEGV $$
  [ "$PRETEND_BREAK" != hang ] || ! begin hung || { sleep "$limit"; exit 124; }
  begin last && result last "$times"
fi
printf '\n  ]\n}\n' >>"$out"
SH
cat >tree/build/cuda/tests/nacre_tests <<'SH'
#!/usr/bin/env bash
# nacre-commit:0123456789ab
names=("convert" "adamw" "names, [odd] ones \\ too" "a graph holds what a stream can do, and nothing else" "what is captured" ${PRETEND_FAULT:+"a fault"} ${PRETEND_STUCK:+"a stuck one"})
if [ "$1" = --list-test-names-only ]; then
  printf '%s\n' "${names[@]}"
  exit ${#names[@]}
fi
[ "$NACRE_TEST_DEVICES" = cuda ] || exit 3
[ -z "${PRETEND_RAN:-}" ] || echo "$1" >>"$PRETEND_RAN"
wanted=$(sed 's/\\\(.\)/\1/g' <<<"$1")
[ "$wanted" != "a fault" ] || { echo "a fault was found"; exit 1; }
# With a child, as compute-sanitizer has one, and a name by which it can be found.
[ "$wanted" != "a stuck one" ] || { "$PRETEND_STUCK" & wait; }
for name in "${names[@]}"; do [ "$name" != "$wanted" ] || exit 0; done
echo "no such test: $wanted"
exit 2
SH
mkdir tools
printf '#!/usr/bin/env bash\ntrap "" TERM\nfor ((i = 0; i < 60; ++i)); do sleep 0.5; done\n' >tools/stuck
cat >tools/compute-sanitizer <<'SH'
#!/usr/bin/env bash
[ "$1" = --tool ] || exit 1
tool=$2
while [[ $1 == --* ]]; do shift 2; done
[ "$tool" != "${PRETEND_ERROR:-}" ] || { echo "========= ERROR SUMMARY: 1 error"; exit 99; }
exec "$@"
SH
# PyTorch, pretended: a python that has it, and a program that measures one case more at every call.
cat >tools/pretended-python <<'SH'
#!/usr/bin/env bash
case "$1" in -c) exit 0 ;; */op_peers.py) shift ;; *) exec "$REAL_PYTHON" -I -S "$@" ;; esac
set_=eager resume=0 budget=0
while [ $# -gt 0 ]; do
  case "$1" in
    --cases) [ -s "$2" ] || exit 8 ;;
    --out) out=$2 ;;
    --set) set_=$2 ;;
    --resume) resume=1 ;;
    --budget) budget=$2 ;;
  esac
  shift
done
[ "$budget" -gt 0 ] || exit 7
more=
[ $resume = 0 ] || [ ! -f "$out" ] || more=', {"name": "snake_forward/bf16/2x3x4", "peer": "more", "cold_us": 5, "warm_us": 4}'
printf '{"context": {"torch": "0", "device": "NVIDIA Pretender 1"}, "peers": [{"name": "snake_forward/bf16/2x3x4", "peer": "%s", "cold_us": 25, "warm_us": 30}%s]}' \
  "$set_" "$more" >"$out"
exit "${PRETEND_PEERS:-0}"
SH
printf '#!/usr/bin/env bash\n[ "$1" != -c ] || exit 1\nexec "$REAL_PYTHON" -I -S "$@"\n' >tools/plain-python # without PyTorch
touch tree/bench/peers/op_peers.py
chmod +x tools/stuck tools/plain-python tools/pretended-python tree/build/cuda/nacre tree/build/cuda/*/nacre_* tools/compute-sanitizer
export REAL_PYTHON=$python PRETEND_COUNT=$work/count PYTHON=plain-python
export PATH=$work/tools:$PATH
unset OUT
: >count
suite=tree/scripts/gpu_suite.sh

# ---- the suite's options -------------------------------------------------------------------------------------------------
refused 2 $suite --part nonsense
expect_text "expected one of tests sanitizer capture reruns bench baselines peers peers-all peers-compiled" "--part nonsense"
for bad in --part --frobnicate extra "--device cpu" "--device cuda:" "--device cuda:x" "--jobs 0" "--jobs two" "--budget -1" \
  "--limit 1.5" "--budget some" "--require nonsense" "--part tests --require bench" "--seconds 0" "--seconds ." "--seconds x" "--build nowhere" "--build tools"; do
  # shellcheck disable=SC2086
  refused 2 $suite $bad
done
PRETEND_NO_DEVICE=1 refused 6 $suite --part bench --out none
expect_text "no NVIDIA driver was found" "no device"
[ ! -e none ] || fail "no device, and yet a folder"
echo occupied >file
refused 4 $suite --out file/below
run $suite --help
expect_code 0 --help
for word in --part --build --out --device --resume --small --jobs --limit --budget --require "Exit codes"; do expect_text "$word" --help; done

# ---- a run of everything -------------------------------------------------------------------------------------------------
run $suite --out whole --small --jobs 4
expect_code 0 "a whole run"
for part in tests sanitizer capture reruns bench; do expect_line out "^$part +ok +[0-9]+ s "; done
expect_line out "^baselines +not run .*neither cuDNN nor cuBLAS"
expect_line out "^peers +not run .*plain-python has no PyTorch"
expect_line out "^not run: baselines peers "
grep -q "^peers-compiled" out && fail "peers-compiled is among the parts of a plain call"
expect_text "5 of 5 tests passed" "a whole run"
expect_text "12 of 12 runs under memcheck, racecheck, initcheck and synccheck are clean" "a whole run"
expect_text "4 of 4 comparisons" "a whole run"
expect_text "14 runs in 7 groups" "a whole run"
expect_line whole/nvidia-pretender-1.md "^No times: shapes were shrunk by --small"
expect_line whole/nvidia-pretender-1.md '^\| snake_forward/bf16/2x3x4 \| - \| - \| - \| - \| - \| - \| - \| - \| 2 \| - '
grep -q "12\.5\|7\.5" whole/nvidia-pretender-1.* && fail "a small run's report has times"
[ "$(wc -l <count)" = 1 ] || fail "the bench was not run once"

# Another call goes on; without --resume it measures again; another device size begins anew.
run $suite --out whole --small --resume --part tests --part bench
expect_code 0 --resume
[ "$(wc -l <count)" = 1 ] || fail "--resume measures what was ok"
run $suite --out whole --part bench
expect_code 0 "--part bench"
[ "$(wc -l <count)" = 2 ] || fail "without --resume nothing is measured"
expect_line whole/nvidia-pretender-1.md '^\| snake_forward/bf16/2x3x4 \| 12\.5 \| 7\.50 \|'
grep -q '"small": true' whole/earlier/suite.json || fail "the results of --small are lost"
grep -q "^| tests |" whole/nvidia-pretender-1.md && fail "results of --small and of a real run are mixed"

# Peers: those of a plain call, and the compiled ones, which go on in another call.
export PYTHON=pretended-python
run $suite --out peers --part bench --part peers
expect_code 0 "peers"
expect_line out "^peers +ok +[0-9]+ s  1 results"
expect_line peers/nvidia-pretender-1.md '\| eager \| 25\.0 \| 2\.00 \| eager \| 30\.0 \| 4\.00 \|$'
run $suite --out peers --part peers-compiled
expect_line out "^peers-compiled +ok +[0-9]+ s  1 results"
run $suite --out peers --part peers-compiled --resume
expect_line out "^peers-compiled +ok +[0-9]+ s  2 results"
expect_line peers/nvidia-pretender-1.md '\| more \| 5\.00 \| 0\.40 \| more \| 4\.00 \| 0\.53 \|$'
expect_line peers/nvidia-pretender-1.md '^\| peers \| ok \|'
PRETEND_PEERS=3 run $suite --out peers --part peers-all --part peers
expect_code 3 "a budget that was spent"
expect_line out "^peers-all +incomplete +[0-9]+ s  2 results"
expect_line out "^incomplete: peers peers-all; to go on: .*gpu_suite.sh --out peers --part peers-all --part peers --resume"
export PYTHON=plain-python

# ---- parts that fail -----------------------------------------------------------------------------------------------------
PRETEND_FAULT=1 PRETEND_ERROR=racecheck PRETEND_RACE=1 run $suite --out faulty --small --jobs 4 --part bench --part reruns --part sanitizer --part tests
expect_code 1 "faults"
[ "$(grep -cE '^(tests|sanitizer|reruns|bench) ' out)" = 4 ] || fail "a part that failed stopped others"
expect_line out "^tests +FAILED \(exit 1\) +[0-9]+ s  5 of 6 tests passed"
expect_line out "^sanitizer +FAILED \(exit 1\) +[0-9]+ s  9 of 12 runs"
expect_line out "^reruns +FAILED \(exit 1\) .*not 2 equal runs of: train fp32"
expect_line out "^bench +ok "
expect_line faulty/tests.log "^a fault was found"
expect_line faulty/nvidia-pretender-1.md "^\| tests \| FAILED \(exit 1\) \|"
expect_line faulty/nvidia-pretender-1.md "^- tests: FAILED a fault$"
expect_line faulty/nvidia-pretender-1.md "^- sanitizer: FAILED racecheck adamw$"

# A job past its limit ends with all that it began; so does a part at its limit, and the suite when it is told to.
gone() { # what
  local i
  for ((i = 0; i < 20; ++i)); do
    pgrep -f "^bash $work/tools/stuck" >pids || pgrep -f "$work/tools/stuck" >pids || return 0
    sleep 0.1
  done
  fail "$1: a process of a test is left"
}
export PRETEND_STUCK=$work/tools/stuck
run $suite --out stuck --small --jobs 4 --part tests --limit 2
expect_code 3 "a test that is stuck, in a hurry"
expect_line out "^tests +incomplete +[0-9]+ s  5 of 6 tests passed; 1 stopped or not begun"
S_PATIENCE=1 run $suite --out stuck --small --jobs 4 --part tests --limit 4
expect_code 1 "a test that is stuck"
expect_line out "^tests +FAILED \(exit 1\) +[0-9]+ s  5 of 6 tests passed$"
expect_line stuck/tests.log "^exit 124 .* a stuck one$"
expect_line stuck/unknown-gpu.md "^- tests: FAILED a stuck one$"
gone "a job's limit"
$suite --out ended --small --jobs 4 --part tests >out 2>err </dev/null &
for ((i = 0; i < 50; ++i)); do ! grep -q . ended/tests.log 2>/dev/null || break; sleep 0.1; done
expect_line ended/tests.log "^ok " # told when it ends, not at the end of all
kill -TERM $!
wait $!
code=$?
expect_code 143 "a suite that is ended"
gone "a suite that is ended"
unset PRETEND_STUCK

# What a part has done when its time is over stays, and --resume goes on there.
PRETEND_SLOW=1 run $suite --out slow --part bench --limit 2
expect_code 3 "a part at its limit"
expect_line out "^bench +incomplete +[0-9]+ s  1 cases measured, 0 failed, 0 not begun"
expect_line out "^incomplete: bench; to go on: .* --out slow --part bench --limit 2 --resume"
expect_line slow/nvidia-pretender-1.md '^\| snake_forward/bf16/2x3x4 \| 12\.5 \| 7\.50 \|'
expect_line slow/nvidia-pretender-1.md '^\| bench \| incomplete \|'
grep -qx slow slow/state/bench-pieces/begun && fail "a case that was stopped counts as done"
run $suite --out slow --part bench --resume
expect_code 0 "a part that goes on"
expect_line out "^bench +ok +[0-9]+ s  1 cases measured, 0 failed"
: >ran
PRETEND_RAN=$work/ran run $suite --out stuck --small --part tests --resume
expect_code 0 "tests that go on"
expect_line out "^tests +ok +[0-9]+ s  5 of 5 tests passed"
[ ! -s ran ] || fail "--resume runs tests that passed: $(head -n 2 ran)"
run $suite --out hurried --part bench --budget 5
expect_code 3 "a small budget"
expect_line out "^bench +incomplete +0 s  not begun: nothing of the budget of 5 s is left"

# A kernel that takes the device with it, a crash, a hang: each costs its own case.
PRETEND_BREAK=hang run $suite --out broken --part bench --limit 5
expect_code 1 "cases that break the bench"
expect_line out "^bench +FAILED \(exit 1\) +[0-9]+ s  2 cases measured, 3 failed"
python3 -c 'import json; json.load(open("broken/bench.json")); json.load(open("broken/suite.json"))' 2>err || fail "bench.json is broken"
expect_line broken/nvidia-pretender-1.md '^\| last \| 12\.5 \| 7\.50 \|'
expect_line broken/nvidia-pretender-1.md '^- broken/1: FAILED CUDA: an illegal memory access$'
expect_line broken/nvidia-pretender-1.md '^- broken/2: FAILED nacre_bench ended by signal SEGV$'
expect_line broken/nvidia-pretender-1.md '^- hung: FAILED ran past 2 s$'
expect_line broken/nvidia-pretender-1.md '^- bench: FAILED broken/2$'

# Without Python; with programs of another commit; with a part that must run and cannot.
PYTHON=no-such-python PRETEND_COMMIT=ba9876543210 PRETEND_BREAK=1 run $suite --out plain --part bench --part peers --limit 4
expect_code 1 "without Python"
expect_line out "^WARNING: the programs were built from ba9876543210, this is 0123456789abcdef$"
expect_line plain/nvidia-pretender-1.md '^\| snake_forward/bf16/2x3x4 \| 12\.5 \| 7\.5 \| - \| - \| - \| - \| - \| 2 \|  \|$'
expect_line plain/nvidia-pretender-1.md '^\| broken/1 \| - .*\| FAILED CUDA: an illegal memory access \|$'
expect_line plain/nvidia-pretender-1.md '^\| bench \| FAILED \(exit 1\) \| [0-9]+ \| 2 cases measured, 2 failed \|$'
expect_line plain/nvidia-pretender-1.md '^\| built from \| ba9876543210 \|$'
python3 -c 'import json; r = json.load(open("plain/nvidia-pretender-1.json")); assert len(r["bench"]["benchmarks"]) == 4 and r["suite"]["parts"]' 2>err ||
  fail "the plain report is no JSON"
grep -q somebodys plain/nvidia-pretender-1.* && fail "a plain result names the machine"
PYTHON=no-such-python run $suite --out required --part peers --require peers
expect_code 1 "--require"
expect_line out "^peers +FAILED \(exit 77\) .*required, and not run: no-such-python is not here"

# ---- packing -------------------------------------------------------------------------------------------------------------
refused 2 tree/scripts/gpu_pack.sh --out some.zip
refused 2 tree/scripts/gpu_pack.sh --limit many
refused 2 tree/scripts/gpu_pack.sh --nonsense
refused 4 tree/scripts/gpu_pack.sh --build nowhere
refused 3 tree/scripts/gpu_pack.sh --out packed.tar.xz --limit 1000
expect_text "at most 1000 are allowed" "--limit 1000"
[ ! -e packed.tar.xz ] || fail "a file that is too large was written"
sed -i s/nacre-commit:0/nacre-commit:f/ tree/build/cuda/tests/nacre_tests
refused 5 tree/scripts/gpu_pack.sh --out packed.tar.xz
expect_text "nacre_tests was built from f123456789ab, this is 0123456789abcdef" "a program of another commit"
cp "$(type -P true)" elf && cp tree/build/cuda/nacre script && mv elf tree/build/cuda/nacre
run tree/scripts/gpu_pack.sh --out packed.tar.xz --stale # with one program that has libraries
expect_code 0 "packing"
sed -i s/nacre-commit:f/nacre-commit:0/ tree/build/cuda/tests/nacre_tests
mv script tree/build/cuda/nacre
run tree/scripts/gpu_pack.sh --out packed.tar.xz
expect_code 0 "packing"
mkdir unpacked
tar -C unpacked -xf packed.tar.xz || fail "what was packed cannot be unpacked"
run unpacked/nacre-gpu/scripts/gpu_suite.sh --small --part bench
expect_code 0 "a packed suite"
[ -f unpacked/nacre-gpu/bench/results/work/bench.json ] || fail "a packed suite leaves no bench.json"
[ ! -e unpacked/nacre-gpu/bench/results/nvidia-pretender-1.md ] || fail "a small run made the result that is kept"
expect_line unpacked/nacre-gpu/bench/results/work/nvidia-pretender-1.md "^\| commit \| 0123456789abcdef \|"

run unpacked/nacre-gpu/scripts/gpu_suite.sh --part bench
expect_code 0 "a packed suite"
expect_line unpacked/nacre-gpu/bench/results/nvidia-pretender-1.md '^\| snake_forward/bf16/2x3x4 \| 12\.5 \| 7\.50 \|'

# ---- reports -------------------------------------------------------------------------------------------------------------
report=("$python" -I -S "$root/scripts/gpu_report.py") # without whatever a machine adds to every start
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
# Killed in the middle of its second result.
printf '%s' '{"context": {"torch": "2.11", "device": "NVIDIA H200"}, "peers": [
 {"name": "snake/a", "peer": "compile", "cold_us": 90, "warm_us": 60}, {"name": "snake/b", "pe' >second/peers-compiled.json
row() { # file, pattern of a row: its cells must be these
  grep -qF -- "$2" "$1" || fail "$1 has no row '$2' but '$(grep -F -- "${2:0:14}" "$1" | head -n 3)'"
}

run "${report[@]}" --out results first
expect_code 0 "a report"
page=results/nvidia-h200.md
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
grep -q somebodys results/* && fail "a result names the machine"
row $page "| snake | 2 | 2 | 91 to 91 | 1 of 1 | 1.20 | 1.20 |"
row $page "| conv1d | 2 | 0 | - | - | - | - |"

# The compiled peers come later, by themselves; nothing else changes.
cp $page before.md
run "${report[@]}" --out results --add second
expect_code 0 --add
row $page "| snake/a | 100.0 | 80.0 | 99.0 to 103.0 | 91 | 12 | 91 | 88 | 50 | 1 | 34 | compile | 90.0 | 0.90 | compile | 60.0 | 0.75 |"
row $page "- peers-compiled.json ends in the middle: 1 results of it count"
row $page "| snake | 2 | 2 | 91 to 91 | 0 of 1 | 0.90 | 0.90 |"
for line in "| commit | abc |" "| tests | FAILED (exit 1) | 5 | 1 of 2 |" "| codec/e | eager | - | 5000 | - | - | 2.50 | - |  |"; do row $page "$line"; done
run "${report[@]}" --out together first second
expect_code 0 "two folders"
cmp -s together/nvidia-h200.md $page || fail "two folders at once and one after the other differ: $(diff together/nvidia-h200.md $page | head -n 4)"

# Bad input: one line, and what was there stays.
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
spoil 3 "not JSON" suite.json "{"
spoil 3 "not JSON" bench.json "no JSON at all"
spoil 3 "expected an object" bench.json "[]"
spoil 3 "expected an object" cases.json '{"cases": 3}'
spoil 3 "other than objects" peers-eager.json '{"peers": [3]}'
spoil 3 "has no name" peers-eager.json '{"peers": [{"peer": "eager"}]}'
spoil 3 "names no peer" peers-eager.json '{"peers": [{"name": "snake/a"}]}'
spoil 3 "outcome other than" suite.json '{"parts": [{"part": "tests", "outcome": "fine"}]}'
spoil 3 "two devices" peers-eager.json '{"context": {"device": "NVIDIA A100"}, "peers": []}'
cp -r first other
sed -i 's/"commit": "abc"/"commit": "def"/' other/suite.json
refused 3 "${report[@]}" --out results first other
expect_text "bench results of commit def, after those of abc" "two commits"
sed 's/"small": false/"small": true/' first/suite.json >other/suite.json
refused 3 "${report[@]}" --out results --add other
cmp -s $page before.md || fail "bad input changed the result"

# ---- names that the suite relies on --------------------------------------------------------------------------------------
if [ -n "$tests_program" ]; then
  "$tests_program" --list-test-names-only >names
  bash "$root/scripts/gpu_suite.sh" __sanitized_tests >asked
  [ -s asked ] || fail "the suite asks for no tests"
  echo "a graph holds what a stream can do, and nothing else" >>asked
  while read -r name; do
    grep -qxF -- "$name" names || fail "the suite asks for '$name', which nacre_tests does not have"
  done <asked
  grep -q captured names || fail "nacre_tests has no test of captures"
fi

[ $failures = 0 ] && echo "all is well" || echo "$failures failures"
[ $failures = 0 ]
