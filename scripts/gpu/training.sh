# shellcheck shell=bash
# Parts of scripts/gpu_suite.sh that train small models: captured steps against eager ones, and reruns.

# ---- training, for captures and reruns -----------------------------------------------------------------------------------
bytes() { # byte count, value: prints little-endian escapes for printf
  local i text=
  for ((i = 0; i < $1; ++i)); do printf -v text '%s\\x%02x' "$text" $((($2 >> (8 * i)) & 255)); done
  printf '%s' "$text"
}
wav() { # path, samples, period: writes 16 kHz audio, a triangle wave of rising amplitude with a little noise
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
      # Short strings, because bash appends to them quickly.
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
  [ "$S_SMALL" = 0 ] || samples=$((S_EMULATED ? 400 : 1000))
  mkdir -p "$S_DATA/data"
  for i in 0 1 2 3 4 5; do wav "$S_DATA/data/$i.wav" $((samples + samples * i / 9)) $((60 + 23 * i)) & done
  wait
  # Emulated devices get small models. Other devices get a model whose layers run the production kernels.
  cat >"$S_DATA/tiny.json" <<'JSON'
{"codec": {"encoder_dim": 4, "encoder_rates": [2, 2], "decoder_dim": 16, "decoder_rates": [2, 2], "latent_dim": 8,
           "quantizer": "ema", "metric": "euclidean", "n_codebooks": 2, "codebook_size": 16, "quantizer_dropout": 0.5},
 "loss": {"windows": [16, 64], "mels": [5, 10]},
 "training": {"segment_length": 400, "batch_size": 2, "codebook_start_rows": 300}}
JSON
  # An emulated step of the larger model takes seconds.
  [ "$S_EMULATED" = 0 ] ||
    sed -i 's/"windows": .*},/"windows": [16], "mels": [5]},/; s/"segment_length": 400/"segment_length": 100/; s/_rows": 300/_rows": 50/' \
      "$S_DATA/tiny.json"
}
# Emulated tensor cores are the slowest part, and bf16 uses them in the same way as tf32. tf32 is therefore left out.
precisions() { if [ "$S_EMULATED" = 1 ]; then echo fp32 bf16; else echo fp32 tf32 bf16; fi; }
train() { # folder, precision, steps
  local size=(--config speech-16k-small --batch_size 4 --segment_length 4000 --set training.codebook_start_rows=4000
    --set training.codebook_average_rows=0)
  [ "$S_SMALL" = 0 ] || size=(--config "$S_DATA/tiny.json")
  nacre train "${size[@]}" -t 2 --device "$S_DEVICE" --precision "$2" --data_dir "$S_DATA/data" --checkpoint_dir "$1" \
    --seed 7 --num_epochs 1000 --set 'training.schedule="constant"' --max_steps "$3"
}
last_files() { # folder, steps: the files that a run ends with
  printf '%s/step-%08d/%s\n' "$1" "$2" model.safetensors "$1" "$2" optimizer.safetensors
}

# ---- capture ----------------------------------------------------------------------------------------------------------------
# The first step of a process runs kernel by kernel, the second is captured, and all others replay it. Therefore one run
# of several steps, and the same number of one-step runs that resume one another, must give the same files.
capture_train() { # precision, for the log
  local steps=6 step one two
  [ "$S_SMALL" = 0 ] || steps=$((S_EMULATED ? 3 : 4))
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
  # A complete step in the emulator takes minutes.
  [ "$S_SMALL" = 0 ] || names=("a graph holds what a stream can do, and nothing else")
  make_data
  for name in "${names[@]}"; do queue one_test "$name"; done
  for precision in $(precisions); do queue capture_train "$precision" "nacre train"; done
  remember
  work_off 140
  facts "\"checks\": $jobs_queued, \"passed\": $passed, \"failed\": $(json_list "${failed[@]}")"
  why "$passed of $jobs_queued comparisons of captured with eager steps are equal"
  conclude
}

# ---- reruns -----------------------------------------------------------------------------------------------------------------
hash_of() { cat "$@" | sha256sum | cut -d' ' -f1; }
keep_hash() { # group, files...: appends `group hash` to the list of hashes
  local files=("${@:2}") file
  for file in "${files[@]}"; do [ -s "$file" ] || { echo "$file is not there"; return 1; }; done
  printf '%s %s\n' "$1" "$(hash_of "${files[@]}")" >>"$S_WORK/hashes"
}
rerun_steps=$((${S_EMULATED:-0} ? 3 : 6))
rerun_train() { # precision, number
  local run=$S_WORK/run-$1-$2 files
  train "$run" "$1" $rerun_steps || return
  mapfile -t files < <(last_files "$run" $rerun_steps)
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
  local late=0 runs=20 i precision what verb count different hashes bad=() text='' all_failed=() total=0 groups=()
  [ "$S_SMALL" = 0 ] || runs=2
  make_data
  : >"$S_WORK/hashes"
  for verb in train encode decode; do
    for precision in $(precisions); do
      [ $verb = train ] || [ "$precision" != bf16 ] || continue # bf16 is for training
      groups+=("$verb $precision")
    done
  done
  for verb in train encode decode; do
    jobs_queued=0
    for precision in $(precisions); do
      [[ " ${groups[*]} " == *" $verb $precision "* ]] || continue
      for ((i = 1; i <= runs; ++i)); do queue rerun_$verb "$precision" $i; done
    done
    echo "== $verb"
    work_off 60
    all_failed+=("${failed[@]/#/$verb }")
    total=$((total + jobs_queued))
    [ $stopping = 0 ] && [ ${#slow[@]} = 0 ] || late=1
    # Encoding needs a trained model, and decoding needs codes.
    [ ${#failed[@]} = 0 ] && [ $unfinished = 0 ] || break
  done
  for what in "${groups[@]}"; do
    mapfile -t hashes < <(grep "^$what " "$S_WORK/hashes" | cut -d' ' -f3 | sort -u)
    count=$(grep -c "^$what " "$S_WORK/hashes")
    different=${#hashes[@]}
    echo "$what: $count runs, $different different: ${hashes[*]:0:4}"
    # Runs that were stopped or exceeded this budget may be missing. The runs that exist must still be equal.
    if [ "$different" -gt 1 ] || { [ $late = 0 ] && [ "$count" != "$runs" ]; }; then bad+=("$what"); fi
    text+="${text:+, }$(json "$what"): {\"runs\": $count, \"different\": $different, \"sha256\": $(json "${hashes[0]:-}")}"
  done
  facts "\"groups\": {$text}, \"failed\": $(json_list "${all_failed[@]}")"
  [ $late = 0 ] || touch "$S_WORK/unfinished"
  if [ ${#bad[@]} = 0 ] && [ ${#all_failed[@]} = 0 ] && [ $late = 1 ]; then
    why "$(wc -l <"$S_WORK/hashes") runs: the same bytes within each group; the rest stopped or not begun"
    return 3
  elif [ ${#bad[@]} = 0 ] && [ ${#all_failed[@]} = 0 ]; then
    why "$total runs in ${#groups[@]} groups: the same bytes within each"
  else
    why "not $runs equal runs of: $(IFS=,; echo "${bad[*]:-${all_failed[*]}}")"
    return 1
  fi
}
