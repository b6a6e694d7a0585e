# shellcheck shell=bash
# Parts of scripts/gpu_suite.sh that measure: nacre_bench, other libraries, PyTorch.

# ---- bench, peers ---------------------------------------------------------------------------------------------------------
bench_size() { if [ "$S_SMALL" = 1 ]; then echo --small; else echo "--seconds=$S_SECONDS"; fi; }
make_cases() { bench --device "$S_DEVICE" "$(bench_size)" --cases "$S_OUT/cases.json"; }
# Runs one process after another until all cases are done. A kernel that breaks the device or hangs ends nacre_bench,
# and the next process continues after its case. Each process leaves a file, possibly without its end. The files are
# then merged.
measure_like() { # filter; uses the variables of measure
  for (( ; left > 0; --left)); do
    n=$((n + 1))
    last=$(wc -l <"$begun")
    bench --device "$S_DEVICE" "$(bench_size)" --benchmark_filter="$1" --progress "$begun" --limit $((limit > 0 ? limit : 1)) \
      --benchmark_out="$pieces/$(printf %03d $n).json" --benchmark_out_format=json
    code=$?
    if [ $stopping = 1 ]; then # the current case was interrupted and has not failed
      [ "$(wc -l <"$begun")" = "$last" ] || recorded "$pieces/$(printf %03d $n).json" "$(tail -n 1 "$begun")" || sed -i '$d' "$begun"
      break
    fi
    [ $code -gt 1 ] || break
    if [ "$(wc -l <"$begun")" = "$last" ]; then # no case was running
      echo "nacre_bench ended with exit code $code before its first case"
      break
    fi
    if ! recorded "$pieces/$(printf %03d $n).json" "$(tail -n 1 "$begun")"; then
      n=$((n + 1))
      broken "$(tail -n 1 "$begun")" "$code" "$limit" >"$pieces/$(printf %03d $n).json"
    fi
    echo "nacre_bench ended with exit code $code in $(tail -n 1 "$begun"); another process continues"
  done
}
measure() { # bench, headline or baselines; filters, run in this order
  local out=$S_OUT/$1.json pieces=$S_OUT/state/$1-pieces begun=$S_OUT/state/$1-pieces/begun
  local code=0 worst=0 n last bad failed left=20 filter all=0 limit=$((S_LIMIT / 2 < 60 ? S_LIMIT / 2 : 60))
  [ "$S_EMULATED" = 0 ] || limit=$((S_LIMIT / 2))
  make_cases || { why "nacre_bench --cases failed"; return 1; }
  [ "$S_RESUME" = 1 ] || rm -rf "$pieces"
  mkdir -p "$pieces" && touch "$begun"
  n=$(find "$pieces" -name '*.json' | wc -l)
  for filter in "${@:2}"; do
    measure_like "$filter"
    [ $code -le $worst ] || worst=$code
    [ $stopping = 0 ] && [ $code -le 1 ] || break
  done
  merge "$pieces"/*.json >"$out"
  facts "\"processes\": $((21 - left)), \"failed\": $(
    mapfile -t bad < <(bad_cases "$out")
    json_list "${bad[@]}"
  )"
  failed=$(bad_cases "$out" | wc -l)
  why "$(($(grep -c '"run_type": "iteration"' "$out") - $(grep -c '"error_occurred": true' "$out"))) cases measured, $failed failed"
  if [ $stopping = 1 ]; then
    touch "$S_WORK/unfinished"
    for filter in "${@:2}"; do
      all=$((all + $(sed -n 's/.*"name":"\([^"]*\)".*/\1/p' "$S_OUT/cases.json" |
        if [[ $filter == -* ]]; then grep -vcE "${filter#-}\$"; else grep -cE "$filter"; fi)))
    done
    why "$(cat "$S_WORK/why"), $((all - $(wc -l <"$begun"))) not begun"
  fi
  [ "$failed" = 0 ] || return 1
  [ $stopping = 0 ] || return 3
  return $worst
}
recorded() { grep -qF "\"name\": \"$2/iterations:" "$1" || grep -qF "\"name\": \"$2\"" "$1"; } # file, case
broken() { # case, exit code, limit: a result in Google Benchmark's format
  local what="nacre_bench ended with exit code $2"
  [ "$2" != 124 ] || what="ran past $3 s"
  [ "$2" -le 128 ] || [ "$2" -gt 160 ] || what="nacre_bench ended by signal $(kill -l "$2")"
  printf '    {\n      "name": %s,\n      "run_type": "iteration",\n      "error_occurred": true,\n      "error_message": %s\n    }\n' \
    "$(json "$1")" "$(json "$what")"
}
bad_cases() { # prints the names of failed cases; skipped ones are not among them
  awk '/^    \{/ { name = bad = "" }
    /^ *"name": / { name = $0; gsub(/^ *"name": "|",?$/, "", name); sub(/\/iterations:.*/, "", name) }
    /^ *"error_occurred": true/ { bad = 1 }
    /^ *"error_message": "skipped: / { bad = "" }
    /^    \}/ { if (bad) print name }' "$1"
}
merge() { # files of --benchmark_out, some truncated: the first one's context and all complete results
  awk 'FNR == 1 { head = 1; element = "" }
    head && /^  "benchmarks": \[/ { if (!begun++) print context $0; context = ""; head = 0; next }
    head && !/^    \{/ { context = context $0 "\n"; next }
    /^    \{/ { head = 0; element = "    {"; next }
    element != "" { element = element "\n" ($0 ~ /^    \}/ ? "    }" : $0) }
    element != "" && /^    \}/ { printf "%s%s", between, element; between = ",\n"; element = "" }
    END { if (!begun) print "{\n  \"context\": {},\n  \"benchmarks\": ["; print "\n  ]\n}" }' "$@"
}
# The cases of most interest: the ops on which a step and decoding spend their time, whole steps, and decoding. In bf16,
# on the shapes of DAC at 44.1 kHz, batch 72. There are two filters, so that whole models come last. Google Benchmark
# appends "/iterations:1" to a name.
headline=(
  '^(snake_(forward|backward)/bf16/(72x16896x(64|96)|16x264x768)|conv1d_[a-z]+(_gradient)?/bf16/k7_d1/72x(16896x(64|96)|8448x(128|192)|2112x256|264x768)/to:[0-9]+|rvq_(forward|backward|decode)/(72x33x1024/9x1024x8|16x400x128/12x1024x128)|spectral_loss/(dac/72|dac16k/16|three/16)x[0-9x]+|vq_nearest/1x1048576x8/1024|(weight_norm_adamw/bf16/dac-44k|adamw)/7[0-9]{7})(/iterations|$)'
  '^codec_(step/(speech-16k|dac-16k)/bf16/16x16000/captured|step/dac-44k/bf16/(16|72)x16896/captured|decode/(speech-16k/16|dac-44k/(1|16))x[0-9]+/tf32)(/iterations|$)'
)
headline_small=(
  '^(snake_(forward|backward)/bf16/|conv1d_(forward|input_gradient|weight_gradient)/bf16/k7_d1/|rvq_|vq_nearest/|spectral_loss/(dac|three)/|weight_norm_adamw/bf16/|adamw/)'
  '^codec_(step/speech-16k/bf16/.*/captured|decode/speech-16k/.*/tf32)(/iterations|$)'
)
part_headline() {
  local filters=("${headline[@]}")
  [ "$S_SMALL" = 0 ] || filters=("${headline_small[@]}")
  measure headline "${filters[@]}"
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
  command -v "$python" >/dev/null || skip "$python was not found"
  # One process for all checks, because the import takes seconds.
  "$python" -c 'import sys
try:
    import torch
except Exception as e:
    print("import torch:", e)
    sys.exit(78)
sys.exit(0 if torch.cuda.is_available() else 79)'
  case $? in
    0) ;;
    79) skip "this PyTorch finds no CUDA device" ;;
    *) skip "$python has no PyTorch" ;;
  esac
  [ -f "$root/bench/peers/op_peers.py" ] || { why "bench/peers/op_peers.py is missing"; return 1; }
  [ -s "$S_OUT/cases.json" ] || make_cases || { why "nacre_bench --cases failed"; return 1; }
  "$python" "$root/bench/peers/op_peers.py" --cases "$S_OUT/cases.json" --out "$S_OUT/peers-$1.json" --device "$S_DEVICE" \
    --set "$@"
  code=$?
  why "$(cat "$S_OUT/peers-$1.json" 2>/dev/null | grep -o '"peer":' | wc -l) results"
  return $code # 3: its budget was spent
}
# Peers stop by themselves before their limit, after the current case, and continue in the next call.
peers_budget() { echo $((S_LIMIT > 40 ? S_LIMIT - 20 : (S_LIMIT + 1) / 2)); }
part_headline-peers() {
  local go_on=(--resume)
  [ "$S_RESUME" = 1 ] || { go_on=() && rm -f "$S_OUT/peers-eager.json"; }
  peers eager "${go_on[@]}" --filter "${headline[0]}|${headline[1]}" --peers eager --seconds 0.05 --limit 15 \
    --budget "$(peers_budget)"
}
# Only the variants known to be fastest, because compiling takes most of a minute: convolutions as two-dimensional ones
# in channels-last layout, with frozen weights where nothing is trained, captured as a graph; and XLA. Decoding comes
# first.
best_of() { # seconds, filter of cases, peers
  peers compiled --resume --filter "$2" --peers "$3" --limit $(($1 > 1 ? $1 : 1)) --budget $(($1 * 2 / 3 > 1 ? $1 * 2 / 3 : 1))
}
best_of_jax() { # seconds, filter of cases
  [ -f "$root/bench/peers/jax_peers.py" ] || return 0
  "$S_PYTHON" -c 'import jax' 2>/dev/null || { echo "$S_PYTHON has no JAX" && return 0; }
  "$S_PYTHON" "$root/bench/peers/jax_peers.py" --cases "$S_OUT/cases.json" --out "$S_OUT/peers-jax.json" --filter "$2" --resume \
    --budget $(($1 * 2 / 3 > 1 ? $1 * 2 / 3 : 1))
}
worse() { [ "$1" = 0 ] || { [ "$1" = 3 ] && [ $worst != 0 ]; } || worst=$1; } # exit code: updates worst
part_peers-best() {
  local third=$(((S_LIMIT - 6) / 3)) decoding='^codec_decode/dac-44k/16x[0-9]+/tf32$' worst=0
  best_of $third "$decoding" '(frozen|epilogues|compile)_two_d(_bf16)?'
  worse $?
  if [ $stopping = 0 ]; then
    best_of_jax $third "$decoding"
    worse $?
  fi
  if [ $stopping = 0 ]; then
    best_of $third '^codec_step/(speech-16k|dac-16k)/bf16/16x16000/captured$' compile_two_d_keep_type
    worse $?
  fi
  why "$(cat "$S_OUT"/peers-compiled.json "$S_OUT"/peers-jax.json 2>/dev/null | grep -o '"peer":' | wc -l) results"
  return $worst
}
core='eager|cudnn_benchmark(_tf32)?|adamw_fused_captured|addmm_captured'
part_peers() {
  local go_on=(--resume)
  [ "$S_RESUME" = 1 ] || { go_on=() && rm -f "$S_OUT/peers-eager.json"; }
  peers eager "${go_on[@]}" --peers "$core" --seconds 0.05 --limit 20 --budget "$(peers_budget)"
}
part_peers-all() { peers eager --resume --limit 60 --budget "$(peers_budget)"; }
part_peers-compiled() { peers compiled --resume --budget "$(peers_budget)"; }
