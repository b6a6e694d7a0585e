#!/usr/bin/env bash
# scripts/gpu_suite.sh and gpu_pack.sh without a GPU, with stub programs. $1 is the source tree. $2, if given, is the
# test program, which must have the tests that the suite runs.
set -u
root=$(readlink -f "$1")
tests_program=${2:+$(readlink -f "$2")}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
python=$(python3 -c 'import sys; print(sys.executable)') # the interpreter itself: a wrapper may start slowly
# shellcheck source=tests/cli/gpu_test_tools.sh
. "$root/tests/cli/gpu_test_tools.sh"

# ---- a tree of stub programs
# ------------------------------------------------------------------------------------------------
mkdir -p tree/scripts tree/bench/peers tree/tests/golden tree/build/cuda/bench tree/build/cuda/tests
cp -r "$root"/scripts/gpu_*.sh "$root"/scripts/gpu_report.py "$root"/scripts/gpu tree/scripts/
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
    --experiment_name) name=$2 ;;
    -o) to=$2 ;;
  esac
  shift
done
case "$verb" in
  --version) printf 'nacre 0.1.0\ncommit %s\nbuilt by Pretender 1\n' "${PRETEND_COMMIT:-0123456789ab}" ;; # nacre-commit:0123456789ab
  info)
    [ -z "${PRETEND_MUTE:-}" ] || exec sleep 30
    [ -z "${PRETEND_NO_DEVICE:-}" ] || { echo "nacre: device cuda: no NVIDIA driver was found" >&2; exit 6; }
    ;;
  train)
    [ -z "${PRETEND_DIVERGE:-}" ] || { echo "nacre: training diverged" >&2; exit 7; }
    # Told once to stop it takes a while; told twice it leaves at once, as nacre does.
    told=0
    [ -z "${PRETEND_LONG:-}" ] || trap 'told=$((told + 1)); [ $told = 1 ] || { echo "told twice"; exit 143; }' TERM
    run+=${name:+/$name} steps=${steps:-4}
    at=$(printf '%s/step-%08d' "$run" "$steps")
    mkdir -p "$at"
    for file in model optimizer; do echo "$precision $steps ${PRETEND_RACE:+$RANDOM$RANDOM}" >"$at/$file.safetensors"; done
    printf '{"step":0,"epoch":0,"valid/loss":3,"valid/snr":9,"valid/output_std":0.2}\n' >"$run/log.jsonl" # before training
    printf '{"step":1,"train/loss":3}\n{"step":2,"epoch":1,"valid/loss":2.5,"valid/snr":1.5,"valid/output_std":0.1}\n' >>"$run/log.jsonl"
    snr=3.25
    [ "$precision" != fp32 ] || snr=${PRETEND_FP32:-3.25}
    printf '{"step":4,"epoch":2,"valid/loss":2,"valid/snr":%s,"valid/output_std":0.125,"valid/input_std":0.13}\n' "$snr" >>"$run/log.jsonl"
    [ -n "${PRETEND_LONG:-}" ] || { echo "done: $steps steps; saved step-00000004" && exit; }
    [ "$PRETEND_LONG" = 1 ] || exec "$PRETEND_LONG"
    for ((i = 0; i < 300 && told == 0; ++i)); do sleep 0.1; done
    for ((i = 0; i < 5; ++i)); do sleep 0.1; done
    echo "stopped at step 4; saved step-00000004"
    ;;
  export) head -c "${PRETEND_MODEL:-1000}" /dev/zero >"$to" ;;
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
[ -z "${PRETEND_SLOW:-}" ] || { begin slow && sleep 300; }
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
cat >tree/build/cuda/bench/nacre_probes <<'SH'
#!/usr/bin/env bash
[ "${PRETEND_PROBE:-}" != mute ] || [ "$1" = --list ] || exit 1
names=(copies ${PRETEND_PROBE:+breaks} ${PRETEND_SKIP:+absent contrary} last)
wanted=()
while [ $# -gt 0 ]; do
  case "$1" in
    --list) printf '%s\n' "${names[@]}"; exit ;;
    --out) out=$2 && shift ;;
    --seconds) shift ;;
    --small) ;;
    *) wanted+=("$1") ;;
  esac
  shift
