#!/usr/bin/env bash
# Runs everything that needs a GPU: probes, tests, sanitizers, captures, reruns, training, benches, peers, and a report.
# Needs an NVIDIA driver and the CUDA libraries; python3 for the report, PyTorch for the peers, and compute-sanitizer for
# the part sanitizer. docs/gpu.md is a guide for a rented GPU.
#
#   scripts/gpu_suite.sh --plan first|second [OPTION]...
#   scripts/gpu_suite.sh [--part NAME]... [OPTION]...
#
# A plan is one call of a given maximum length, with the most valuable parts first. Each part has a share of the time. Time
# that a part does not use goes to the parts after it. Each part writes its results when it ends, so that an interruption
# loses only the current part.
#
#   --plan first     at most 420 s: probes (60 at most), tests (90), mission (110), headline (100), headline-peers (46)
#   --plan second    at most 200 s: sanitizer (50), capture (25), reruns (35), peers-best (76)
#
#   probes           nacre_probes: checks what nacre assumes about the hardware, and measures the rates it reaches
#   tests            every test on the device, each in its own process, those of training and coding first; with
#                    NACRE_TEST_MODEL and NACRE_TEST_AUDIO set, also a test that a trained model gives the CPU's codes
#   sanitizer        compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over small benches and some tests
#   capture          compares captured steps with steps that run kernel by kernel, in the tests and in nacre train
#   reruns           twenty runs of training, encoding and decoding must end in the same bytes, in every precision
#   mission          nacre train with the training command of docs/training.md in bf16 and in fp32, up to 90 s each: SNR, loss
#                    and output level of each epoch, and the best model of each run
#   headline         nacre_bench on 43 cases: snake, convolutions of seven taps, RVQ, spectral losses, optimizer, whole
#                    steps, decoding
#   headline-peers   the same cases in PyTorch, eager
#   bench            nacre_bench on the device, all cases
#   baselines        cuDNN and cuBLAS on the shapes of the convolutions, if this build and machine have them
#   peers            the cases in PyTorch with its defaults, and with the fastest known settings of cuDNN and AdamW
#   peers-best       decoding and whole steps in PyTorch, compiled in the fastest known ways, and in XLA
#   peers-all        all variants except compiled ones; continues where peers or an earlier call stopped
#   peers-compiled   the compiled variants; continues where an earlier call stopped
#
# A call without --plan and --part runs tests, sanitizer, capture, reruns, bench, baselines and peers, in this order.
#
#   --part NAME      run only this part; may be repeated. Parts run in the order of the list above
#   --require NAME   count this part as failed if it cannot run here (no compute-sanitizer, no PyTorch); may be repeated
#   --build DIR      the build to use (default build/cuda; if that is missing, it is built with the preset cuda)
#   --out DIR        folder for logs, figures and the report (default: $OUT if it is set and --bring is not given, else
#                    bench/results/work)
#   --bring DIR      folder for the files to copy from a rented machine, at most four: an archive of all results, which is
#                    updated every 20 s and when a part ends, the page, and the model of mission with the better SNR on
#                    held-out speech, in pieces of less than 16 MiB
#   --speech DIR     the audio that mission trains on (default: speech/ of a packed tree, else quickstart/data)
#   --device cuda:N  the GPU to use (default cuda)
#   --resume         skip what DIR already has of this commit, build and device: parts that are ok, and of other parts the
#                    tests that passed and the cases and peers that are measured
#   --small          use small shapes, few tests and few reruns, to check that the suite works. The report has no times
#   --jobs N         processes to run in parallel where nothing is timed (default: half of the cores, at most 8)
#   --seconds S      time for each case of bench, headline and baselines, warm and cold each (default 0.1; most cases run at
#                    least 50 times)
#   --budget SECONDS time for the whole call, without a build; or none (default: that of the plan, else 470). The remaining
#                    time is divided among the remaining parts. A part that reaches its share is stopped and counts as
#                    incomplete; --resume continues it
#   --limit SECONDS  maximum time of each part (default: its share of the budget; without a budget, an hour)
#
# A part that fails does not stop the others. A case that makes the device unusable counts as failed, and another process
# continues after it. DIR gets PART.log of each part, suite.json, cases.json, probes.json, mission.json, headline.json,
# bench.json, baselines.json, peers-eager.json, peers-compiled.json, peers-jax.json, and the result of scripts/gpu_report.py:
# <gpu>/report.md and JSON files of figures. If DIR is the default and shapes are not small, this result is written to
# bench/results instead. Python with PyTorch is $PYTHON (default python3). Without Python, a simpler page without peers is
# written.
#
# Exit codes: 0 every part is ok or cannot run here, 1 some part failed, 2 usage, 3 no part failed but some are incomplete,
# 4 no build, 6 no device, 129, 130 and 143 stopped by a signal.
set -u
export LC_ALL=C
self=$(readlink -f "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$self")")
# shellcheck source=scripts/gpu/common.sh
. "$root/scripts/gpu/common.sh" || exit 4
# shellcheck source=scripts/gpu/tests.sh
. "$root/scripts/gpu/tests.sh" || exit 4
# shellcheck source=scripts/gpu/training.sh
. "$root/scripts/gpu/training.sh" || exit 4
# shellcheck source=scripts/gpu/first.sh
. "$root/scripts/gpu/first.sh" || exit 4
# shellcheck source=scripts/gpu/figures.sh
. "$root/scripts/gpu/figures.sh" || exit 4
# shellcheck source=scripts/gpu/machine.sh
. "$root/scripts/gpu/machine.sh" || exit 4
# shellcheck source=scripts/gpu/results.sh
. "$root/scripts/gpu/results.sh" || exit 4

