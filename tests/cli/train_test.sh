#!/usr/bin/env bash
# nacre train as users run it: options, signals, kill -9, full disks, bad files, exit codes. $1 is the program.
set -u
source "$(dirname "${BASH_SOURCE[0]}")/train_tools.sh"

# ---- options -------------------------------------------------------------------------------------------------------------
tiny --checkpoint_dir mission --batch_size 16 --num_epochs 100 --learning_rate 3e-4 --segment_length 16000 \
  --sample_rate 16000 --use_wandb --experiment_name telugu_codec_production --max_steps 2
expect_code 0 "the mission's command line"
expect_text "wandb sync" "--use_wandb"
[ -f mission/telugu_codec_production/step-00000002/model.safetensors ] || fail "--experiment_name: no checkpoint"
tiny --checkpoint-dir dashes --batch-size 2 --num-epochs 1 --learning-rate 1e-3 --segment-length 400 --sample-rate 16000 \
  --use-wandb --experiment-name x --max-steps 1 --valid-fraction 0.2 --max-bad 3 --allow-change
expect_code 0 "options with dashes"
"$nacre" train --help >out 2>err || fail "--help"
for option in --data --checkpoint --config --set --batch --num --learning --segment --seed --resume --init --threads; do
  grep -q -- "$option" out || fail "--help does not list $option"
done
refused() { # expected code, then options: expects exactly one line
  local expected=$1
  shift
  train "$@"
  expect_code "$expected" "$*"
  [ "$(wc -l <err)" = 1 ] && grep -q '^nacre: ' err || fail "$*: not one clear line"
}
for bad in "--batch_size 0" "--batch_size two" "--batch_size -3" "--num_epochs 0" "--learning_rate 0" "--learning_rate nan" \
  "--learning_rate 1e99" "--segment_length 3" "--segment_length 1.5" "--sample_rate 0" "--sample_rate -16000" \
  "--seed -1" "--max_steps -1" "--valid_fraction 1" "--threads -1" "--threads x" "--device tpu" "--frobnicate 1" \
  "--set nonsense" "--set training.nonsense=1" "--set loss.mel=loud" \
  "--set training.batch_size=1.5" "--set codec.encoder_rates=[0]" "--max_bad x"; do
  refused 2 --data_dir data --checkpoint_dir refused --config tiny.json --set training.max_steps=1 $bad
done
refused 2 --checkpoint_dir refused
refused 2 --data_dir data
refused 2 --data_dir data --checkpoint_dir refused --config nowhere
refused 2 --data_dir data --checkpoint_dir refused --config data/0.wav
refused 4 --data_dir data --checkpoint_dir refused --config nowhere.json
refused 4 --data_dir nowhere --checkpoint_dir refused --config tiny.json
refused 4 --data_dir data/0.wav --checkpoint_dir refused --config tiny.json
refused 4 --data_dir data --noise_dir nowhere --checkpoint_dir refused --config tiny.json
refused 4 --data_dir data --noise_dir data/0.wav --checkpoint_dir refused --config tiny.json
mkdir -p silent
refused 3 --data_dir data --noise_dir silent --checkpoint_dir refused --config tiny.json
for bad in noise_share=1.5 clean_target=-1 noise_gain=3 noise_gain=[3] noise_gain=[0,-30] noise_gain=[-500,0]; do
  refused 2 --data_dir data --noise_dir data --checkpoint_dir refused --config tiny.json --set training.$bad
done
refused 4 --data_dir data --checkpoint_dir data/0.wav/run --config tiny.json
refused 4 --data_dir data --checkpoint_dir refused --config tiny.json --init nowhere.safetensors
refused 3 --data_dir data --checkpoint_dir refused --config tiny.json --init data/0.wav
refused 4 --data_dir data --checkpoint_dir refused --config tiny.json --resume nowhere
rm -rf refused

