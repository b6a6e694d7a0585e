#!/usr/bin/env bash
# Everything that a GPU is needed for, in one command: tests, sanitizers, captures, reruns, benches, peers, and a report.
# Needs an NVIDIA driver and the CUDA libraries; python3 for the report, PyTorch for the peers, compute-sanitizer for its part.
#
#   scripts/gpu_suite.sh [--part NAME]... [--build DIR] [--out DIR] [--device cuda:N] [--resume]
#                        [--small] [--jobs N] [--seconds S] [--limit SECONDS] [--budget SECONDS]
#
#   tests            every test on the device, each in a process of its own; with NACRE_TEST_MODEL and NACRE_TEST_AUDIO set,
#                    also that a trained model's codes are those of the CPU
#   sanitizer        compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over small benches and some tests
#   capture          captured steps against steps that run kernel by kernel, in the tests and in nacre train
#   reruns           twenty runs of training, encoding and decoding must end in the same bytes, in every precision
#   bench            nacre_bench on the device
#   baselines        cuDNN and cuBLAS on the shapes of the convolutions, where this build and machine have them
#   peers            the same cases in PyTorch, eager
#   peers-compiled   the same compiled; goes on where an earlier one stopped. Not among the parts of a plain call
#
#   --part NAME      only this part; may be repeated. Parts run in the order above
#   --build DIR      the build to take (default build/cuda; where that is missing, it is built by the preset cuda)
#   --out DIR        logs, figures and the report (default: $OUT if it is set, else bench/results/work)
#   --device cuda:N  which GPU (default cuda)
#   --resume         leave out parts that DIR already has as ok, of this commit, build and device; peers measure what is missing
#   --small          small shapes, few tests, few reruns: proves that the suite works. Its report has no times
#   --jobs N         processes beside each other where nothing is timed (default: half of the cores, at most 8)
#   --seconds S      of each case of bench and baselines, warm and cold each (default 0.1; at least 50 runs of most)
#   --limit SECONDS  a part that takes longer is stopped (default: each has a limit of its own)
#   --budget SECONDS for the whole call: a part is begun only while half of its limit is left, and stopped in time. Another
#                    call with --resume goes on
#
# A part that fails does not stop the rest. DIR gets PART.log of each, suite.json, cases.json, bench.json, baselines.json,
# peers-eager.json, peers-compiled.json, and what scripts/gpu_report.py makes of them, <gpu>.json and <gpu>.md; these two go to bench/results
# itself where DIR is the default and shapes are not small. Compiled peers of a later call into another folder are added by
# scripts/gpu_report.py --add. The PyTorch used is that of $PYTHON (default python3).
#
# Exit codes: 0 every part is ok or was skipped, 1 some part failed, 2 usage, 4 no build, 6 no device, 130 and 143 signals.
set -u
export LC_ALL=C
self=$(readlink -f "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$self")")
all_parts=(tests sanitizer capture reruns bench baselines peers peers-compiled)
# Seconds after which a part is stopped, so that one that hangs does not take the machine.
declare -A limits=([tests]=240 [sanitizer]=200 [capture]=150 [reruns]=150 [bench]=300 [baselines]=240 [peers]=240
  [peers-compiled]=480)

usage_error() {
  echo "gpu_suite: $*" >&2
  exit 2
}

# ---- inside a part: the script runs itself as `gpu_suite.sh __part NAME`, under `timeout`, with these set ------------------
# S_BUILD S_OUT S_DEVICE S_SMALL S_RESUME S_SECONDS S_JOBS S_LIBRARIES S_EMULATED S_WORK S_DATA S_LIMIT

# What the build needs and the machine lacks lies beside it in a packed tree; nothing else shall see those libraries.
ours() { env ${S_LIBRARIES:+LD_LIBRARY_PATH="$S_LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"} "$@"; }
nacre() { ours "$S_BUILD/nacre" "$@"; }
bench() { ours "$S_BUILD/bench/nacre_bench" "$@"; }
run_tests() { NACRE_TEST_DEVICES=cuda ours "$S_BUILD/tests/nacre_tests" "$@"; }

