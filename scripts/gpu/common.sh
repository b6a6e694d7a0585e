# shellcheck shell=bash
# Functions that the parts of scripts/gpu_suite.sh share: nacre's programs, JSON, and parallel jobs.
#
# A part is a function part_NAME. The suite runs itself as `gpu_suite.sh __part NAME` under `timeout`, with these
# variables: S_BUILD S_OUT S_DEVICE S_SMALL S_RESUME S_SECONDS S_JOBS S_LIBRARIES S_EMULATED S_WORK S_DATA S_LIMIT
# S_PART S_PYTHON S_SPEECH S_PATIENCE
#
# A part returns 0 (ok), 3 (incomplete), 77 (not run) or another code (failed). At its limit, or when the suite is
# stopped, the part and every process that it started receive SIGTERM. The current work ends, and the part reports its
# results so far.
stopping=0 stopped=()
# `timeout` sends its signal twice, to the part and to its process group. The second signal would end a subshell that
# the part starts in between, and a list of jobs read from that subshell would be empty. The list therefore goes through
# a file.
running_jobs() { # options of jobs; sets running
  jobs -p "$@" >"$S_WORK/running"
  mapfile -t running <"$S_WORK/running"
}
stop_jobs() { # sends the signal once: after a second one, nacre train exits without a checkpoint
  local running
  [ $stopping = 0 ] || return 0
  stopping=1
  running_jobs
  stopped=("${running[@]}")
  [ ${#running[@]} = 0 ] || kill -TERM "${running[@]}" 2>/dev/null
}

# A packed tree contains libraries that the build needs and the machine lacks. Only nacre's programs may use them.
ours() { env ${S_LIBRARIES:+LD_LIBRARY_PATH="$S_LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"} "$@"; }
# The same for background jobs. $! is then the program itself, not a shell, which a signal would end without ending the
# program.
begin() { exec env ${S_LIBRARIES:+LD_LIBRARY_PATH="$S_LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"} "$@"; }
nacre() { ours "$S_BUILD/nacre" "$@"; }
bench() { ours "$S_BUILD/bench/nacre_bench" "$@"; }
run_tests() { NACRE_TEST_DEVICES=cuda ours "$S_BUILD/tests/nacre_tests" "$@"; }

json() { # prints a string in quotes
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
yes_or_no() { if [ "$1" = 1 ]; then echo true; else echo false; fi; }
why() { printf '%s\n' "$*" >"$S_WORK/why"; }       # one line for the summary
facts() { printf '%s' "$*" >"$S_WORK/facts"; }     # members of the part's object in suite.json
skip() { why "$*"; exit 77; }
now_ms() { now=$((${EPOCHREALTIME/[.,]/} / 1000)); } # no subshell, because a signal could end it
named() { # name: prints the Catch specification of this test alone
  local s=${1//\\/\\\\}
  s=${s//,/\\,} s=${s//[/\\[}
  printf '%s' "${s//]/\\]}"
}

# Parallel jobs. `queue WORD...` adds a job; WORD... is a function of the suite with its arguments. `work_off SECONDS`
# runs all jobs and prints the outcome of each when it ends, with the log of those that failed. Jobs named in the file
# $S_DONE are skipped, because they passed in an earlier call.
queue() {
  jobs_queued=$((${jobs_queued:-0} + 1))
  printf '%s\0' "$@" >"$S_WORK/job-$jobs_queued"
}
work_off() { # seconds per job, at most half of the part's limit, so that one job cannot use all of it
  local next=1 running seconds=$(($1 < S_LIMIT / 2 ? $1 : S_LIMIT / 2))
  [ "$S_EMULATED" = 0 ] || seconds=$((S_LIMIT / 2)) # emulated times are not meaningful
  [ $seconds -gt 0 ] || seconds=1
  # If little of the budget was left, a job beyond its limit may be correct. It is then reported but does not count as
  # failed.
  hurried=0
  [ $seconds -ge "$1" ] || [ $seconds -ge "$S_PATIENCE" ] || hurried=1
  passed=0 failed=() slow=() unfinished=0 shown=0
  : >"$S_WORK/outcomes"
  while :; do
    running_jobs -r
    while [ $stopping = 0 ] && [ $next -le "$jobs_queued" ] && [ ${#running[@]} -lt "$S_JOBS" ]; do
      one_job $next $seconds &
      next=$((next + 1))
      running_jobs -r
    done
    [ ${#running[@]} -gt 0 ] || [ $next -le "$jobs_queued" ] || break
    [ $stopping = 0 ] || [ ${#running[@]} -gt 0 ] || break
    wait -n
    show_outcomes $seconds
  done
  show_outcomes $seconds
  unfinished=$((jobs_queued - passed - ${#failed[@]}))
  [ $stopping = 1 ] || [ $unfinished = ${#slow[@]} ] || failed+=("$((unfinished - ${#slow[@]})) jobs have no outcome")
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
  local words now start code=0 job='' name tries ended=0
  # The job is a process group of its own. `timeout` ends the whole group at the job's limit or on a signal.
  trap 'stopping=1; [ -z "$job" ] || kill -TERM "$job" 2>/dev/null' TERM
  mapfile -d '' -t words <"$S_WORK/job-$1"
  name=${words[*]:1}
  now_ms
  start=$now
  if [ -z "${S_DONE:-}" ] || ! grep -qxF -- "$name" "$S_DONE"; then
    timeout -k 4 "$2" bash "$self" __call "${words[@]}" >"$S_WORK/job-$1.log" 2>&1 &
    job=$!
    [ $stopping = 0 ] || kill -TERM "$job" 2>/dev/null
    while :; do
      wait "$job"
      code=$?
      kill -0 "$job" 2>/dev/null || break # otherwise a signal ended the wait
    done
    ended=$stopping
    # `timeout` waits only for the process that it started. Other processes of the group may ignore its signal.
    for ((tries = 0; tries < 10; ++tries)); do
      kill -0 -- "-$job" 2>/dev/null || break
      sleep 0.1
    done
    ! kill -KILL -- "-$job" 2>/dev/null || echo "$name left processes, which were killed"
    [ $code != 0 ] || [ -z "${S_DONE:-}" ] || printf '%s\n' "$name" >>"$S_DONE"
    [ $code = 0 ] || [ $ended = 0 ] || code=stopped
  fi
  now_ms
  printf '%s %s %s %s\n' $code $((now - start)) "$1" "$name" >>"$S_WORK/outcomes"
}
conclude() { # ends a part of jobs, after its summary line
  if [ $unfinished != 0 ]; then
    why "$(cat "$S_WORK/why"); $unfinished stopped or not begun${slow[0]:+, of these too slow for this budget: $(printf '%s; ' "${slow[@]:0:3}")}"
    touch "$S_WORK/unfinished"
  fi
  [ ${#failed[@]} = 0 ] || return 1
  [ $unfinished = 0 ] || return 3
}
remember() { # for a part whose jobs are independent: --resume does not repeat those that passed
  S_DONE=$S_OUT/state/$S_PART.done
  [ "$S_RESUME" = 1 ] || : >"$S_DONE"
  touch "$S_DONE"
}
# A driver that hangs must not block the suite. nvidia-smi is therefore not called again after it has timed out once.
smi() {
  local code
  [ "$S_EMULATED" = 0 ] && [ ! -e "$work/smi-hangs" ] && command -v nvidia-smi >/dev/null || return 1
  timeout -k 2 $((S_ANSWER < 5 ? S_ANSWER : 5)) nvidia-smi "$@" 2>/dev/null
  code=$?
  [ $code != 124 ] && [ $code != 137 ] || : >"$work/smi-hangs"
  return $code
}
# State that may explain a measurement: clocks, temperature, load by others. It is read and never changed.
gpu_state() {
  smi --query-gpu=name,pstate,clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu,memory.used --format=csv,noheader
}