# ---- finished, changed, more epochs --------------------------------------------------------------------------------------
tiny --checkpoint_dir whole --num_epochs 5
expect_code 0 "a whole run"
last=$(basename "$(echo whole/step-* | tr ' ' '\n' | tail -n 1)")
last=${last#step-}
tiny --checkpoint_dir whole --num_epochs 5
expect_code 0 "a finished run"
expect_text "this run is finished" "a finished run"
tiny --checkpoint_dir whole --num_epochs 5 --seed 3 --learning_rate 1e-3
expect_code 2 "changed settings"
expect_text "training.seed" "changed settings"
expect_text "optimizer.learning_rate" "changed settings"
refused 2 --data_dir data --checkpoint_dir whole --config tiny.json --num_epochs 6 --resume never

# ---- signals -------------------------------------------------------------------------------------------------------------
pause() { sleep "$((RANDOM % $1 / 1000)).$(printf %03d $((RANDOM % $1 % 1000)))"; }
start() { # a run in the background
  rm -f out err
  "$nacre" train -t 1 --data_dir data --config tiny.json "$@" >out 2>err &
  pid=$!
}
stops=0
for ((round = 0; round < 8; ++round)); do
  start --checkpoint_dir split --num_epochs 5
  wait_for out "^  codebooks: \|resumed from\|is finished" || break
  pause 400
  signal=$([ $((round % 2)) = 0 ] && echo TERM || echo INT)
  kill -$signal $pid 2>/dev/null
  wait $pid
  code=$?
  [ $code = 0 ] && break
  stops=$((stops + 1))
  expect_code "$([ $signal = TERM ] && echo 143 || echo 130)" "SIG$signal"
  expect_text "stopped at step" "SIG$signal"
  expect_text "; saved split/step-" "SIG$signal"
done
tiny --checkpoint_dir split --num_epochs 5
expect_code 0 "a run that was stopped $stops times"
same_end whole split "$last"

# A second signal ends the program at once, and nothing is saved. Both signals are pending when the process continues,
# so it receives the second before the first can end it. Either of two pending signals may be delivered first.
start --checkpoint_dir twice --segment_length 60000 --batch_size 16
wait_for out "^  codebooks: "
kill -STOP $pid
kill -INT $pid
kill -TERM $pid
kill -CONT $pid
wait $pid
code=$?
[ $code = 143 ] || expect_code 130 "a second signal"
grep -q "stopped at" out && fail "a second signal does not leave at once"

# ---- kill -9, usually in the middle of a save
# ---------------------------------------------------------------------------------
for ((round = 0; round < 12; ++round)); do
  start --checkpoint_dir killed --num_epochs 5 --set training.checkpoint_minutes=1e-9
  wait_for out "^  codebooks: \|resumed from\|is finished" || break
  pause 300
  kill -KILL $pid 2>/dev/null
  wait $pid 2>/dev/null
done
tiny --checkpoint_dir killed --num_epochs 5
expect_code 0 "a run that was killed"
same_end whole killed "$last"
left=$(find killed -name '*nacre-tmp*' | head -n 3)
[ -z "$left" ] || fail "kill -9 leaves $left"
[ "$(grep -c '"step":20,.*"loss"' killed/log.jsonl)" = 1 ] || fail "log.jsonl has step 20 twice, or not at all"

# ---- one run at a time ---------------------------------------------------------------------------------------------------
start --checkpoint_dir busy --num_epochs 100000
if wait_for out "model:"; then
  "$nacre" train -t 1 --data_dir data --config tiny.json --checkpoint_dir busy >out2 2>err2
  [ $? = 2 ] && grep -q "another run is using this folder" err2 || fail "two runs in one folder"
fi
kill -TERM $pid
wait $pid

# ---- a full disk ---------------------------------------------------------------------------------------------------------
mkdir small
full_disk() {
  run() { "$nacre" train -t 1 --data_dir data --config tiny.json --set training.schedule=\"constant\" "$@"; }
  run --checkpoint_dir roomy --max_steps 9 || return 1
  mount -t tmpfs -o size=4m none small || return 77
  run --checkpoint_dir small/run --max_steps 7 || return 2
  dd if=/dev/zero of=small/filler bs=1k status=none 2>/dev/null
  truncate -s -40k small/filler
  run --checkpoint_dir small/run --max_steps 9
  [ $? = 4 ] || return 3
  ls -A small/run | grep -q nacre-tmp && return 4
  rm small/filler
  run --checkpoint_dir small/run --max_steps 9 || return 5
  cmp small/run/step-00000009/model.safetensors roomy/step-00000009/model.safetensors || return 6
}
export -f full_disk
export nacre
if unshare -m true 2>/dev/null; then
  unshare -m bash -c full_disk >out 2>err
  code=$?
  if [ $code != 77 ]; then
    expect_code 0 "a full disk"
    expect_text "training goes on" "a full disk"
    expect_text "the newest good one is small/run/step-00000007" "a full disk"
  fi
else
  echo "no full disk: mounting is not permitted here"
fi

# ---- bad data ------------------------------------------------------------------------------------------------------------
cp -r data bad
: >bad/empty.wav
head -c 1500 data/0.wav >bad/cut.wav
echo "not a sound" >bad/text.wav
{ header 3 4 3 && printf '\x00\x00\x00\x3f\x00\x00\xc0\x7f\x00\x00\x00\x3f'; } >bad/notfinite.wav
{ header 1 2 500 && head -c 1000 /dev/zero; } >bad/silent.wav
wav bad/short.wav 3 8 9000
ln -s nowhere.wav bad/gone.wav
names="empty cut text notfinite silent short gone"
if [ "$(id -u)" != 0 ]; then
  cp data/0.wav bad/denied.wav
  chmod 000 bad/denied.wav
  names+=" denied"
fi
train --data_dir bad --config tiny.json --checkpoint_dir run_bad --max_steps 2
expect_code 0 "some bad files"
expect_text "$(echo $names | wc -w) of $(ls bad | wc -l) files skipped" "some bad files"
for name in $names; do
  [ "$(grep -c "^  $name.wav: ..*" out)" = 1 ] || fail "$name.wav is not named once with a reason"
done
train --data_dir bad --config tiny.json --checkpoint_dir run_bad2 --max_bad 3
expect_code 3 "too many bad files"
expect_text "too many bad files" "too many bad files"
grep -q "model:" out && fail "too many bad files: training began"
mkdir only_bad none
cp bad/empty.wav bad/silent.wav only_bad
echo hello >none/readme.txt
refused_data() {
  train --data_dir "$1" --config tiny.json --checkpoint_dir run_bad3
  expect_code 3 "$1"
  expect_text "$2" "$1"
}
refused_data only_bad "no usable audio"
refused_data none "no audio files"

# ---- the devices of this machine
# ----------------------------------------------------------------------------------------------
"$nacre" info --devices >out 2>err || fail "info --devices"
grep -q "^cpu: [0-9]* threads, " out || fail "info --devices names no CPU"
grep -q "^cuda" out || fail "info --devices does not speak of CUDA"
grep -q "^ops: add, .*, rvq\(,\|$\)" out || fail "info --devices names no ops"

[ $failures = 0 ] && echo "all is well" || echo "$failures failures"
[ $failures = 0 ]