json() { # a string, quoted
  local s=${1//\\/\\\\}
  s=${s//\"/\\\"}
  printf '"%s"' "$(tr '\000-\037\177' ' ' <<<"$s" | sed 's/ $//')"
}
json_list() {
  local s first=1
  printf '['
  for s in "$@"; do
    [ $first = 1 ] || printf ', '
    first=0
    json "$s"
  done
  printf ']'
}
why() { printf '%s\n' "$*" >"$S_WORK/why"; }       # one line for the summary
facts() { printf '%s' "$*" >"$S_WORK/facts"; }     # members of the part's object in suite.json
skip() { why "$*"; exit 77; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }
named() { # of Catch: a name as a specification of just that test
  local s=${1//\\/\\\\}
  s=${s//,/\\,} s=${s//[/\\[}
  printf '%s' "${s//]/\\]}"
}

# Jobs beside each other: `queue WORD...` adds one, `work_off` runs all, and prints the logs of those that failed. A job is
# this script called as `__job NUMBER SECONDS WORD...`, WORD... a function of this file and its arguments.
queue() {
  jobs_queued=$((${jobs_queued:-0} + 1))
  printf '%s\0' "$@" >"$S_WORK/job-$jobs_queued"
}
work_off() { # seconds per job
  : >"$S_WORK/outcomes"
  seq 1 "$jobs_queued" | xargs -P "$S_JOBS" -I '{}' bash "$self" __job '{}' "$1"
  passed=$(grep -c '^0 ' "$S_WORK/outcomes")
  failed=()
  local code ms number name
  while read -r code ms number name; do
    printf '%-7s %8.1f s  %s\n' "$([ "$code" = 0 ] && echo ok || echo "exit $code")" "$((ms / 100))e-1" "$name"
    [ "$code" = 0 ] || failed+=("$name")
  done < <(sort -k3,3n "$S_WORK/outcomes")
  while read -r code ms number name; do
    [ "$code" != 0 ] || continue
    printf '\n==== %s: exit code %s%s\n' "$name" "$code" "$([ "$code" = 124 ] && echo " (ran past $1 s)")"
    tail -c 20000 "$S_WORK/job-$number.log"
  done < <(sort -k3,3n "$S_WORK/outcomes")
  [ $((passed + ${#failed[@]})) = "$jobs_queued" ] || failed+=("$((jobs_queued - passed - ${#failed[@]})) jobs left no outcome")
}
one_job() { # number, seconds
  local number=$1 seconds=$2 words start code
  mapfile -d '' -t words <"$S_WORK/job-$number"
  start=$(now_ms)
  # In the foreground, that is in the group which the part's own limit ends.
  timeout --foreground -k 5 "$seconds" bash "$self" __call "${words[@]}" >"$S_WORK/job-$number.log" 2>&1
  code=$?
  printf '%s %s %s %s\n' $code $(($(now_ms) - start)) "$number" "${words[*]:1}" >>"$S_WORK/outcomes"
}

# ---- tests ----------------------------------------------------------------------------------------------------------------
# Catch's exit code counts names when it lists them.
test_names() { run_tests --list-test-names-only "$@" | sed '/^$/d'; }
one_test() { run_tests "$(named "$1")" -w NoTests --durations no; }
part_tests() {
  local names
  if [ "$S_SMALL" = 1 ]; then
    mapfile -t names < <(test_names "[core],[add],[convert],[tanh],[elu],[adamw]")
  else
    mapfile -t names < <(test_names)
    if [ -n "${NACRE_TEST_MODEL:-}" ] && [ -n "${NACRE_TEST_AUDIO:-}" ]; then
      mapfile -t -O "${#names[@]}" names < <(test_names "[trained]")
    fi
  fi
  [ ${#names[@]} -gt 0 ] || { why "nacre_tests lists no tests"; return 1; }
  local name
  for name in "${names[@]}"; do queue one_test "$name"; done
  work_off 150
  facts "\"cases\": ${#names[@]}, \"passed\": $passed, \"failed\": $(json_list "${failed[@]}")"
  why "$passed of ${#names[@]} tests passed"
  [ ${#failed[@]} = 0 ]
}

# Cases of nacre_bench that time another library.
baselines='/(cudnn_nhwc|cudnn_nchw|gemm)'

# ---- sanitizer --------------------------------------------------------------------------------------------------------------
# Beside the small benches, which launch every op: tests with odd shapes, and a whole captured step.
sanitized_tests=(
  "snake" "convert" "balancer" "waveform_loss" "adamw"
  "conv1d in bf16 rounds once" "snake_conv1d on tensor cores in tf32" "snake_conv1d in bf16"
  "weight_norm against the reference" "weight_norm_adamw is its three parts"
  "stft: forward, adjoint and their identity" "spectral_loss: losses and gradients against the reference"
  "vq_nearest finds the same codes on every device and by every rung"
  "rvq_forward follows its double reference, and is its stages one by one" "rvq_backward follows its double reference"
  "a captured step, replayed, does what running it does"
)
find_sanitizer() {
  local place
  for place in "$(command -v compute-sanitizer)" "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
    "${CUDA_HOME:-/usr/local/cuda}/extras/compute-sanitizer/compute-sanitizer"; do
    [ -n "$place" ] && [ -x "$place" ] && echo "$place" && return
  done
  return 1
}
sanitize() { # tool, what runs under it
  ours "$S_SANITIZER" --tool "$1" --error-exitcode 99 --print-limit 20 "${@:2}"
}
sanitized_bench() { # tool, for the log
  local some=("--benchmark_filter=-$baselines")
  [ "$S_EMULATED" = 0 ] || some=(--benchmark_filter='^(convert|adamw)') # all of them take minutes there
  sanitize "$1" "$S_BUILD/bench/nacre_bench" --device "$S_DEVICE" --small "${some[@]}"
}
sanitized_test() { # tool, name
  NACRE_TEST_DEVICES=cuda sanitize "$1" "$S_BUILD/tests/nacre_tests" "$(named "$2")" -w NoTests
}
part_sanitizer() {
  S_SANITIZER=$(find_sanitizer) || skip "compute-sanitizer is not here"
  export S_SANITIZER
  # It needs more of the driver than CUDA does, which some virtual machines do not have.
  if ! sanitize memcheck "$S_BUILD/nacre" info speech-16k-small --memory --device "$S_DEVICE" >"$S_WORK/probe" 2>&1 &&
    grep -qi "device not supported\|unable to initialize\|failed to initialize" "$S_WORK/probe"; then
    cat "$S_WORK/probe"
    skip "compute-sanitizer does not serve this device: $(grep -i "not supported\|initialize" "$S_WORK/probe" | head -n 1)"
  fi
  local tool name
  [ "$S_SMALL" = 0 ] || sanitized_tests=("convert" "adamw")
  for tool in memcheck racecheck initcheck synccheck; do
    queue sanitized_bench "$tool" "nacre_bench --small"
    for name in "${sanitized_tests[@]}"; do queue sanitized_test "$tool" "$name"; done
  done
  work_off 150
  facts "\"runs\": $jobs_queued, \"clean\": $passed, \"failed\": $(json_list "${failed[@]}")"
  why "$passed of $jobs_queued runs under memcheck, racecheck, initcheck and synccheck are clean"
  [ ${#failed[@]} = 0 ]
}

# ---- training, for captures and reruns -----------------------------------------------------------------------------------
bytes() { # little-endian, $1 bytes of $2, as an escape for printf
  local i text=
  for ((i = 0; i < $1; ++i)); do printf -v text '%s\\x%02x' "$text" $((($2 >> (8 * i)) & 255)); done
  printf '%s' "$text"
}
wav() { # path, samples, period: 16 kHz, a triangle that swells, with a little noise
  local t v text='' noise=12345 samples=$2 period=$3 piece
  {
    # shellcheck disable=SC2059
    printf "RIFF$(bytes 4 $((36 + 2 * samples)))WAVEfmt $(bytes 4 16)$(bytes 2 1)$(bytes 2 1)$(bytes 4 16000)"
    # shellcheck disable=SC2059
    printf "$(bytes 4 32000)$(bytes 2 2)$(bytes 2 16)data$(bytes 4 $((2 * samples)))"
    for ((t = 0; t < samples; ++t)); do
      v=$((t % period * 2 - period)) noise=$(((noise * 1103515245 + 12345) & 2147483647))
      v=$((((v < 0 ? -v : v) * 2 - period) * (4000 + t % 8000) / period + noise % 500))
      printf -v piece '\\x%02x\\x%02x' $((v & 255)) $(((v >> 8) & 255))
      text+=$piece
      # Short strings, which bash appends to fast.
      # shellcheck disable=SC2059
      [ ${#text} -lt 4000 ] || { printf "$text"; text=; }
    done
    # shellcheck disable=SC2059
    printf "$text"
  } >"$1"
}
make_data() { # once for all parts
  local i samples=16000
  [ ! -d "$S_DATA" ] || return 0
  [ "$S_SMALL" = 0 ] || samples=1000
  mkdir -p "$S_DATA/data"
  for i in 0 1 2 3 4 5; do wav "$S_DATA/data/$i.wav" $((samples + samples * i / 9)) $((60 + 23 * i)) & done
  wait
  # Small models for devices that are emulated; else one whose layers run the kernels that are used in earnest.
  cat >"$S_DATA/tiny.json" <<'JSON'
{"codec": {"encoder_dim": 4, "encoder_rates": [2, 2], "decoder_dim": 16, "decoder_rates": [2, 2], "latent_dim": 8,
           "quantizer": "ema", "metric": "euclidean", "n_codebooks": 2, "codebook_size": 16, "quantizer_dropout": 0.5},
 "loss": {"windows": [16, 64], "mels": [5, 10]},
 "training": {"segment_length": 400, "batch_size": 2, "codebook_start_rows": 300}}
JSON
}
train() { # folder, precision, steps
  local size=(--config speech-16k-small --batch_size 4 --segment_length 4000 --set training.codebook_start_rows=4000)
  [ "$S_SMALL" = 0 ] || size=(--config "$S_DATA/tiny.json")
  nacre train "${size[@]}" -t 2 --device "$S_DEVICE" --precision "$2" --data_dir "$S_DATA/data" --checkpoint_dir "$1" \
    --seed 7 --num_epochs 1000 --set 'training.schedule="constant"' --max_steps "$3"
}
last_files() { # folder, steps: what a run ends with
  printf '%s/step-%08d/%s\n' "$1" "$2" model.safetensors "$1" "$2" optimizer.safetensors
}

# ---- capture ----------------------------------------------------------------------------------------------------------------
# The first step of a process runs kernel by kernel, the second is captured, all others replay it. So one run of several
# steps, and as many runs of one step each, which resume one another, must leave the same files.
capture_train() { # precision, for the log
  local steps=6 step one two
  [ "$S_SMALL" = 0 ] || steps=4
  train "$S_WORK/replayed-$1" "$1" $steps || return
  for ((step = 1; step <= steps; ++step)); do train "$S_WORK/eager-$1" "$1" $step || return; done
  while read -r one && read -r two <&3; do
    cmp "$one" "$two" || return
  done < <(last_files "$S_WORK/replayed-$1" $steps) 3< <(last_files "$S_WORK/eager-$1" $steps)
  echo "$steps steps replayed and $steps steps run kernel by kernel end in the same model and optimizer"
}
part_capture() {
  local names name precision
  mapfile -t names < <(test_names "*captured*")
  names+=("a graph holds what a stream can do, and nothing else")
  [ ${#names[@]} -gt 1 ] || { why "nacre_tests has no test of captures"; return 1; }
  # A whole step in the emulator takes minutes.
  [ "$S_SMALL" = 0 ] || names=("a graph holds what a stream can do, and nothing else")
  make_data
  for name in "${names[@]}"; do queue one_test "$name"; done
  for precision in fp32 tf32 bf16; do queue capture_train $precision "nacre train"; done
  work_off 140
  facts "\"checks\": $jobs_queued, \"passed\": $passed, \"failed\": $(json_list "${failed[@]}")"
  why "$passed of $jobs_queued comparisons of captured with eager steps are equal"
  [ ${#failed[@]} = 0 ]
}

# ---- reruns -----------------------------------------------------------------------------------------------------------------
hash_of() { cat "$@" | sha256sum | cut -d' ' -f1; }
keep_hash() { # group, files...: `group hash` in the list of hashes
  local files=("${@:2}") file
  for file in "${files[@]}"; do [ -s "$file" ] || { echo "$file is not there"; return 1; }; done
  printf '%s %s\n' "$1" "$(hash_of "${files[@]}")" >>"$S_WORK/hashes"
}
rerun_train() { # precision, number
  local run=$S_WORK/run-$1-$2 files
  train "$run" "$1" 6 || return
  mapfile -t files < <(last_files "$run" 6)
  keep_hash "train $1" "${files[@]}" || return
  [ "$2" = 1 ] || rm -rf "$run"
}
rerun_encode() { # precision, number
  local to=$S_WORK/codes-$1-$2
  nacre encode "$S_DATA/data" -m "$S_WORK/run-fp32-1" -o "$to/" -t 2 --device "$S_DEVICE" --precision "$1" || return
  keep_hash "encode $1" "$to"/*.nacre
}
rerun_decode() { # precision, number
  local to=$S_WORK/speech-$1-$2
  nacre decode "$S_WORK/codes-fp32-1" -m "$S_WORK/run-fp32-1" -o "$to/" -t 2 --device "$S_DEVICE" --precision "$1" || return
  keep_hash "decode $1" "$to"/*.wav
}
part_reruns() {
  local runs=20 i precision what verb count different hashes bad=() text='' all_failed=() total=0
  [ "$S_SMALL" = 0 ] || runs=2
  make_data
  : >"$S_WORK/hashes"
  for verb in train encode decode; do
    jobs_queued=0
    for precision in fp32 tf32 bf16; do
      [ $verb = train ] || [ $precision != bf16 ] || continue # bf16 is for training
      for ((i = 1; i <= runs; ++i)); do queue rerun_$verb $precision $i; done
    done
    echo "== $verb"
    work_off 60
    all_failed+=("${failed[@]/#/$verb }")
    total=$((total + jobs_queued))
    # Without a first run of training there is nothing to encode with; without codes, nothing to decode.
    [ ${#failed[@]} = 0 ] || break
  done
  for what in "train fp32" "train tf32" "train bf16" "encode fp32" "encode tf32" "decode fp32" "decode tf32"; do
    mapfile -t hashes < <(grep "^$what " "$S_WORK/hashes" | cut -d' ' -f3 | sort -u)
    count=$(grep -c "^$what " "$S_WORK/hashes")
    different=${#hashes[@]}
    echo "$what: $count runs, $different different: ${hashes[*]:0:4}"
    [ "$count" = "$runs" ] && [ "$different" = 1 ] || bad+=("$what")
    text+="${text:+, }$(json "$what"): {\"runs\": $count, \"different\": $different, \"sha256\": $(json "${hashes[0]:-}")}"
  done
  facts "\"groups\": {$text}, \"failed\": $(json_list "${all_failed[@]}")"
  if [ ${#bad[@]} = 0 ]; then
    why "$total runs in 7 groups: the same bytes within each"
  else
    why "not $runs equal runs of: $(IFS=,; echo "${bad[*]}")"
    return 1
  fi
}

# ---- bench, peers ---------------------------------------------------------------------------------------------------------
bench_size() { if [ "$S_SMALL" = 1 ]; then echo --small; else echo "--seconds=$S_SECONDS"; fi; }
make_cases() { bench --device "$S_DEVICE" "$(bench_size)" --cases "$S_OUT/cases.json"; }
gpu_state() { # what may explain a figure: clocks, temperature, somebody else's load
  command -v nvidia-smi >/dev/null &&
    nvidia-smi --query-gpu=name,pstate,clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu,memory.used \
      --format=csv,noheader 2>/dev/null
}
measure() { # file, filter
  local before after code failed
  make_cases || { why "nacre_bench --cases failed"; return 1; }
  mapfile -t before < <(gpu_state)
  bench --device "$S_DEVICE" "$(bench_size)" --benchmark_filter="$2" --benchmark_out="$1" --benchmark_out_format=json
  code=$?
  mapfile -t after < <(gpu_state)
  facts "\"gpu_before\": $(json_list "${before[@]}"), \"gpu_after\": $(json_list "${after[@]}")"
  failed=$(grep -c '"error_occurred": true' "$1")
  why "$(($(grep -c '"run_type": "iteration"' "$1") - failed)) cases measured, $failed not"
  return $code
}
part_bench() { measure "$S_OUT/bench.json" "-$baselines"; }
part_baselines() {
  make_cases || { why "nacre_bench --cases failed"; return 1; }
  grep -qE "\"name\":\"[^\"]*$baselines\"" "$S_OUT/cases.json" || skip "this build has neither cuDNN nor cuBLAS"
  measure "$S_OUT/baselines.json" "$baselines"
}
peers() { # set, flags...
  local python=${PYTHON:-python3} code
  [ "$S_EMULATED" = 0 ] || skip "the device is emulated: PyTorch cannot run on it"
  command -v "$python" >/dev/null || skip "$python is not here"
  "$python" -c 'import torch' 2>/dev/null || skip "$python has no PyTorch"
  "$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)' || skip "this PyTorch finds no CUDA device"
  [ -f "$root/bench/peers/op_peers.py" ] || { why "bench/peers/op_peers.py is missing"; return 1; }
  [ -s "$S_OUT/cases.json" ] || make_cases || { why "nacre_bench --cases failed"; return 1; }
  "$python" "$root/bench/peers/op_peers.py" --cases "$S_OUT/cases.json" --out "$S_OUT/peers-$1.json" --device "$S_DEVICE" \
    --set "$@"
  code=$?
  why "$(grep -o '"peer":' "$S_OUT/peers-$1.json" | wc -l) results"
  return $code
}
# They stop by themselves before their limit, and go on in another call.
peers_budget() { echo $((S_LIMIT > 120 ? S_LIMIT - 60 : S_LIMIT / 2)); }
part_peers() {
  local go_on=(--resume)
  [ "$S_RESUME" = 1 ] || { go_on=() && rm -f "$S_OUT/peers-eager.json"; }
  peers eager "${go_on[@]}" --budget "$(peers_budget)"
}
part_peers-compiled() { peers compiled --resume --budget "$(peers_budget)"; }

case "${1:-}" in
  __part)
    shift
    "part_$1"
    exit
    ;;
  __job)
    shift
    one_job "$@"
    exit 0
    ;;
  __call)
    shift
    "$@"
    exit
    ;;
  __sanitized_tests) # for the test of this script
    printf '%s\n' "${sanitized_tests[@]}"
    exit
    ;;
esac

# ---- options ----------------------------------------------------------------------------------------------------------------
wanted=() build='' out=${OUT:-$root/bench/results/work} device=cuda resume=0 small=0 jobs='' seconds=0.1 limit_all='' budget=''
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$self"
      exit 0
      ;;
    --resume) resume=1 && shift && continue ;;
    --small) small=1 && shift && continue ;;
    --part | --build | --out | --device | --jobs | --seconds | --limit | --budget) ;;
    --part=* | --build=* | --out=* | --device=* | --jobs=* | --seconds=* | --limit=* | --budget=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      ;;
    *) usage_error "$1: no such option; see --help" ;;
  esac
  if [ $# -lt 2 ] || [ -z "$2" ]; then usage_error "$1: expected a value"; fi
  case "$1" in
    --part)
      [[ " ${all_parts[*]} " == *" $2 "* ]] || usage_error "--part $2: expected one of ${all_parts[*]}"
      wanted+=("$2")
      ;;
    --build) build=$2 ;;
    --out) out=$2 ;;
    --device)
      [[ $2 =~ ^cuda(:[0-9]{1,3})?$ ]] || usage_error "--device $2: expected cuda or cuda:N"
      device=$2
      ;;
    --jobs)
      [[ $2 =~ ^[1-9][0-9]{0,2}$ ]] || usage_error "--jobs $2: expected a number from 1 to 999"
      jobs=$2
      ;;
    --seconds)
      [[ $2 =~ ^[0-9]{0,4}(\.[0-9]{1,6})?$ && $2 =~ [1-9] ]] || usage_error "--seconds $2: expected a time above 0"
      seconds=$2
      ;;
    --limit)
      [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || usage_error "--limit $2: expected seconds"
      limit_all=$2
      ;;
    --budget)
      [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || usage_error "--budget $2: expected seconds"
      budget=$2
      ;;
  esac
  shift 2
done
parts=()
for part in "${all_parts[@]}"; do
  if [ ${#wanted[@]} = 0 ]; then
    [ "$part" = peers-compiled ] || parts+=("$part")
  elif [[ " ${wanted[*]} " == *" $part "* ]]; then
    parts+=("$part")
  fi
done
if [ -z "$jobs" ]; then
  jobs=$(($(nproc) / 2))
  jobs=$((jobs < 1 ? 1 : jobs > 8 ? 8 : jobs))
fi
# CUDA's own variable: every program, PyTorch too, then sees that GPU alone, and the tests need no option.
if [[ $device == cuda:* && $device != cuda:0 ]]; then
  index=${device#cuda:}
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -r -a visible <<<"$CUDA_VISIBLE_DEVICES"
    [ "$((10#$index))" -lt ${#visible[@]} ] ||
      { echo "gpu_suite: device $device: CUDA_VISIBLE_DEVICES has ${#visible[@]}" >&2; exit 6; }
    export CUDA_VISIBLE_DEVICES=${visible[$((10#$index))]}
  else
    export CUDA_VISIBLE_DEVICES=$((10#$index))
  fi
fi

# ---- the build --------------------------------------------------------------------------------------------------------------
programs=(nacre bench/nacre_bench tests/nacre_tests)
lacks() {
  local p
  for p in "${programs[@]}"; do [ -x "$build/$p" ] || { echo "$p"; return; }; done
}
build_seconds=0
if [ -n "$build" ]; then
  [ -d "$build" ] || usage_error "--build $build: no such folder"
  [ -z "$(lacks)" ] || usage_error "--build $build: has no $(lacks)"
else
  build=$root/build/cuda
  if [ -n "$(lacks)" ]; then
    nvcc=$(command -v nvcc) || nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
    if ! command -v cmake >/dev/null || [ ! -x "$nvcc" ]; then
      echo "gpu_suite: build/cuda has no $(lacks), and cmake and nvcc to build it are not here" >&2
      exit 4
    fi
    echo "building build/cuda with $nvcc"
    start=$SECONDS
    mkdir -p "$root/build/cuda"
    if ! (cd "$root" && cmake --preset cuda -DCMAKE_CUDA_COMPILER="$nvcc" && cmake --build --preset cuda -j "$(nproc)" \
      --target nacre_program nacre_bench nacre_tests) >"$root/build/cuda/suite.log" 2>&1; then
      grep -E 'rror|FAILED' "$root/build/cuda/suite.log" | head -n 20
      echo "gpu_suite: the build failed: build/cuda/suite.log" >&2
      exit 4
    fi
    build_seconds=$((SECONDS - start))
    echo "built in $build_seconds s"
  fi
fi
build=$(readlink -f "$build")
S_BUILD=$build S_LIBRARIES=
if [ -d "$build/lib" ]; then
  S_LIBRARIES=$build/lib
  # The C++ library of the machine that packed, only where this machine's is missing or older.
  ours "$build/nacre" --version >/dev/null 2>&1 || S_LIBRARIES=$build/lib:$build/lib/fallback
fi
# CUDA's libraries, where the system does not find them by itself: of the toolkit, or of a PyTorch that brought its own. Behind
# everything else.
known=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null)
for library in libcufft libcublas libcudnn; do
  [[ ":$known:${LD_LIBRARY_PATH:-}" != *"$library.so."* ]] || continue
  for place in "${CUDA_HOME:-/usr/local/cuda}"/{lib64,targets/*/lib} \
    "$("${PYTHON:-python3}" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)"/nvidia/*/lib; do
    for found in "$place/$library".so.*; do
      [ -e "$found" ] || continue
      [[ ":$S_LIBRARIES:" == *":$place:"* ]] || S_LIBRARIES+=${S_LIBRARIES:+:}$place
      break 2
    done
  done
done
if ! text=$(nacre --version 2>&1); then
  echo "gpu_suite: $build/nacre does not start: $(head -n 1 <<<"$text")" >&2
  exit 4
fi

# ---- the device -------------------------------------------------------------------------------------------------------------
S_DEVICE=cuda
# Where CUDA_VISIBLE_DEVICES chose, messages would speak of cuda:0.
text=$(nacre info speech-16k-small --memory --device "$S_DEVICE" 2>&1 >/dev/null)
code=$?
if [ $code != 0 ]; then
  text=$(grep -v '^$' <<<"$text" | tail -n 1)
  echo "gpu_suite: --device $device: ${text#nacre: }" >&2
  [ $code = 6 ] || echo "gpu_suite: nacre info --device ended with exit code $code" >&2
  exit 6
fi
emulated=0
if grep -q '^NACRE_CUDA:STRING=emulated' "$build/CMakeCache.txt" 2>/dev/null; then
  emulated=1
  [ $small = 1 ] || echo "the device of $build is emulated: taking --small"
  small=1
fi

# ---- the folder -------------------------------------------------------------------------------------------------------------
if ! mkdir -p "$out/state" 2>/dev/null || [ ! -w "$out" ]; then
  echo "gpu_suite: --out $out: cannot be written" >&2
  exit 4
fi
out=$(readlink -f "$out")
work=$(mktemp -d) || exit 4
child=''
leave() {
  trap - EXIT INT TERM
  [ -z "$child" ] || { kill -TERM "$child" 2>/dev/null; wait "$child" 2>/dev/null; }
  rm -rf "$work"
  exit "$1"
}
trap 'leave $?' EXIT
trap 'echo "gpu_suite: interrupted" >&2; leave 130' INT
trap 'echo "gpu_suite: terminated" >&2; leave 143' TERM

commit=unknown
if [ -f "$root/COMMIT" ]; then
  commit=$(head -n 1 "$root/COMMIT")
elif text=$(git -C "$root" rev-parse HEAD 2>/dev/null); then
  commit=$text
  [ -z "$(git -C "$root" status --porcelain --untracked-files=no 2>/dev/null)" ] || commit+=+changes
fi
# Results of another commit, build, device or size are not mixed with these: they move aside.
key="$commit $device $small $(cksum <"$build/bench/nacre_bench")"
if [ "$(cat "$out/state/key" 2>/dev/null)" != "$key" ]; then
  if [ -f "$out/suite.json" ]; then
    rm -rf "$out/earlier"
    mkdir "$out/earlier"
    for file in "$out"/{suite,cases,bench,baselines,peers-eager,peers-compiled}.json "$out"/*.log; do
      [ ! -f "$file" ] || mv "$file" "$out/earlier/"
    done
    echo "results of another commit, build, device or size move to $out/earlier"
  fi
  rm -f "$out"/state/*
  printf '%s\n' "$key" >"$out/state/key"
fi
driver='' gpu=''
if [ $emulated = 0 ] && command -v nvidia-smi >/dev/null; then
  # For a report without benches, which name the device themselves; of several GPUs this cannot say which it was.
  gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sort -u)
  [ "$(wc -l <<<"$gpu")" = 1 ] || gpu=''
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
fi
write_suite() {
  local part first=1
  {
    printf '{"suite": 1,\n "commit": %s,\n "made": %s,\n "device": %s,\n' "$(json "$commit")" "$(json "$(date -u +%Y-%m-%dT%H:%M:%SZ)")" \
      "$(json "$device")"
    printf ' "small": %s,\n "emulated": %s,\n' "$([ $small = 1 ] && echo true || echo false)" \
      "$([ $emulated = 1 ] && echo true || echo false)"
    printf ' "gpu": %s,\n "driver": %s,\n "host": {"system": %s, "cpu": %s, "cores": %d},\n "build_seconds": %d,\n "parts": [' "$(json "$gpu")" "$(json "$driver")" \
      "$(json "$(uname -srm)")" "$(json "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)")" "$(nproc)" \
      "$build_seconds"
    for part in "${all_parts[@]}"; do
      [ -f "$out/state/$part" ] || continue
      [ $first = 1 ] || printf ','
      first=0
      printf '\n  '
      cat "$out/state/$part"
    done
    printf ']}\n'
  } >"$out/suite.json.part" && mv "$out/suite.json.part" "$out/suite.json"
}

# ---- the parts --------------------------------------------------------------------------------------------------------------
export S_BUILD S_DEVICE S_LIBRARIES S_OUT=$out S_SMALL=$small S_RESUME=$resume S_SECONDS=$seconds S_JOBS=$jobs S_EMULATED=$emulated S_DATA=$work/speech
unset OUT # a program's own variable, were it one
summary=() any_failed=0
outcome() { # part, word, exit code, seconds, why, facts
  local word=$2
  [ "$2" != FAILED ] || { word="FAILED (exit $3)"; any_failed=1; }
  printf '{"part": %s, "outcome": %s, "exit": %d, "seconds": %d, "why": %s%s}' "$(json "$1")" "$(json "$2")" "$3" "$4" "$(json "$5")" \
    "${6:+, $6}" >"$out/state/$1"
  summary+=("$(printf '%-15s %-17s %5d s  %s' "$1" "$word" "$4" "$5")")
  printf '   %s, %d s: %s\n' "$word" "$4" "$5"
  write_suite
}
for part in "${parts[@]}"; do
  echo "== $part"
  if [ $resume = 1 ] && grep -q '"outcome": "ok"' "$out/state/$part" 2>/dev/null && [[ $part != peers* ]]; then
    summary+=("$(printf '%-15s %-17s %5s    %s' "$part" ok "" "from an earlier call")")
    echo "   ok in an earlier call"
    continue
  fi
  limit=${limit_all:-${limits[$part]}}
  if [ -n "$budget" ]; then
    left=$((budget - SECONDS))
    if [ $left -lt $((limit / 2)) ]; then
      if [ -f "$out/state/$part" ]; then # what an earlier call found stays
        summary+=("$(printf '%-15s %-17s %5s    %s' "$part" skipped "" "too little of the budget is left; $out has an earlier outcome")")
        echo "   skipped: too little of the budget is left"
      else
        outcome "$part" skipped 0 0 "too little of the budget of $budget s is left"
      fi
      continue
    fi
    [ "$limit" -le $((left - 10)) ] || limit=$((left - 10))
  fi
  S_WORK=$work/$part
  export S_WORK S_LIMIT=$limit
  rm -rf "$S_WORK"
  mkdir -p "$S_WORK"
  start=$SECONDS
  timeout -k 10 "$limit" bash "$self" __part "$part" >"$out/$part.log" 2>&1 </dev/null &
  child=$!
  wait "$child"
  code=$?
  child=''
  took=$((SECONDS - start))
  text=$(cat "$S_WORK/why" 2>/dev/null)
  found=$(cat "$S_WORK/facts" 2>/dev/null)
  case $code in
    0) outcome "$part" ok 0 $took "$text" "$found" ;;
    77) outcome "$part" skipped 0 $took "$text" "$found" ;;
    124 | 137) outcome "$part" FAILED $code $took "stopped after its limit of $limit s${text:+; $text}" "$found" ;;
    *) outcome "$part" FAILED $code $took "${text:-see $part.log}" "$found" ;;
  esac
  if [ $code != 0 ] && [ $code != 77 ]; then tail -n 25 "$out/$part.log" | cut -c 1-300 | sed 's/^/   | /'; fi
  rm -rf "$S_WORK"
done

echo "== report"
write_suite
report=0
if command -v python3 >/dev/null; then
  # A run in earnest, in the usual place, makes the result that is kept.
  to=$out
  [ "$out" != "$root/bench/results/work" ] || [ $small = 1 ] || to=$root/bench/results
  python3 "$root/scripts/gpu_report.py" --out "$to" "$out" || report=1
else
  echo "   skipped: python3 is not here; run scripts/gpu_report.py on $out elsewhere"
fi

echo
printf '%s\n' "${summary[@]}"
[ $report = 0 ] || echo "report          FAILED"
echo "logs and figures: $out"
[ $any_failed = 0 ] && [ $report = 0 ]