all_parts=(probes tests sanitizer capture reruns mission headline headline-peers bench baselines peers peers-best peers-all
  peers-compiled)
plain_call=(tests sanitizer capture reruns bench baselines peers)
# Weights by which the rest of the budget is divided among the remaining parts.
declare -A shares=([probes]=60 [tests]=90 [sanitizer]=40 [capture]=25 [reruns]=35 [mission]=110 [headline]=100
  [headline-peers]=60 [bench]=160 [baselines]=60 [peers]=60 [peers-best]=80 [peers-all]=200 [peers-compiled]=200)
declare -A at_most=([probes]=60 [mission]=200) # upper limits in seconds, whatever remains of the budget
choose_plan() { # first or second: sets the parts in their order, their shares and the budget
  case $1 in
    first)
      parts=(probes tests mission headline headline-peers) budget=420
      shares[headline-peers]=46
      ;;
    second)
      parts=(sanitizer capture reruns peers-best) budget=200
      shares[sanitizer]=50 shares[peers-best]=76
      ;;
    *) usage_error "--plan $1: expected first or second" ;;
  esac
}

case "${1:-}" in
  __part)
    S_PART=$2
    trap stop_jobs TERM
    "part_$2"
    code=$?
    # An exit code above 128 after SIGTERM means that the signal ended the program that the part was running.
    [ $stopping = 0 ] || [ $code -le 128 ] || code=124
    exit $code
    ;;
  __call)
    shift
    "$@"
    exit
    ;;
  __sanitized_tests) # for this script's test
    printf '%s\n' "${sanitized_tests[@]}"
    exit
    ;;
  __headline) # for this script's test
    printf '%s\n' "${headline[@]}"
    exit
    ;;
esac

# ---- options ----------------------------------------------------------------------------------------------------------------
wanted=() build='' out='' bring='' speech='' plan='' device=cuda resume=0 small=0 jobs='' seconds=0.1 limit_all='' budget=470
own_budget='' required=() called=("$@")
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$self"
      exit 0
      ;;
    --resume) resume=1 && shift && continue ;;
    --small) small=1 && shift && continue ;;
    --plan | --part | --require | --build | --out | --bring | --speech | --device | --jobs | --seconds | --limit | --budget) ;;
    --plan=* | --part=* | --require=* | --build=* | --out=* | --bring=* | --speech=* | --device=* | --jobs=* | --seconds=* | \
      --limit=* | --budget=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      ;;
    *) usage_error "$1: unknown option; see --help" ;;
  esac
  if [ $# -lt 2 ] || [ -z "$2" ]; then usage_error "$1: expected a value"; fi
  case "$1" in
    --plan) plan=$2 ;;
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
    --bring) bring=$2 ;;
    --speech)
      [ -d "$2" ] || usage_error "--speech $2: no such folder"
      speech=$2
      ;;
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
      own_budget=$2
      ;;
  esac
  shift 2
