#!/usr/bin/env bash
# Everything that a GPU is needed for, in one command: tests, sanitizers, captures, reruns, benches, peers, and a report.
# Needs an NVIDIA driver and the CUDA libraries; python3 for the report, PyTorch for the peers, compute-sanitizer for its part.
#
#   scripts/gpu_suite.sh [--part NAME]... [--require NAME]... [--build DIR] [--out DIR] [--device cuda:N] [--resume]
#                        [--small] [--jobs N] [--seconds S] [--limit SECONDS] [--budget SECONDS|none]
#
#   tests            every test on the device, each in a process of its own; with NACRE_TEST_MODEL and NACRE_TEST_AUDIO set,
#                    also that a trained model's codes are those of the CPU
#   sanitizer        compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over small benches and some tests
#   capture          captured steps against steps that run kernel by kernel, in the tests and in nacre train
#   reruns           twenty runs of training, encoding and decoding must end in the same bytes, in every precision
#   bench            nacre_bench on the device
#   baselines        cuDNN and cuBLAS on the shapes of the convolutions, where this build and machine have them
#   peers            the same cases in PyTorch: per case what it does by itself, and cuDNN's and AdamW's best known setting
#   peers-all        all ways to write them but compiled ones; goes on where peers or an earlier call stopped
#   peers-compiled   the same compiled; goes on where an earlier one stopped. Neither is among the parts of a plain call
#
#   --part NAME      only this part; may be repeated. Parts run in the order above
#   --require NAME   this part has failed if it cannot run here (no compute-sanitizer, no PyTorch); may be repeated
#   --build DIR      the build to take (default build/cuda; where that is missing, it is built by the preset cuda)
#   --out DIR        logs, figures and the report (default: $OUT if it is set, else bench/results/work)
#   --device cuda:N  which GPU (default cuda)
#   --resume         leave out what DIR already has, of this commit, build and device: parts that are ok; of others the tests
#                    that passed, the cases and peers that are measured
#   --small          small shapes, few tests, few reruns: proves that the suite works. Its report has no times
#   --jobs N         processes beside each other where nothing is timed (default: half of the cores, at most 8)
#   --seconds S      of each case of bench and baselines, warm and cold each (default 0.1; at least 50 runs of most)
#   --budget SECONDS for the whole call but a build (default 470; or none). What is left is divided among the parts to come,
#                    and a part that spends its share is stopped: it is incomplete, and --resume goes on with it
#   --limit SECONDS  no part takes longer than this (default: its share of the budget; without a budget, an hour)
#
# A part that fails does not stop the rest, nor does a case that takes the device with it: it is recorded as failed, and
# another process goes on behind it. DIR gets PART.log of each, suite.json, cases.json, bench.json, baselines.json,
# peers-eager.json, peers-compiled.json, and what scripts/gpu_report.py makes of them, <gpu>.json and <gpu>.md; these two go to
# bench/results itself where DIR is the default and shapes are not small. Compiled peers of a later call into another folder
# are added by scripts/gpu_report.py --add. Python and its PyTorch are those of $PYTHON (default python3); where there is none,
# a plainer pair of files is written, without peers.
#
# Exit codes: 0 every part is ok or cannot run here, 1 some part failed, 2 usage, 3 none failed but some part is incomplete,
# 4 no build, 6 no device, 129, 130 and 143 signals.
set -u
export LC_ALL=C
self=$(readlink -f "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$self")")
all_parts=(tests sanitizer capture reruns bench baselines peers peers-all peers-compiled)
by_wish=(peers-all peers-compiled) # not in a plain call
# How what is left of the budget is divided among the parts to come.
declare -A shares=([tests]=90 [sanitizer]=40 [capture]=25 [reruns]=35 [bench]=160 [baselines]=60 [peers]=60
  [peers-all]=200 [peers-compiled]=200)

usage_error() {
  echo "gpu_suite: $*" >&2
  exit 2
}

# ---- inside a part: the script runs itself as `gpu_suite.sh __part NAME`, under `timeout`, with these set ------------------
# S_BUILD S_OUT S_DEVICE S_SMALL S_RESUME S_SECONDS S_JOBS S_LIBRARIES S_EMULATED S_WORK S_DATA S_LIMIT S_PART S_PYTHON
#
# A part returns 0 ok, 3 incomplete, 77 not run, anything else: it failed. At its limit, or when the suite is ended, it gets
# a SIGTERM, as has every process it started; what it was doing is ended, and it tells what it has.
stopping=0
stop_jobs() {
  local running
  stopping=1
  running=$(jobs -p)
  # shellcheck disable=SC2086
  [ -z "$running" ] || kill -TERM $running 2>/dev/null
}

