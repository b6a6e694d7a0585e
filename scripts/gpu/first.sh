# shellcheck shell=bash
# Parts of scripts/gpu_suite.sh that need a real GPU: the probes, and training with the command of docs/training.md.

# ---- probes -------------------------------------------------------------------------------------------------------------------
# nacre_probes writes a JSON line about the device and one as each probe ends. A crash or hang costs only the current
# probe; another process continues after it.
probe_name() { sed -n 's/^{.*"probe": *"\([^"]*\)".*}$/\1/p' "$@"; }
probe_outcomes() { grep -cE "\"outcome\": *\"$1\"" "$S_OUT/probes.jsonl"; }
run_probes() { # file, names...; sets code
  local size=(--seconds $((S_LIMIT > 12 ? S_LIMIT - 6 : (S_LIMIT + 1) / 2))) job lines=0 now waited=0 file=$1
  local patience=$((S_LIMIT / 2 > 1 ? S_LIMIT / 2 : 1)) # a probe itself gives up after 20 s
  [ "$S_SMALL" = 0 ] || size+=(--small)
  : >"$file"
  begin "$S_BUILD/bench/nacre_probes" --out "$file" "${size[@]}" "${@:2}" &
  job=$!
  while kill -0 $job 2>/dev/null && [ $stopping = 0 ]; do
    sleep 0.2 &
    wait $!
    now=$(wc -l <"$file")
    waited=$((now == lines ? waited + 1 : 0)) lines=$now
    [ $((waited / 5)) -lt $patience ] || break
  done
  hung=0
  if kill -0 $job 2>/dev/null; then
    [ $stopping = 1 ] || hung=$patience
    kill -KILL $job 2>/dev/null
  fi
  wait $job 2>/dev/null
  code=$?
}
write_probes() { # merges all complete lines into one object
  {
    printf '{"commit": %s,\n "small": %s,\n "emulated": %s,\n "machine": %s,\n "probes": [\n' "$(json "$S_COMMIT")" \
      "$(yes_or_no "$S_SMALL")" "$(yes_or_no "$S_EMULATED")" "$(cat "$S_WORK/machine")"
    sed '$!s/$/,/' "$S_OUT/probes.jsonl"
    printf ']}\n'
  } >"$S_OUT/probes.json.part" && mv "$S_OUT/probes.json.part" "$S_OUT/probes.json"
}
part_probes() {
  local names left found code=0 hung=0 n=0 name what bad against text mute=0
  [ -x "$S_BUILD/bench/nacre_probes" ] || skip "this build has no nacre_probes"
  mapfile -t names < <(ours "$S_BUILD/bench/nacre_probes" --list)
  [ ${#names[@]} -gt 0 ] || { why "nacre_probes --list lists no probes"; return 1; }
  : >"$S_OUT/probes.jsonl"
  echo null >"$S_WORK/machine"
  left=("${names[@]}")
  while [ ${#left[@]} -gt 0 ] && [ $stopping = 0 ]; do
    n=$((n + 1))
    run_probes "$S_WORK/probes-$n" "${left[@]}"
    grep -E '^\{.*"probe": *"[^"]*".*\}$' "$S_WORK/probes-$n" >>"$S_OUT/probes.jsonl"
    ! grep -E '^\{"device".*\}$' "$S_WORK/probes-$n" >"$S_WORK/told" || head -n 1 "$S_WORK/told" >"$S_WORK/machine"
    found=$'\n'$(probe_name "$S_OUT/probes.jsonl")$'\n'
    name=''
    for name in "${left[@]}"; do [[ $found == *$'\n'"$name"$'\n'* ]] || break; done
    if [ $code = 1 ] && [ ! -s "$S_WORK/probes-$n" ]; then # not the fault of a probe
      mute=1
      break
    fi
    if [[ $found != *$'\n'"$name"$'\n'* ]] && [ $stopping = 0 ]; then # the probe that was running
      what="has no result; nacre_probes ended with exit code $code"
      [ $code -le 128 ] || what="ended nacre_probes by signal $(kill -l $((code - 128)))"
      [ "$hung" = 0 ] || what="took more than $hung s"
      printf '{"probe": %s, "outcome": "failed", "says": %s}\n' "$(json "$name")" "$(json "$what")" >>"$S_OUT/probes.jsonl"
      echo "$name $what"
      found+=$name$'\n'
    fi
    mapfile -t left < <(for name in "${left[@]}"; do [[ $found == *$'\n'"$name"$'\n'* ]] || echo "$name"; done)
    write_probes
    [ $code != 6 ] || [ ${#left[@]} != $((${#names[@]} - 1)) ] || { why "nacre_probes finds no device"; return 1; }
  done
  # Every answer is a finding. Only a probe without an answer has failed.
  mapfile -t against < <(grep -E '"outcome": *"failed".*"answered": *true' "$S_OUT/probes.jsonl" | probe_name)
  mapfile -t bad < <(grep -E '"outcome": *"failed"' "$S_OUT/probes.jsonl" | grep -vE '"answered": *true' | probe_name)
  facts "\"probes\": ${#names[@]}, \"against\": $(json_list "${against[@]}"), \"failed\": $(json_list "${bad[@]}")"
  text="${#names[@]} probes: $(probe_outcomes ok) as assumed, ${#against[@]} not"
  [ ${#against[@]} = 0 ] || text+=" (${against[*]})"
  why "$text, $(probe_outcomes skipped) cannot run here, ${#bad[@]} without an answer"
  [ ${#left[@]} = 0 ] || { why "$(cat "$S_WORK/why"), ${#left[@]} stopped or not begun" && touch "$S_WORK/unfinished"; }
  [ $mute = 0 ] || { why "$(cat "$S_WORK/why"): the device did not answer nacre_probes" && return 1; }
  [ ${#bad[@]} = 0 ] || return 1
  [ ${#left[@]} = 0 ] || return 3
}

# ---- mission -----------------------------------------------------------------------------------------------------------------
# The training command of docs/training.md, whose result users can compare. It runs as long as time allows; a signal
# then stops it after a complete step.
mission_command=(--batch_size 16 --num_epochs 100 --learning_rate 3e-4 --segment_length 16000 --sample_rate 16000 --use_wandb
  --experiment_name telugu_codec_production)
# nacre must receive exactly one signal, because it exits without a checkpoint after a second one. It therefore runs in
# its own session, which signals to the part do not reach, and `timeout` does not signal its process group.
mission_run() { # precision, seconds; sets code
  local job tries command=("${mission_command[@]}")
  [ "$S_SMALL" = 0 ] || command=(--config "$S_DATA/tiny.json" --num_epochs 100 --max_steps 4 --set training.valid_seconds=1)
  echo "== nacre train ${command[*]} --device $S_DEVICE --precision $1, at most $2 s"
  begin setsid timeout --foreground -s TERM -k 15 "$2" "$S_BUILD/nacre" train "${command[@]}" --data_dir "$S_SPEECH" \
    --checkpoint_dir "$S_WORK/$1" --device "$S_DEVICE" --precision "$1" >"$S_OUT/mission-$1.log" 2>&1 &
  job=$!
  [ $stopping = 0 ] || [[ " ${stopped[*]} " == *" $job "* ]] || kill -TERM $job 2>/dev/null
  while :; do
    wait $job
    code=$?
    kill -0 $job 2>/dev/null || break # otherwise a signal ended the wait
    # The part has 8 s from the signal until it is killed.
    for ((tries = 0; tries < 50; ++tries)); do
      kill -0 $job 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL -- -$job 2>/dev/null
  done
  kill -KILL -- -$job 2>/dev/null # processes that it started itself
  cat "$S_OUT/mission-$1.log"
}
saved_last() { grep -qE 'stopped at step|done:' "$S_OUT/mission-$1.log"; } # precision: did it save at its end?
mission_result() { # precision, seconds given, seconds taken, exit code: prints an object and exports the best model
  local run log model=$S_OUT/mission-$1.safetensors epochs
  log=$(find "$S_WORK/$1" -name log.jsonl 2>/dev/null | head -n 1)
  run=${log%/*}
  [ -z "$run" ] || grep '"valid/snr"' "$log" | grep -v '"epoch":0,' >"$S_OUT/mission-$1.jsonl" # epoch 0 is untrained
  if [ -n "$run" ] && ! ours timeout --foreground -k 2 10 "$S_BUILD/nacre" export -m "$run" -o "$model" -f -q; then rm -f "$model"; fi
  printf '{"precision": "%s", "ended": "%s", "exit": %d, "seconds_given": %d, "seconds": %d,\n' "$1" \
    "$(case $4 in 0) echo "all epochs" ;; 124) echo "its time was over" ;; *) if [ $stopping = 1 ]; then echo "stopped"; else echo "failed"; fi ;; esac)$(
      saved_last "$1" || echo ", no final checkpoint")" "$4" "$2" "$3"
  if [ -s "$model" ]; then
    printf '  "best_model": {"file": "%s", "bytes": %d, "sha256": "%s"},\n' "${model##*/}" "$(stat -c %s "$model")" \
      "$(sha256sum "$model" | cut -d' ' -f1)"
  fi
  printf '  "epochs": [\n'
  sed '/^{.*}$/!d' "$S_OUT/mission-$1.jsonl" 2>/dev/null | sed '$!s/$/,/'
  printf '  ]}'
}
member() { sed -n "s|.*\"$1\": *\([-+0-9.eE]*\).*|\1|p" "$2"; } # name, file: prints this value of every line
part_mission() {
  local precision code=0 limit start text='' all='' failed=() late=0 files bytes epochs runs_left=2
  if [ -z "$S_SPEECH" ] || ! find "$S_SPEECH" -name '*.flac' -o -name '*.wav' 2>/dev/null | grep -q .; then
    skip "no speech: speech/ and quickstart/data are missing; use --speech DIR"
  fi
  [ "$S_SMALL" = 0 ] || make_data
  files=$(find "$S_SPEECH" -type f | wc -l) bytes=$(find "$S_SPEECH" -type f -printf '%s\n' | awk '{ n += $1 } END { print n + 0 }')
  rm -f "$S_OUT"/mission-*
  for precision in bf16 fp32; do
    [ $stopping = 0 ] || break
    # The part's remaining time, less the time for stopping, exporting and ending the part.
    limit=$(((S_LIMIT - 20 - SECONDS) / runs_left - 8))
    runs_left=$((runs_left - 1))
    [ "$S_SMALL" = 1 ] || [ $limit -le 90 ] || limit=90
    [ $limit -ge 1 ] || limit=1
    start=$SECONDS
    mission_run $precision $limit
    [ $stopping = 0 ] || late=1
    case $code in
      0 | 124) ;;
      *) [ $stopping = 1 ] || failed+=("$precision: nacre train ended with exit code $code") ;;
    esac
    mission_result $precision $limit $((SECONDS - start)) $code >"$S_WORK/result" # a signal would end a subshell
    text+="${text:+,
 }$(cat "$S_WORK/result")"
    printf '{"commit": %s,\n "small": %s,\n "emulated": %s,\n "command": %s,\n "speech": {"files": %d, "bytes": %d},\n "runs": [%s]}\n' \
      "$(json "$S_COMMIT")" "$(yes_or_no "$S_SMALL")" "$(yes_or_no "$S_EMULATED")" \
      "$(json "nacre train --data_dir DIR --checkpoint_dir DIR ${mission_command[*]} --device cuda --precision $precision")" \
      "$files" "$bytes" "$text" >"$S_OUT/mission.json.part" && mv "$S_OUT/mission.json.part" "$S_OUT/mission.json"
    epochs=$(grep -c . "$S_OUT/mission-$precision.jsonl" 2>/dev/null)
    if [ "${epochs:-0}" = 0 ]; then
      [ $stopping = 1 ] || failed+=("$precision: no epoch was evaluated in $limit s")
    elif [ ! -s "$S_OUT/mission-$precision.safetensors" ]; then
      failed+=("$precision: its best model could not be exported")
    fi
    all+="${all:+; }$precision ${epochs:-0} epochs"
    saved_last $precision || all+=", no final checkpoint"
    [ "${epochs:-0}" = 0 ] || [ "$S_SMALL" = 1 ] ||
      all+=", best SNR $(member valid/snr "$S_OUT/mission-$precision.jsonl" | sort -g | tail -n 1) dB, output std $(
        member valid/output_std "$S_OUT/mission-$precision.jsonl" | tail -n 1)"
  done
  [ $stopping = 0 ] || late=1
  facts "\"failed\": $(json_list "${failed[@]}")"
  why "$all"
  [ ${#failed[@]} = 0 ] || { why "$all: ${failed[*]}" && return 1; }
  [ $late = 0 ] || { touch "$S_WORK/unfinished" && return 3; }
}