done
parts=()
if [ -n "$plan" ]; then
  [ ${#wanted[@]} = 0 ] || usage_error "--plan and --part: expected only one of them"
  choose_plan "$plan"
else
  [ ${#wanted[@]} -gt 0 ] || wanted=("${plain_call[@]}")
  for part in "${all_parts[@]}"; do
    [[ " ${wanted[*]} " != *" $part "* ]] || parts+=("$part")
  done
fi
budget=${own_budget:-$budget}
for part in "${required[@]}"; do
  [[ " ${parts[*]} " == *" $part "* ]] || usage_error "--require $part: is not a part of this call"
done
if [ -z "$out" ]; then
  out=$root/bench/results/work
  [ -z "${OUT:-}" ] || [ -n "$bring" ] || out=$OUT
fi
if [ -z "$speech" ]; then
  for speech in "$root/speech" "$root/quickstart/data"; do [ ! -d "$speech" ] || break; done
fi
if [ -z "$jobs" ]; then
  jobs=$(($(nproc) / 2))
  jobs=$((jobs < 1 ? 1 : jobs > 8 ? 8 : jobs))
fi

# ---- the machine, the folder --------------------------------------------------------------------------------------------------
choose_device "$device"
find_build
begun=$SECONDS # the budget excludes the build
S_BUILD=$build S_PYTHON=${PYTHON:-python3} S_ANSWER=${S_ANSWER:-40} # seconds for the driver to answer
find_libraries
find_device "$device"
open_folder
work=$(mktemp -d) || exit 4
child='' ticker=''
leave() {
  trap - EXIT HUP INT TERM
  trap '' USR1
  [ -z "$ticker" ] || kill "$ticker" 2>/dev/null
  # `timeout` passes the signal to the part and to all processes that it started, and kills those that do not react.
  if [ -n "$child" ]; then
    kill -TERM "$child" 2>/dev/null
    wait "$child" 2>/dev/null
    kill -KILL -- "-$child" 2>/dev/null
    bring_back
  fi
  rm -rf "$work"
  exit "$1"
}
trap 'leave $?' EXIT
trap 'leave 129' HUP
trap 'echo "gpu_suite: interrupted" >&2; leave 130' INT
trap 'echo "gpu_suite: terminated" >&2; leave 143' TERM
find_commit
begin_results "$commit $device $small $(cksum <"$build/bench/nacre_bench")"
find_versions

# ---- the parts --------------------------------------------------------------------------------------------------------------
export S_BUILD S_DEVICE S_LIBRARIES S_OUT=$out S_SMALL=$small S_RESUME=$resume S_SECONDS=$seconds S_JOBS=$jobs
export S_EMULATED S_DATA=$work/speech S_SPEECH=$speech S_COMMIT=$commit S_PYTHON S_PATIENCE=${S_PATIENCE:-45}
unset OUT # $OUT must not reach the programs
summary=() any_failed=0 incomplete=() not_run=()
outcome() { # part, outcome, exit code, seconds, reason, facts
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
  bring_back
}
weight() { # part: prints its weight. Parts that run jobs in parallel take longer on few cores
  local thirds=$((24 / jobs))
  thirds=$((thirds < 3 ? 3 : thirds > 9 ? 9 : thirds))
  case $1 in
    tests | sanitizer | capture | reruns) echo $((shares[$1] * thirds / 3)) ;;
    *) echo "${shares[$1]}" ;;
  esac
}
wait_for_part() { # sets code; brings the archive at intervals meanwhile, so that an interruption loses little
  ticker=''
  if [ -n "$bring" ]; then
    while sleep "$S_BRING_EVERY" && kill -USR1 $$; do :; done >/dev/null 2>&1 &
    ticker=$!
  fi
  while :; do
    wait "$child"
    code=$?
    [ $code = $((128 + usr1)) ] || break # otherwise a tick ended the wait
  done
  [ -z "$ticker" ] || kill "$ticker" 2>/dev/null
  [ -z "$ticker" ] || wait "$ticker" 2>/dev/null
  ticker=''
}
usr1=$(kill -l USR1) S_BRING_EVERY=${S_BRING_EVERY:-20}
trap bring_archive USR1
done_before() { [ $resume = 1 ] && grep -q '"outcome": "ok"' "$out/state/$1" 2>/dev/null && [[ $1 != *peers* ]]; }
cannot_run() { # part: true if it is already known that it cannot run
  case $1 in
    sanitizer) ! find_sanitizer >/dev/null ;;
    *peers*) ! "$S_PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null ;;
    *) false ;;
  esac
}
no_share=' '
for part in "${parts[@]}"; do ! cannot_run "$part" || no_share+="$part "; done
parts_limit() { # remaining parts: prints the share of the current part $1, less the time for ending and reporting
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
  if [ "$budget" != none ]; then
    limit=$(parts_limit "${parts[@]:i}")
    [ "$limit" -le "${at_most[$part]:-$limit}" ] || limit=${at_most[$part]}
  fi
  [ -z "$limit_all" ] || [ "$limit" -le "$limit_all" ] || limit=$limit_all
  if [ "$limit" -lt 1 ]; then
    if [ -f "$out/state/$part" ]; then # an earlier call's outcome is kept
      summary+=("$(printf '%-15s %-17s %5s    %s' "$part" incomplete "" "nothing of the budget is left; $out has an earlier outcome")")
      incomplete+=("$part")
      echo "   incomplete: no time of the budget is left"
    else
      outcome "$part" incomplete 3 0 "not begun: no time of the budget of $budget s is left"
    fi
    continue
  fi
  S_WORK=$work/$part
  export S_WORK S_LIMIT=$limit
  rm -rf "$S_WORK"
  mkdir -p "$S_WORK"
  start=$SECONDS
  state_before=$(gpu_state)
  timeout --preserve-status -k 8 "$limit" bash "$self" __part "$part" >"$out/$part.log" 2>&1 </dev/null &
  child=$!
  wait_for_part
  kill -KILL -- "-$child" 2>/dev/null # processes that did not react to the signal at the limit
  child=''
  took=$((SECONDS - start))
  text=$(cat "$S_WORK/why" 2>/dev/null)
  found=$(cat "$S_WORK/facts" 2>/dev/null)
  [ -z "$state_before" ] ||
    found+="${found:+, }\"gpu_state\": $(json_list "$state_before" "$(gpu_state)")"
  case $code in
    0) outcome "$part" ok 0 $took "$text" "$found" ;;
    3) outcome "$part" incomplete 3 $took "$text" "$found" ;;
    77)
      if [[ " ${required[*]} " == *" $part "* ]]; then
        outcome "$part" FAILED 77 $took "required, but not run: $text" "$found"
      else
        outcome "$part" skipped 0 $took "$text" "$found"
      fi
      ;;
    124 | 137 | 143) outcome "$part" FAILED 124 $took "stopped after its limit of $limit s${text:+; $text}" "$found" ;;
    *) outcome "$part" FAILED "$code" $took "${text:-see $part.log}" "$found" ;;
  esac
  if [ "$code" != 0 ] && [ "$code" != 77 ]; then tail -n 25 "$out/$part.log" | cut -c 1-300 | sed 's/^/   | /'; fi
  rm -rf "$S_WORK"