done
echo '{"device": "NVIDIA Pretender 1", "multiprocessors": 3}' >>"$out"
for name in "${wanted[@]:-${names[@]}}"; do
  case "$name" in
    breaks)
      printf '{"probe": "bre' >>"$out"
      [ "$PRETEND_PROBE" != hang ] || exec "$PRETEND_STUCK"
      kill -SEGV $$
      ;;
    last) # nothing of a probe that was ended goes on beside it
      what=ok
      [ -z "${PRETEND_STUCK:-}" ] || ! pgrep -f "$PRETEND_STUCK" >/dev/null || what=failed
      echo "{\"probe\": \"last\", \"outcome\": \"$what\", \"says\": \"so\"}" >>"$out"
      ;;
    absent) echo '{"probe": "absent", "outcome": "skipped", "says": "no such instruction here"}' >>"$out" ;;
    contrary) echo '{"probe": "contrary", "outcome": "failed", "says": "it is otherwise", "answered": true}' >>"$out" ;;
    *) echo "{\"probe\": \"$name\", \"outcome\": \"ok\", \"asks\": \"so it is\", \"says\": \"as \\\"assumed\\\" | so\", \"GB/s\": 4300}" >>"$out" ;;
  esac
done
SH
mkdir tools hanging
printf '#!/usr/bin/env bash\necho asked >>"$PRETEND_COUNT.smi"\nexec sleep 60\n' >hanging/nvidia-smi
printf '#!/usr/bin/env bash\ntrap "" TERM\nfor ((i = 0; i < 600; ++i)); do sleep 0.5; done\n' >tools/stuck
cat >tools/compute-sanitizer <<'SH'
#!/usr/bin/env bash
[ "$1" = --tool ] || exit 1
tool=$2
while [[ $1 == --* ]]; do shift 2; done
[ "$tool" != "${PRETEND_ERROR:-}" ] || { echo "========= ERROR SUMMARY: 1 error"; exit 99; }
exec "$@"
SH
# A stub for PyTorch: a python that has it, and a program that measures one more case at every call.
cat >tools/pretended-python <<'SH'
#!/usr/bin/env bash
case "$1" in -c) exit "${PRETEND_TORCH:-0}" ;; */op_peers.py | */jax_peers.py) shift ;; *) exec "$REAL_PYTHON" -I -S "$@" ;; esac
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
printf '#!/usr/bin/env bash\n[ "$1" != -c ] || exit 78\nexec "$REAL_PYTHON" -I -S "$@"\n' >tools/plain-python # without PyTorch
touch tree/bench/peers/op_peers.py tree/bench/peers/jax_peers.py
chmod +x hanging/nvidia-smi tools/stuck tools/plain-python tools/pretended-python tree/build/cuda/nacre tree/build/cuda/*/nacre_* tools/compute-sanitizer
export REAL_PYTHON=$python PRETEND_COUNT=$work/count PYTHON=plain-python
export PATH=$work/tools:$PATH
unset OUT
: >count
suite=tree/scripts/gpu_suite.sh
# The work that a part does before its limit depends on the load of the machine. If a limit was too short for the
# expected result, a longer one follows. All limits are below the 30 s and more of programs that hang.
with_limits() { # limits; pattern, file; the suite's options
  local limits=$1 pattern=$2 file=$3
  shift 3
  for limit in $limits; do
    run $suite "$@" --limit "$limit"
    ! grep -qE -- "$pattern" "$file" 2>/dev/null || return 0
  done
}

# ---- the suite's options -------------------------------------------------------------------------------------------------
refused 2 $suite --part nonsense
expect_text "expected one of probes tests sanitizer capture reruns mission headline headline-peers bench baselines peers peers-best peers-all peers-compiled" "--part nonsense"
refused 2 $suite --plan third
expect_text "expected first or second" "--plan third"
for bad in --plan "--plan first --part tests" "--plan second --require mission" "--speech nowhere" --part --frobnicate extra "--device cpu" "--device cuda:" "--device cuda:x" "--jobs 0" "--jobs two" "--budget -1" \
  "--limit 1.5" "--budget some" "--require nonsense" "--part tests --require bench" "--seconds 0" "--seconds ." "--seconds x" "--build nowhere" "--build tools"; do
  # shellcheck disable=SC2086
  refused 2 $suite $bad
done
PRETEND_NO_DEVICE=1 refused 6 $suite --part bench --out none
expect_text "no NVIDIA driver was found" "no device"
S_ANSWER=1 PRETEND_MUTE=1 refused 6 $suite --part bench --out none
expect_text "did not end within 1 s: the driver does not answer" "a driver that hangs"
[ ! -e none ] || fail "no device, and yet a folder"
echo occupied >file
refused 4 $suite --out file/below
run $suite --help
expect_code 0 --help
for word in --plan --bring --speech --part --build --out --device --resume --small --jobs --limit --budget --require "Exit codes"; do expect_text "$word" --help; done

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
expect_line whole/nvidia-pretender-1/report.md "^No times: shapes were shrunk by --small"
expect_line whole/nvidia-pretender-1/report.md '^\| snake_forward/bf16/2x3x4 \| - \| - \| - \| - \| - \| - \| - \| - \| 2 \| - '
grep -q "12\.5\|7\.5" whole/nvidia-pretender-1/report.* && fail "a small run's report has times"
[ "$(wc -l <count)" = 1 ] || fail "the bench was not run once"

# A second call continues the first. Without --resume it measures again. Another device size starts from the beginning.
run $suite --out whole --small --resume --part tests --part bench
expect_code 0 --resume
[ "$(wc -l <count)" = 1 ] || fail "--resume measures what was ok"
run $suite --out whole --part bench
expect_code 0 "--part bench"
[ "$(wc -l <count)" = 2 ] || fail "without --resume nothing is measured"
expect_line whole/nvidia-pretender-1/report.md '^\| snake_forward/bf16/2x3x4 \| 12\.5 \| 7\.50 \|'
grep -q '"small": true' whole/earlier/suite.json || fail "the results of --small are lost"
grep -q "^| tests |" whole/nvidia-pretender-1/report.md && fail "results of --small and of a real run are mixed"

# Peers: those of a plain call, and the compiled ones, which continue in another call.
export PYTHON=pretended-python
run $suite --out peers --part bench --part peers
expect_code 0 "peers"
expect_line out "^peers +ok +[0-9]+ s  1 results"
expect_line peers/nvidia-pretender-1/report.md '\| eager \| 25\.0 \| 2\.00 \| eager \| 30\.0 \| 4\.00 \|$'
run $suite --out peers --part peers-compiled
expect_line out "^peers-compiled +ok +[0-9]+ s  1 results"
run $suite --out peers --part peers-compiled --resume
expect_line out "^peers-compiled +ok +[0-9]+ s  2 results"
expect_line peers/nvidia-pretender-1/report.md '\| more \| 5\.00 \| 0\.40 \| more \| 4\.00 \| 0\.53 \|$'
expect_line peers/nvidia-pretender-1/report.md '^\| peers \| ok \|'
PRETEND_TORCH=79 run $suite --out no-cuda --part peers
expect_line out "^peers +not run .*this PyTorch finds no CUDA device"
PRETEND_PEERS=3 run $suite --out peers --part peers-all --part peers
expect_code 3 "a budget that was spent"
expect_line out "^peers-all +incomplete +[0-9]+ s  2 results"
expect_line out "^incomplete: peers peers-all; to continue: .*gpu_suite.sh --out peers --part peers-all --part peers --resume"
export PYTHON=plain-python

# ---- plans ---------------------------------------------------------------------------------------------------------------
mkdir speech && echo sound >speech/one.flac
cat >tree/bench/goals.json <<'JSON'
{"device": "NVIDIA Pretender 1", "counted_with": "what was counted", "goals": [
 {"what": "snake", "case": "snake_forward/bf16/2x3x4", "goal": {"us": 13, "x_eager": 2.5}, "floor_us": 10, "why": "so"},
 {"what": "other", "case": "nobody/has/this", "goal": {"of_floor": 0.5}, "floor_us": 7.5, "why": "so"}]}
JSON
PYTHON=pretended-python PRETEND_MODEL=33306000 PRETEND_SKIP=1 run $suite --plan first --bring home --out first-plan --speech speech --jobs 4
expect_code 0 "--plan first"
[ "$(grep -oE '^(probes|tests|mission|headline|headline-peers) +ok' out | tr -d '\n ')" = probesoktestsokmissionokheadlineokheadline-peersok ] ||
  fail "--plan first: not its five parts in their order"
expect_text "4 probes: 2 as assumed, 1 not (contrary), 1 cannot run here, 0 without an answer" "--plan first"
expect_text "bf16 2 epochs, best SNR 3.25 dB, output std 0.125; fp32 2 epochs" "--plan first"
expect_line first-plan/nvidia-pretender-1/report.md '^\| snake \| snake_forward/bf16/2x3x4 \| 13 us and 2.5 x PyTorch eager \| 10.0, counted \| 25.0 \(eager\) \| 12.5 \| no \|$'
expect_line first-plan/nvidia-pretender-1/report.md '^\| other \| nobody/has/this \| 50% of the floor \| 7.50, counted \| not measured \| not measured \| not measured \|$'
expect_line first-plan/nvidia-pretender-1/report.md '^\| copies \| ok \| so it is \| as "assumed" \\\| so \|$'
expect_line first-plan/nvidia-pretender-1/report.md '^\| contrary \| DOES NOT HOLD \| - \| it is otherwise \|$'
expect_line first-plan/nvidia-pretender-1/report.md '^\| 2 \| 4 \| 2.000 \| \+3.25 \|'
grep -q '"multiprocessors": 3' first-plan/nvidia-pretender-1/probes.json || fail "probes.json does not say of which machine"
for file in suite probes mission bench peers; do
  "$python" -I -S -c 'import json, sys; r = json.load(open(sys.argv[1])); assert all(k in r for k in ("commit", "device", "driver", "versions", "clocks", "ceilings")) and r["commit"] == "0123456789abcdef"' \
    first-plan/nvidia-pretender-1/$file.json 2>err || fail "$file.json has not what every result must have"
done
[ "$(cd home && echo *)" = "first.md first.tar.gz mission-bf16.safetensors.00 mission-bf16.safetensors.01" ] ||
  fail "what is brought back is $(ls home)"
[ "$(cat home/mission-bf16.safetensors.0? | sha256sum | cut -d' ' -f1)" = "$(sha256sum <first-plan/mission-bf16.safetensors | cut -d' ' -f1)" ] ||
  fail "the pieces of a model are not the model"
[ "$(grep -c '"bytes": 33306000, "sha256"' first-plan/mission.json)" = 2 ] || fail "mission.json has not the lengths of both models"
PYTHON=pretended-python run $suite --plan second --small --bring home --out second-plan --jobs 4
expect_code 0 "--plan second"
[ "$(grep -oE '^(sanitizer|capture|reruns|peers-best) +ok' out | tr -d '\n ')" = sanitizerokcaptureokrerunsokpeers-bestok ] ||
  fail "--plan second: not its four parts in their order"
[ -s second-plan/peers-jax.json ] || fail "peers-best leaves out XLA"
[ "$(cd home && echo *)" = "first.md first.tar.gz mission-bf16.safetensors.00 mission-bf16.safetensors.01 second.md second.tar.gz" ] ||
  fail "what both calls bring back is $(ls home)"
[ -z "$(find home -size +16777215c)" ] || fail "what is brought back has a file of 16 MiB or more"
[ "$(cat home/* | wc -c)" -lt $((64 << 20)) ] || fail "what is brought back is 64 MiB or more"
# Both calls are merged from their archives. The second is edited to look like one of full size.
mkdir second && tar -C second -xzf home/second.tar.gz && sed -i 's/"small": *true/"small": false/' second/suite.json second/cases.json
tar -C second -czf home/second.tar.gz .
rm -rf second
run "$python" -I -S tree/scripts/gpu_report.py --out merged home/first.tar.gz home/second.tar.gz
expect_code 0 "archives"
for part in probes mission headline reruns peers-best; do expect_line merged/nvidia-pretender-1/report.md "^\| $part \| ok \|"; done
expect_line merged/nvidia-pretender-1/report.md '^\| snake_forward/bf16/2x3x4 \| compiled \| 25\.0 '
echo no archive >broken.tar.gz
refused 3 "$python" -I -S tree/scripts/gpu_report.py --out merged broken.tar.gz

# A probe that kills its process or hangs loses only its own line. Training that was told to stop is a success, and
# training that diverges is a failure.
PRETEND_PROBE=kill run $suite --out probes --part probes
expect_code 1 "a probe that breaks"
expect_text "3 probes: 2 as assumed, 0 not, 0 cannot run here, 1 without an answer" "a probe that breaks"
expect_line probes/unknown-gpu/report.md '^\| breaks \| no answer \| - \| ended nacre_probes by signal SEGV \|$'
expect_line probes/unknown-gpu/report.md '^\| last \| ok \|'
PATH=$work/hanging:$PATH run $suite --out hanging-smi --part probes
expect_code 0 "nvidia-smi that hangs"
[ "$(wc -l <count.smi)" = 1 ] || fail "nvidia-smi that hangs is asked $(wc -l <count.smi) times"
PRETEND_PROBE=mute run $suite --out probes --part probes
expect_code 1 "a device that does not answer"
expect_line out '^probes +FAILED .*: the device did not answer nacre_probes$'
export PRETEND_STUCK=$work/tools/stuck PRETEND_PROBE=hang
with_limits "8 20 60" '^\| last \| ok \|' probes/unknown-gpu/report.md --out probes --part probes
unset PRETEND_STUCK PRETEND_PROBE
expect_line probes/unknown-gpu/report.md "^\| breaks \| no answer \| - \| took more than $((limit / 2)) s \|$"
expect_line probes/unknown-gpu/report.md '^\| last \| ok \|'
export PRETEND_LONG=1 PRETEND_FP32=3.5
with_limits "14 44 80" "^mission +ok " out --out long --part mission --speech speech --bring better
unset PRETEND_LONG PRETEND_FP32
expect_code 0 "training that is told to stop"
grep -q "told twice" long/mission-*.log && fail "training was told twice to stop"
[ "$(cd better && echo mission*)" = mission-fp32.safetensors.00 ] || fail "not the better model is brought back: $(ls better)"
grep -q '"ended": "its time was over", "exit": 124, "seconds_given": [0-9]*' long/mission.json || fail "mission.json does not say how it ended"
PRETEND_LONG=$work/tools/stuck run $suite --out heedless --part mission --speech speech --limit 2
pgrep -f "$work/tools/stuck" >pids && fail "training that does not heed a signal goes on behind its part"
PRETEND_DIVERGE=1 run $suite --out diverged --part mission --speech speech
expect_code 1 "training that diverges"
expect_text "bf16: nacre train ended with exit code 7" "training that diverges"
expect_text "bf16 0 epochs, no final checkpoint" "training that diverges"
run $suite --out silent --part mission
expect_line out "^mission +not run .*no speech"
# The archive has the work that was done before a call is cut.
S_BRING_EVERY=1 PRETEND_SLOW=1 $suite --plan first --bring cut --out cut-work --speech speech --jobs 4 >out 2>err </dev/null &
for ((i = 0; i < 3000; ++i)); do ! grep -q '^slow$' cut-work/state/headline-pieces/begun 2>/dev/null || break; sleep 0.1; done
# It also has the finished work of the running part.
for ((i = 0; i < 3000; ++i)); do
  ! tar -xzOf cut/first.tar.gz ./state/headline-pieces/begun 2>/dev/null | grep -q '^slow$' || break
  sleep 0.1
done
[ $i -lt 3000 ] || fail "nothing is brought back while a part runs"
kill -TERM $!
wait $!
code=$?
expect_code 143 "a plan that is cut"
run "$python" -I -S tree/scripts/gpu_report.py --out cut cut/first.tar.gz
for part in probes tests mission; do expect_line cut/nvidia-pretender-1/report.md "^\| $part \| ok \|"; done
expect_line cut/nvidia-pretender-1/report.md '^\| snake_forward/bf16/2x3x4 \| 12\.5 \| 7\.50 \|'

# ---- parts that fail -----------------------------------------------------------------------------------------------------
PRETEND_FAULT=1 PRETEND_ERROR=racecheck PRETEND_RACE=1 run $suite --out faulty --small --jobs 4 --part bench --part reruns --part sanitizer --part tests
expect_code 1 "faults"
[ "$(grep -cE '^(tests|sanitizer|reruns|bench) ' out)" = 4 ] || fail "a part that failed stopped others"
expect_line out "^tests +FAILED \(exit 1\) +[0-9]+ s  5 of 6 tests passed"
expect_line out "^sanitizer +FAILED \(exit 1\) +[0-9]+ s  9 of 12 runs"
expect_line out "^reruns +FAILED \(exit 1\) .*not 2 equal runs of: train fp32"
expect_line out "^bench +ok "
expect_line faulty/tests.log "^a fault was found"
expect_line faulty/nvidia-pretender-1/report.md "^\| tests \| FAILED \(exit 1\) \|"
expect_line faulty/nvidia-pretender-1/report.md "^- tests: FAILED a fault$"
expect_line faulty/nvidia-pretender-1/report.md "^- sanitizer: FAILED racecheck adamw$"

# A job past its limit ends together with all processes that it started. So does a part at its limit, and the suite when
# it is told to stop.
gone() { # what
  local i
  for ((i = 0; i < 3000; ++i)); do
    pgrep -f "^bash $work/tools/stuck" >pids || pgrep -f "$work/tools/stuck" >pids || return 0
    sleep 0.1
  done
  fail "$1: a process of a test is left"
}
export PRETEND_STUCK=$work/tools/stuck
with_limits "2 8 32" "5 of 6 tests passed" out --out stuck --small --jobs 4 --part tests
expect_code 3 "a test that is stuck, in a hurry"
expect_line out "^tests +incomplete +[0-9]+ s  5 of 6 tests passed; 1 stopped or not begun"
export S_PATIENCE=1
with_limits "4 16 64" "5 of 6 tests passed" out --out stuck --small --jobs 4 --part tests
unset S_PATIENCE
expect_code 1 "a test that is stuck"
expect_line out "^tests +FAILED \(exit 1\) +[0-9]+ s  5 of 6 tests passed$"
expect_line stuck/tests.log "^exit 124 .* a stuck one$"
expect_line stuck/unknown-gpu/report.md "^- tests: FAILED a stuck one$"
gone "a job's limit"
$suite --out ended --small --jobs 4 --part tests >out 2>err </dev/null &
for ((i = 0; i < 3000; ++i)); do ! grep -q "^ok " ended/tests.log 2>/dev/null || break; sleep 0.1; done
expect_line ended/tests.log "^ok " # written when the test ends, not at the end of all
kill -TERM $!
wait $!
code=$?
expect_code 143 "a suite that is ended"
gone "a suite that is ended"
unset PRETEND_STUCK

# The work of a part that reached its limit stays, and --resume continues from there.
export PRETEND_SLOW=1
with_limits "2 10 60" "^bench +incomplete .* 1 cases measured" out --out slow --part bench
unset PRETEND_SLOW
expect_code 3 "a part at its limit"
expect_line out "^bench +incomplete +[0-9]+ s  1 cases measured, 0 failed, 0 not begun"
expect_line out "^incomplete: bench; to continue: .* --out slow --part bench --limit $limit --resume"
expect_line slow/nvidia-pretender-1/report.md '^\| snake_forward/bf16/2x3x4 \| 12\.5 \| 7\.50 \|'
expect_line slow/nvidia-pretender-1/report.md '^\| bench \| incomplete \|'
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
expect_line out "^bench +incomplete +0 s  not begun: no time of the budget of 5 s is left"

# A kernel that loses the device, a crash and a hang each cost only their own case.
export PRETEND_BREAK=hang
with_limits "5 20 80" "2 cases measured, 3 failed" out --out broken --part bench
unset PRETEND_BREAK
expect_code 1 "cases that break the bench"
expect_line out "^bench +FAILED \(exit 1\) +[0-9]+ s  2 cases measured, 3 failed"
python3 -c 'import json; json.load(open("broken/bench.json")); json.load(open("broken/suite.json"))' 2>err || fail "bench.json is broken"
expect_line broken/nvidia-pretender-1/report.md '^\| last \| 12\.5 \| 7\.50 \|'
expect_line broken/nvidia-pretender-1/report.md '^- broken/1: FAILED CUDA: an illegal memory access$'
expect_line broken/nvidia-pretender-1/report.md '^- broken/2: FAILED nacre_bench ended by signal SEGV$'
expect_line broken/nvidia-pretender-1/report.md "^- hung: FAILED ran past $((limit / 2)) s$"
expect_line broken/nvidia-pretender-1/report.md '^- bench: FAILED broken/2$'

# Without Python; with programs of another commit; with a required part that cannot run.
PYTHON=no-such-python PRETEND_COMMIT=ba9876543210 PRETEND_BREAK=1 run $suite --out plain --part bench --part peers --limit 200
expect_code 1 "without Python"
expect_line out "^WARNING: the programs were built from ba9876543210, this is 0123456789abcdef$"
expect_line plain/nvidia-pretender-1/report.md '^\| snake_forward/bf16/2x3x4 \| 12\.5 \| 7\.5 \| - \| - \| - \| - \| - \| 2 \|  \|$'
expect_line plain/nvidia-pretender-1/report.md '^\| broken/1 \| - .*\| FAILED CUDA: an illegal memory access \|$'
expect_line plain/nvidia-pretender-1/report.md '^\| bench \| FAILED \(exit 1\) \| [0-9]+ \| 2 cases measured, 2 failed \|$'
expect_line plain/nvidia-pretender-1/report.md '^\| built from \| ba9876543210 \|$'
python3 -c 'import json; r = json.load(open("plain/nvidia-pretender-1/plain.json")); assert len(r["bench"]["benchmarks"]) == 4 and r["suite"]["parts"]' 2>err ||
  fail "the plain report is no JSON"
grep -q somebodys plain/nvidia-pretender-1/report.* && fail "a plain result names the machine"
PYTHON=no-such-python run $suite --out required --part peers --require peers
expect_code 1 "--require"
expect_line out "^peers +FAILED \(exit 77\) .*required, but not run: no-such-python was not found"

# ---- packing -------------------------------------------------------------------------------------------------------------
refused 2 tree/scripts/gpu_pack.sh --out some.zip
refused 2 tree/scripts/gpu_pack.sh --limit many
refused 2 tree/scripts/gpu_pack.sh --nonsense
refused 2 tree/scripts/gpu_pack.sh --speech nowhere
mkdir bare # has all that packing needs, except the tools for speech
for tool in readlink dirname basename head grep tar xz mktemp rm sed cat date stat; do ln -s "$(type -P $tool)" bare/; done
refused 4 tree/scripts/gpu_pack.sh --build nowhere
refused 3 tree/scripts/gpu_pack.sh --speech speech --out packed.tar.xz --limit 1000
expect_text "at most 1000 are allowed" "--limit 1000"
[ ! -e packed.tar.xz ] || fail "a file that is too large was written"
sed -i s/nacre-commit:0/nacre-commit:f/ tree/build/cuda/tests/nacre_tests
refused 5 tree/scripts/gpu_pack.sh --no-speech --out packed.tar.xz
expect_text "nacre_tests was built from f123456789ab, the tree is at 0123456789abcdef" "a program of another commit"
cp "$(type -P true)" elf && cp tree/build/cuda/nacre script && mv elf tree/build/cuda/nacre
run tree/scripts/gpu_pack.sh --speech speech --out packed.tar.xz --stale # one of the programs needs shared libraries
expect_code 0 "packing"
expect_text "speech: 1 files" "packing"
expect_text '/gpu_suite.sh --plan first --bring "$OUT"' "packing"
expect_text '/gpu_suite.sh --plan second --bring "$OUT"' "packing"
sed -i s/nacre-commit:f/nacre-commit:0/ tree/build/cuda/tests/nacre_tests
mv script tree/build/cuda/nacre
mkdir mute
refused 4 tree/scripts/gpu_pack.sh --speech mute --out packed.tar.xz
expect_text "contains no audio" "a folder without audio"
PATH=$work/bare run "$(type -P bash)" tree/scripts/gpu_pack.sh --out packed.tar.xz
expect_code 4 "neither speech nor espeak-ng"
expect_text "no speech: quickstart/data and espeak-ng are missing" "neither speech nor espeak-ng"
run tree/scripts/gpu_pack.sh --speech speech
expect_code 0 "packing"
expect_text "  cd build && { tar xf nacre-gpu.tar.xz" "packing"
expect_text "build/nacre-gpu.tar.xz is ignored by git" "packing"
mv tree/build/nacre-gpu.tar.xz packed.tar.xz
mkdir unpacked
tar -C unpacked -xf packed.tar.xz || fail "what was packed cannot be unpacked"
[ -s unpacked/nacre-gpu/speech/one.flac ] || fail "the speech is not in the archive"
run unpacked/nacre-gpu/scripts/gpu_suite.sh --small --part bench
expect_code 0 "a packed suite"
[ -f unpacked/nacre-gpu/bench/results/work/bench.json ] || fail "a packed suite leaves no bench.json"
[ ! -e unpacked/nacre-gpu/bench/results/nvidia-pretender-1/report.md ] || fail "a small run made the result that is kept"
expect_line unpacked/nacre-gpu/bench/results/work/nvidia-pretender-1/report.md "^\| commit \| 0123456789abcdef \|"

run unpacked/nacre-gpu/scripts/gpu_suite.sh --part bench
expect_code 0 "a packed suite"
expect_line unpacked/nacre-gpu/bench/results/nvidia-pretender-1/report.md '^\| snake_forward/bf16/2x3x4 \| 12\.5 \| 7\.50 \|'

# ---- names that the suite needs
# -----------------------------------------------------------------------------------------------
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