# What the build needs and the machine lacks lies beside it in a packed tree; nothing else shall see those libraries.
ours() { env ${S_LIBRARIES:+LD_LIBRARY_PATH="$S_LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"} "$@"; }
nacre() { ours "$S_BUILD/nacre" "$@"; }
bench() { ours "$S_BUILD/bench/nacre_bench" "$@"; }
run_tests() { NACRE_TEST_DEVICES=cuda ours "$S_BUILD/tests/nacre_tests" "$@"; }

json() { # a string, quoted
  local s=${1//\\/\\\\}
  s=${s//\"/\\\"}
  printf '"%s"' "${s//[[:cntrl:]]/ }"
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

# Jobs beside each other: `queue WORD...` adds one, `work_off SECONDS` runs all, and prints how each ended when it ends, with
# the log of those that failed. WORD... is a function of this file and its arguments. Those whose names S_DONE has are left
# out: they passed in an earlier call.
queue() {
  jobs_queued=$((${jobs_queued:-0} + 1))
  printf '%s\0' "$@" >"$S_WORK/job-$jobs_queued"
}
work_off() { # seconds per job, at most half of the part's: one job alone shall not be able to end it
  local next=1 seconds=$(($1 < S_LIMIT / 2 ? $1 : S_LIMIT / 2))
  [ $seconds -gt 0 ] || seconds=1
  # Where little of the budget was left a job that ran past its limit may have been well: it is told, and no failure.
  hurried=0
  [ $seconds -ge "$1" ] || [ $seconds -ge "$S_PATIENCE" ] || hurried=1
  passed=0 failed=() slow=() unfinished=0 shown=0
  : >"$S_WORK/outcomes"
  while :; do
    while [ $stopping = 0 ] && [ $next -le "$jobs_queued" ] && [ "$(jobs -pr | wc -l)" -lt "$S_JOBS" ]; do
      one_job $next $seconds &
      next=$((next + 1))
    done
    [ -n "$(jobs -pr)" ] || [ $next -le "$jobs_queued" ] || break
    [ $stopping = 0 ] || [ -n "$(jobs -pr)" ] || break
    wait -n
    show_outcomes $seconds
  done
  show_outcomes $seconds
  unfinished=$((jobs_queued - passed - ${#failed[@]}))
  [ $stopping = 1 ] || [ $unfinished = ${#slow[@]} ] || failed+=("$((unfinished - ${#slow[@]})) jobs left no outcome")
}
show_outcomes() { # seconds per job
  local code ms number name lines
  mapfile -t -s "$shown" lines <"$S_WORK/outcomes"
  shown=$((shown + ${#lines[@]}))
  [ ${#lines[@]} -gt 0 ] || return 0
  while read -r code ms number name; do
    case $code in
      0) passed=$((passed + 1)) && printf 'ok      ' ;;
      stopped) printf 'stopped ' ;;
      124)
        if [ $hurried = 1 ]; then slow+=("$name"); else failed+=("$name"); fi
        printf 'exit 124'
        ;;
      *) failed+=("$name") && printf 'exit %-3s' "$code" ;;
    esac
    printf '%6d.%d s  %s\n' $((ms / 1000)) $((ms % 1000 / 100)) "$name"
    [ "$code" != 0 ] || continue
    printf '==== %s%s\n' "$name" "$([ "$code" = 124 ] && echo " ran past $1 s")"
    tail -c 20000 "$S_WORK/job-$number.log"
  done < <(printf '%s\n' "${lines[@]}")
}
one_job() { # number, seconds
  local words start code=0 job='' name tries ended=0
  # The job is a group of processes of its own, which `timeout` ends as a whole, at the job's limit or when it is told to.
  trap 'stopping=1; [ -z "$job" ] || kill -TERM "$job" 2>/dev/null' TERM
  mapfile -d '' -t words <"$S_WORK/job-$1"
  name=${words[*]:1}
  start=$(now_ms)
  if [ -z "${S_DONE:-}" ] || ! grep -qxF -- "$name" "$S_DONE"; then
    timeout -k 4 "$2" bash "$self" __call "${words[@]}" >"$S_WORK/job-$1.log" 2>&1 &
    job=$!
    [ $stopping = 0 ] || kill -TERM "$job" 2>/dev/null
    while :; do
      wait "$job"
      code=$?
      kill -0 "$job" 2>/dev/null || break # else a signal ended the waiting alone
    done
    ended=$stopping
    # `timeout` waits for the one process it began; others of the group may not heed its signal.
    for ((tries = 0; tries < 10; ++tries)); do
      kill -0 -- "-$job" 2>/dev/null || break
      sleep 0.1
    done
    ! kill -KILL -- "-$job" 2>/dev/null || echo "$name left processes, which were killed"
    [ $code != 0 ] || [ -z "${S_DONE:-}" ] || printf '%s\n' "$name" >>"$S_DONE"
    [ $code = 0 ] || [ $ended = 0 ] || code=stopped
  fi
  printf '%s %s %s %s\n' $code $(($(now_ms) - start)) "$1" "$name" >>"$S_WORK/outcomes"
}
conclude() { # how a part of jobs ends, after its line
  if [ $unfinished != 0 ]; then
    why "$(cat "$S_WORK/why"); $unfinished stopped or not begun${slow[0]:+, of these too slow for this budget: $(printf '%s; ' "${slow[@]:0:3}")}"
    touch "$S_WORK/unfinished"
  fi
  [ ${#failed[@]} = 0 ] || return 1
  [ $unfinished = 0 ] || return 3
}
remember() { # a part whose jobs need no others: what passed is not run again by --resume
  S_DONE=$S_OUT/state/$S_PART.done
  [ "$S_RESUME" = 1 ] || : >"$S_DONE"
  touch "$S_DONE"
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
  remember
  work_off 150
  facts "\"cases\": ${#names[@]}, \"passed\": $passed, \"failed\": $(json_list "${failed[@]}")"
  why "$passed of ${#names[@]} tests passed"
  conclude
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
  remember
  work_off 150
  facts "\"runs\": $jobs_queued, \"clean\": $passed, \"failed\": $(json_list "${failed[@]}")"
  why "$passed of $jobs_queued runs under memcheck, racecheck, initcheck and synccheck are clean"
  conclude
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
  remember
  work_off 140
  facts "\"checks\": $jobs_queued, \"passed\": $passed, \"failed\": $(json_list "${failed[@]}")"
  why "$passed of $jobs_queued comparisons of captured with eager steps are equal"
  conclude
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
  local late=0 runs=20 i precision what verb count different hashes bad=() text='' all_failed=() total=0
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
    [ $stopping = 0 ] && [ ${#slow[@]} = 0 ] || late=1
    # Without a first run of training there is nothing to encode with; without codes, nothing to decode.
    [ ${#failed[@]} = 0 ] && [ $unfinished = 0 ] || break
  done
  for what in "train fp32" "train tf32" "train bf16" "encode fp32" "encode tf32" "decode fp32" "decode tf32"; do
    mapfile -t hashes < <(grep "^$what " "$S_WORK/hashes" | cut -d' ' -f3 | sort -u)
    count=$(grep -c "^$what " "$S_WORK/hashes")
    different=${#hashes[@]}
    echo "$what: $count runs, $different different: ${hashes[*]:0:4}"
    # What was stopped, or took too long for this budget, is missing; runs that are there must be equal all the same.
    if [ "$different" -gt 1 ] || { [ $late = 0 ] && [ "$count" != "$runs" ]; }; then bad+=("$what"); fi
    text+="${text:+, }$(json "$what"): {\"runs\": $count, \"different\": $different, \"sha256\": $(json "${hashes[0]:-}")}"
  done
  facts "\"groups\": {$text}, \"failed\": $(json_list "${all_failed[@]}")"
  [ $late = 0 ] || touch "$S_WORK/unfinished"
  if [ ${#bad[@]} = 0 ] && [ ${#all_failed[@]} = 0 ] && [ $late = 1 ]; then
    why "$(wc -l <"$S_WORK/hashes") runs: the same bytes within each group; the rest stopped or not begun"
    return 3
  elif [ ${#bad[@]} = 0 ] && [ ${#all_failed[@]} = 0 ]; then
    why "$total runs in 7 groups: the same bytes within each"
  else
    why "not $runs equal runs of: $(IFS=,; echo "${bad[*]:-${all_failed[*]}}")"
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
# One process after another, until all cases are done: a kernel that breaks the device, or hangs, ends nacre_bench, and the next
# process goes on behind its case. Each leaves a file, whole but for its end, and they become one.
measure() { # bench or baselines, filter
  local out=$S_OUT/$1.json pieces=$S_OUT/state/$1-pieces begun=$S_OUT/state/$1-pieces/begun
  local before after code=0 n last bad failed left all limit=$((S_LIMIT / 2 < 60 ? S_LIMIT / 2 : 60))
  make_cases || { why "nacre_bench --cases failed"; return 1; }
  [ "$S_RESUME" = 1 ] || rm -rf "$pieces"
  mkdir -p "$pieces" && touch "$begun"
  n=$(find "$pieces" -name '*.json' | wc -l)
  mapfile -t before < <(gpu_state)
  for ((left = 20; left > 0; --left)); do
    n=$((n + 1))
    last=$(wc -l <"$begun")
    bench --device "$S_DEVICE" "$(bench_size)" --benchmark_filter="$2" --progress "$begun" --limit $((limit > 0 ? limit : 1)) \
      --benchmark_out="$pieces/$(printf %03d $n).json" --benchmark_out_format=json
    code=$?
    if [ $stopping = 1 ]; then # the case that it was in is nobody's failure
      [ "$(wc -l <"$begun")" = "$last" ] || recorded "$pieces/$(printf %03d $n).json" "$(tail -n 1 "$begun")" || sed -i '$d' "$begun"
      break
    fi
    [ $code -gt 1 ] || break
    if [ "$(wc -l <"$begun")" = "$last" ]; then # without a case to blame
      echo "nacre_bench ended with exit code $code before its first case"
      break
    fi
    if ! recorded "$pieces/$(printf %03d $n).json" "$(tail -n 1 "$begun")"; then
      n=$((n + 1))
      broken "$(tail -n 1 "$begun")" "$code" "$limit" >"$pieces/$(printf %03d $n).json"
    fi
    echo "nacre_bench ended with exit code $code in $(tail -n 1 "$begun"); another process goes on"
  done
  mapfile -t after < <(gpu_state)
  merge "$pieces"/*.json >"$out"
  facts "\"gpu_before\": $(json_list "${before[@]}"), \"gpu_after\": $(json_list "${after[@]}"), \"processes\": $((21 - left)), \"failed\": $(
    mapfile -t bad < <(bad_cases "$out")
    json_list "${bad[@]}"
  )"
  failed=$(bad_cases "$out" | wc -l)
  why "$(($(grep -c '"run_type": "iteration"' "$out") - $(grep -c '"error_occurred": true' "$out"))) cases measured, $failed failed"
  if [ $stopping = 1 ]; then
    touch "$S_WORK/unfinished"
    all=$(grep -o '"name":"[^"]*"' "$S_OUT/cases.json" | if [[ $2 == -* ]]; then grep -vcE "${2#-}\""; else grep -cE "$2\""; fi)
    why "$(cat "$S_WORK/why"), $((all - $(wc -l <"$begun"))) not begun"
  fi
  [ "$failed" = 0 ] || return 1
  [ $stopping = 0 ] || return 3
  return $code
}
recorded() { grep -qF "\"name\": \"$2/iterations:" "$1" || grep -qF "\"name\": \"$2\"" "$1"; } # file, case
broken() { # case, exit code, limit: a result in Google Benchmark's words
  local what="nacre_bench ended with exit code $2"
  [ "$2" != 124 ] || what="ran past $3 s"
  [ "$2" -le 128 ] || [ "$2" -gt 160 ] || what="nacre_bench ended by signal $(kill -l "$2")"
  printf '    {\n      "name": %s,\n      "run_type": "iteration",\n      "error_occurred": true,\n      "error_message": %s\n    }\n' \
    "$(json "$1")" "$(json "$what")"
}
bad_cases() { # names; what was skipped is none
  awk '/^    \{/ { name = bad = "" }
    /^ *"name": / { name = $0; gsub(/^ *"name": "|",?$/, "", name); sub(/\/iterations:.*/, "", name) }
    /^ *"error_occurred": true/ { bad = 1 }
    /^ *"error_message": "skipped: / { bad = "" }
    /^    \}/ { if (bad) print name }' "$1"
}
merge() { # files of --benchmark_out, some without their end: the first one's context, and all whole results
  awk 'FNR == 1 { head = 1; element = "" }
    head && /^  "benchmarks": \[/ { if (!begun++) print context $0; context = ""; head = 0; next }
    head && !/^    \{/ { context = context $0 "\n"; next }
    /^    \{/ { head = 0; element = "    {"; next }
    element != "" { element = element "\n" ($0 ~ /^    \}/ ? "    }" : $0) }
    element != "" && /^    \}/ { printf "%s%s", between, element; between = ",\n"; element = "" }
    END { if (!begun) print "{\n  \"context\": {},\n  \"benchmarks\": ["; print "\n  ]\n}" }' "$@"
}
part_bench() { measure bench "-$baselines"; }
part_baselines() {
  make_cases || { why "nacre_bench --cases failed"; return 1; }
  grep -qE "\"name\":\"[^\"]*$baselines\"" "$S_OUT/cases.json" || skip "this build has neither cuDNN nor cuBLAS"
  measure baselines "$baselines"
}
peers() { # set, flags...
  local python=$S_PYTHON code
  [ "$S_EMULATED" = 0 ] || skip "the device is emulated: PyTorch cannot run on it"
  command -v "$python" >/dev/null || skip "$python is not here"
  "$python" -c 'import torch' 2>/dev/null || skip "$python has no PyTorch"
  "$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)' || skip "this PyTorch finds no CUDA device"
  [ -f "$root/bench/peers/op_peers.py" ] || { why "bench/peers/op_peers.py is missing"; return 1; }
  [ -s "$S_OUT/cases.json" ] || make_cases || { why "nacre_bench --cases failed"; return 1; }
  "$python" "$root/bench/peers/op_peers.py" --cases "$S_OUT/cases.json" --out "$S_OUT/peers-$1.json" --device "$S_DEVICE" \
    --set "$@"
  code=$?
  why "$(cat "$S_OUT/peers-$1.json" 2>/dev/null | grep -o '"peer":' | wc -l) results"
  return $code # 3: its budget was spent
}
# They stop by themselves before their limit, but for the one that is running, and go on in another call.
peers_budget() { echo $((S_LIMIT > 40 ? S_LIMIT - 20 : (S_LIMIT + 1) / 2)); }
core='eager|cudnn_benchmark(_tf32)?|adamw_fused_captured|addmm_captured'
part_peers() {
  local go_on=(--resume)
  [ "$S_RESUME" = 1 ] || { go_on=() && rm -f "$S_OUT/peers-eager.json"; }
  peers eager "${go_on[@]}" --peers "$core" --seconds 0.05 --limit 20 --budget "$(peers_budget)"
}
part_peers-all() { peers eager --resume --limit 60 --budget "$(peers_budget)"; }
part_peers-compiled() { peers compiled --resume --budget "$(peers_budget)"; }

case "${1:-}" in
  __part)
    S_PART=$2
    trap stop_jobs TERM
    "part_$2"
    code=$?
    # What was doing itself what it does has been ended by the signal.
    [ $stopping = 0 ] || [ $code -le 128 ] || code=124
    exit $code
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
wanted=() build='' out=${OUT:-$root/bench/results/work} device=cuda resume=0 small=0 jobs='' seconds=0.1 limit_all='' budget=470
required=() called=("$@")
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$self"
      exit 0
      ;;
    --resume) resume=1 && shift && continue ;;
    --small) small=1 && shift && continue ;;
    --part | --require | --build | --out | --device | --jobs | --seconds | --limit | --budget) ;;
    --part=* | --require=* | --build=* | --out=* | --device=* | --jobs=* | --seconds=* | --limit=* | --budget=*)
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
    --require)
      [[ " ${all_parts[*]} " == *" $2 "* ]] || usage_error "--require $2: expected one of ${all_parts[*]}"
      required+=("$2")
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
      [[ $2 =~ ^[1-9][0-9]{0,5}$ || $2 = none ]] || usage_error "--budget $2: expected seconds, or none"
      budget=$2
      ;;
  esac
  shift 2
done
parts=()
for part in "${all_parts[@]}"; do
  if [ ${#wanted[@]} = 0 ]; then
    [[ " ${by_wish[*]} " == *" $part "* ]] || parts+=("$part")
  elif [[ " ${wanted[*]} " == *" $part "* ]]; then
    parts+=("$part")
  fi
done
for part in "${required[@]}"; do
  [[ " ${parts[*]} " == *" $part "* ]] || usage_error "--require $part: is not among the parts of this call"
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
begun=$SECONDS # a build is not in the budget
S_BUILD=$build S_LIBRARIES='' S_PYTHON=${PYTHON:-python3}
if [ -d "$build/lib" ]; then
  S_LIBRARIES=$build/lib
  # The C++ library of the machine that packed, only where this machine's is missing or older.
  ours "$build/nacre" --version >/dev/null 2>&1 || S_LIBRARIES=$build/lib:$build/lib/fallback
fi
# CUDA's libraries, where the system does not find them by itself: of the toolkit, or of a PyTorch that brought its own. Behind
# everything else.
known=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null)
packages=''
for library in libcufft libcublas libcudnn; do
  [[ ":$known:${LD_LIBRARY_PATH:-}" != *"$library.so."* ]] || continue
  [ -n "$packages" ] || packages=$("$S_PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null) || packages=none
  for place in "${CUDA_HOME:-/usr/local/cuda}"/{lib64,targets/*/lib} \
    "$packages"/nvidia/*/lib; do
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
built=$(sed -n 's/^commit //p' <<<"$text")
compiler=$(sed -n 's/^built by //p' <<<"$text")

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
  trap - EXIT HUP INT TERM
  # `timeout` hands the signal to the part and all that it began, and ends what does not heed it.
  [ -z "$child" ] || { kill -TERM "$child" 2>/dev/null; wait "$child" 2>/dev/null; kill -KILL -- "-$child" 2>/dev/null; }
  rm -rf "$work"
  exit "$1"
}
trap 'leave $?' EXIT
trap 'leave 129' HUP
trap 'echo "gpu_suite: interrupted" >&2; leave 130' INT
trap 'echo "gpu_suite: terminated" >&2; leave 143' TERM

commit=unknown
if [ -f "$root/COMMIT" ]; then
  commit=$(head -n 1 "$root/COMMIT")
elif text=$(git -C "$root" rev-parse HEAD 2>/dev/null); then
  commit=$text
  [ -z "$(git -C "$root" status --porcelain --untracked-files=no 2>/dev/null)" ] || commit+=+changes
fi
# What the programs say is shortened, and has "-dirty" for changes.
stale='' text=${built%-dirty} wish=${commit%+changes}
wish=${wish:0:${#text}}
[[ $commit != *+changes ]] || wish+=-dirty
[ "$commit" = unknown ] || [ "$built" = "$wish" ] || stale="the programs were built from ${built:-an unknown commit}"
[ -z "$stale" ] || echo "WARNING: $stale, this is $commit"
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
[ -n "$driver" ] || driver=$(sed -n 's/^NVRM version:.* \([0-9][0-9]*\.[0-9.]*\) .*/\1/p' /proc/driver/nvidia/version 2>/dev/null)
write_suite() {
  local part first=1
  {
    printf '{"suite": 1,\n "built": %s,\n "compiler": %s,\n "warning": %s,\n' "$(json "$built")" "$(json "$compiler")" "$(json "$stale")"
    printf ' "commit": %s,\n "made": %s,\n "device": %s,\n' "$(json "$commit")" "$(json "$(date -u +%Y-%m-%dT%H:%M:%SZ)")" \
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
export S_BUILD S_DEVICE S_LIBRARIES S_OUT=$out S_SMALL=$small S_RESUME=$resume S_SECONDS=$seconds S_JOBS=$jobs S_EMULATED=$emulated S_DATA=$work/speech S_PYTHON S_PATIENCE=${S_PATIENCE:-45}
unset OUT # a program's own variable, were it one
summary=() any_failed=0 incomplete=() not_run=()
outcome() { # part, word, exit code, seconds, why, facts
  local word=$2
  case $2 in
    FAILED)
      word="FAILED (exit $3)" any_failed=1
      [ ! -e "$S_WORK/unfinished" ] || incomplete+=("$1")
      ;;
    incomplete) incomplete+=("$1") ;;
    skipped) word="not run" && not_run+=("$1") ;;
  esac
  printf '{"part": %s, "outcome": %s, "exit": %d, "seconds": %d, "why": %s%s}' "$(json "$1")" "$(json "$2")" "$3" "$4" "$(json "$5")" \
    "${6:+, $6}" >"$out/state/$1"
  summary+=("$(printf '%-15s %-17s %5d s  %s' "$1" "$word" "$4" "$5")")
  printf '   %s, %d s: %s\n' "$word" "$4" "$5"
  write_suite
}
weight() { # of a part. Those that run beside each other take longer where there are few cores
  local thirds=$((24 / jobs))
  thirds=$((thirds < 3 ? 3 : thirds > 9 ? 9 : thirds))
  case $1 in
    tests | sanitizer | capture | reruns) echo $((shares[$1] * thirds / 3)) ;;
    *) echo "${shares[$1]}" ;;
  esac
}
done_before() { [ $resume = 1 ] && grep -q '"outcome": "ok"' "$out/state/$1" 2>/dev/null && [[ $1 != peers* ]]; }
cannot_run() { # as far as that can be seen at once
  case $1 in
    sanitizer) ! find_sanitizer >/dev/null ;;
    peers*) ! "$S_PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null ;;
    *) false ;;
  esac
}
no_share=' '
for part in "${parts[@]}"; do ! cannot_run "$part" || no_share+="$part "; done
parts_limit() { # of the part $1, where $@ are still to come: its share of what is left, less what ending and the report take
  local part all=0 left=$((begun + budget - 14 - SECONDS))
  for part in "$@"; do done_before "$part" || [[ $no_share == *" $part "* && $part != "$1" ]] || all=$((all + $(weight "$part"))); done
  echo $((left * $(weight "$1") / all))
}
for ((i = 0; i < ${#parts[@]}; ++i)); do
  part=${parts[i]}
  echo "== $part"
  if done_before "$part"; then
    summary+=("$(printf '%-15s %-17s %5s    %s' "$part" ok "" "from an earlier call")")
    echo "   ok in an earlier call"
    continue
  fi
  limit=3600
  [ "$budget" = none ] || limit=$(parts_limit "${parts[@]:i}")
  [ -z "$limit_all" ] || [ "$limit" -le "$limit_all" ] || limit=$limit_all
  if [ "$limit" -lt 1 ]; then
    if [ -f "$out/state/$part" ]; then # what an earlier call found stays
      summary+=("$(printf '%-15s %-17s %5s    %s' "$part" incomplete "" "nothing of the budget is left; $out has an earlier outcome")")
      incomplete+=("$part")
      echo "   incomplete: nothing of the budget is left"
    else
      outcome "$part" incomplete 3 0 "not begun: nothing of the budget of $budget s is left"
    fi
    continue
  fi
  S_WORK=$work/$part
  export S_WORK S_LIMIT=$limit
  rm -rf "$S_WORK"
  mkdir -p "$S_WORK"
  start=$SECONDS
  timeout --preserve-status -k 8 "$limit" bash "$self" __part "$part" >"$out/$part.log" 2>&1 </dev/null &
  child=$!
  wait "$child"
  code=$?
  kill -KILL -- "-$child" 2>/dev/null # whatever has not heeded the signal at its limit
  child=''
  took=$((SECONDS - start))
  text=$(cat "$S_WORK/why" 2>/dev/null)
  found=$(cat "$S_WORK/facts" 2>/dev/null)
  case $code in
    0) outcome "$part" ok 0 $took "$text" "$found" ;;
    3) outcome "$part" incomplete 3 $took "$text" "$found" ;;
    77)
      if [[ " ${required[*]} " == *" $part "* ]]; then
        outcome "$part" FAILED 77 $took "required, and not run: $text" "$found"
      else
        outcome "$part" skipped 0 $took "$text" "$found"
      fi
      ;;
    124 | 137 | 143) outcome "$part" FAILED 124 $took "stopped after its limit of $limit s${text:+; $text}" "$found" ;;
    *) outcome "$part" FAILED $code $took "${text:-see $part.log}" "$found" ;;
  esac
  if [ $code != 0 ] && [ $code != 77 ]; then tail -n 25 "$out/$part.log" | cut -c 1-300 | sed 's/^/   | /'; fi
  rm -rf "$S_WORK"
done

# What scripts/gpu_report.py would write needs Python. Without it: the facts as they lie here in one file, and their tables.
plain_report() { # folder
  local name slug file
  name=$(sed -n 's/^ *"description": "\([^",]*\).*/\1/p' "$out/bench.json" 2>/dev/null | head -n 1)
  [ -n "$name" ] || name=$gpu
  slug=$(tr '[:upper:]' '[:lower:]' <<<"${name:-unknown GPU}" | sed 's/[^a-z0-9]\{1,\}/-/g; s/^-*//; s/-*$//')
  [ $emulated = 0 ] || slug=emulated name="Emulated on the CPU"
  mkdir -p "$1" || return
  {
    printf '{"plain": 1,\n"device": %s,\n"commit": %s,\n"timings": %s' "$(json "$name")" "$(json "$commit")" \
      "$([ $small = 0 ] && echo true || echo false)"
    for file in suite cases bench baselines peers-eager peers-compiled; do
      [ -s "$out/$file.json" ] || continue
      printf ',\n"%s": ' "$file"
      grep -vE '^ *"(host_name|executable|load_avg)":' "$out/$file.json"
    done
    echo "}"
  } >"$1/$slug.json.part" && mv "$1/$slug.json.part" "$1/$slug.json" || return
  {
    printf '# %s\n\nWritten without Python: scripts/gpu_report.py makes the whole page, with peers, of the same folder.\n' "${name:-GPU of unknown name}"
    printf 'Times are in microseconds.\n\n| | |\n|---|---|\n| commit | %s |\n| built from | %s |\n| compiler | %s |\n| driver | %s |\n' \
      "$commit" "$built" "$compiler" "${driver:--}"
    [ ! -f "$out/bench.json" ] || sed -n '/"benchmarks": \[/q; s/^    "\([^"]*\)": "\(.*\)",\{0,1\}$/| \1 | \2 |/p' "$out/bench.json" |
      grep -vE '^\| (host_name|executable|date|commit|compiler) '
    printf '\n## Parts\n\n| part | outcome | s | |\n|---|---|---|---|\n'
    for file in "${all_parts[@]}"; do
      [ ! -f "$out/state/$file" ] ||
        sed 's/^{"part": "\([^"]*\)", "outcome": "\([^"]*\)", "exit": \([0-9]*\), "seconds": \([0-9]*\), "why": "\(\([^"\\]\|\\.\)*\)".*/| \1 | \2 (exit \3) | \4 | \5 |\n/' \
          "$out/state/$file"
    done
    for file in bench baselines; do
      [ -f "$out/$file.json" ] || continue
      printf '\n## %s\n\n| case | cold | warm | p10 | p90 | %% copy | %% peak | %% floor | launches | |\n|---|---|---|---|---|---|---|---|---|---|\n' $file
      awk -v timed=$((1 - small)) 'function show(key) { return key in v && (timed || key == "launches") ? sprintf("%.4g", v[key]) : "-" }
        /^    \{/ { delete v; name = error = "" }
        /^ *"[^"]*": / { key = $1; gsub(/[":]/, "", key); value = $0; sub(/^ *"[^"]*": /, "", value); sub(/,$/, "", value); gsub(/"/, "", value)
          if (key == "name") { name = value; sub(/\/iterations:.*/, "", name) }
          else if (key == "error_message") error = value ~ /^skipped/ ? value : "FAILED " value
          else v[key] = value }
        /^    \}/ && name != "" { printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", name, show("cold_us"), show("warm_us"),
          show("p10_us"), show("p90_us"), show("copy%"), show("peak%"), show("floor%"), show("launches"), error; name = "" }' "$out/$file.json"
    done
  } >"$1/$slug.md.part" && mv "$1/$slug.md.part" "$1/$slug.md" || return
  echo "   $1/$slug.md: plain, since $S_PYTHON is not here; run scripts/gpu_report.py on $out where there is one"
}

echo "== report"
write_suite
report=0
# A run in earnest, in the usual place, makes the result that is kept.
to=$out
[ "$out" != "$root/bench/results/work" ] || [ $small = 1 ] || to=$root/bench/results
if command -v "$S_PYTHON" >/dev/null; then
  "$S_PYTHON" "$root/scripts/gpu_report.py" --out "$to" "$out" || report=1
else
  plain_report "$to" || report=1
fi

echo
printf '%s\n' "${summary[@]}"
[ $report = 0 ] || echo "report          FAILED"
[ -z "$stale" ] || echo "WARNING: $stale, this is $commit"
[ ${#not_run[@]} = 0 ] || echo "not run: ${not_run[*]} (why: above; --require NAME makes that a failure)"
if [ ${#incomplete[@]} -gt 0 ]; then
  [ $resume = 1 ] || called+=(--resume)
  echo "incomplete: ${incomplete[*]}; to go on:$(printf ' %q' "$0" "${called[@]}")"
fi
echo "logs and figures: $out"
[ $any_failed = 0 ] && [ $report = 0 ] || exit 1
[ ${#incomplete[@]} = 0 ] || exit 3