done

echo "== report"
write_suite
report=0 page=''
# A full run in the default folder writes the result that is committed.
to=$out
[ "$out" != "$root/bench/results/work" ] || [ $small = 1 ] || to=$root/bench/results
if command -v "$S_PYTHON" >/dev/null; then
  "$S_PYTHON" "$root/scripts/gpu_report.py" --out "$to" "$out" >"$work/report" || report=1
  cat "$work/report"
  page=$(sed -n 's/^gpu_report: \(.*\/report\.md\): .*/\1/p' "$work/report")
else
  plain_report "$to" || report=1
fi
[ -z "$bring" ] || [ ! -f "$page" ] || cp "$page" "$bring/${plan:-suite}.md"
bring_back

echo
printf '%s\n' "${summary[@]}"
[ $report = 0 ] || echo "report          FAILED"
[ -z "$stale" ] || echo "WARNING: $stale, this is $commit"
[ ${#not_run[@]} = 0 ] || echo "not run: ${not_run[*]} (reasons above; --require NAME counts this as a failure)"
if [ ${#incomplete[@]} -gt 0 ]; then
  [ $resume = 1 ] || called+=(--resume)
  echo "incomplete: ${incomplete[*]}; to continue:$(printf ' %q' "$0" "${called[@]}")"
fi
echo "logs and figures: $out${bring:+; files to copy: $bring}"
[ $any_failed = 0 ] && [ $report = 0 ] || exit 1
[ ${#incomplete[@]} = 0 ] || exit 3
