#!/usr/bin/env bash
# Runs both plans of scripts/gpu_suite.sh to their end at a small size, with the real programs on the emulated device.
# Every part must run and leave its results. There is no budget, and times are not checked. $1 is the source tree, $2
# the build.
set -u
root=$(readlink -f "$1") build=$(readlink -f "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0
fail() {
  echo "FAILED: $1"
  [ ! -s out ] || sed 's/^/  out| /' out | tail -n "${2:-40}"
  failures=$((failures + 1))
}
# Each launch runs in one order. Other tests run each kernel in all orders.
export NACRE_EMULATION=forward

# ---- speech ----------------------------------------------------------------------------------------------------------------
bytes() { # $2 as $1 little-endian bytes, escaped for printf
  local i text=
  for ((i = 0; i < $1; ++i)); do printf -v text '%s\\x%02x' "$text" $((($2 >> (8 * i)) & 255)); done
  printf '%s' "$text"
}
sound() { # path, samples, period: a triangle at 16 kHz
  local t v text=''
  for ((t = 0; t < $2; ++t)); do
    v=$((t % $3 * 2 - $3)) v=$((((v < 0 ? -v : v) * 2 - $3) * 8000 / $3))
    printf -v v '\\x%02x\\x%02x' $((v & 255)) $(((v >> 8) & 255))
    text+=$v
  done
  # shellcheck disable=SC2059
  printf "RIFF$(bytes 4 $((36 + 2 * $2)))WAVEfmt $(bytes 4 16)$(bytes 2 1)$(bytes 2 1)$(bytes 4 16000)$(
    bytes 4 32000)$(bytes 2 2)$(bytes 2 16)data$(bytes 4 $((2 * $2)))$text" >"$1"
}
mkdir -p speech/valid
for i in 0 1 2; do sound speech/$i.wav $((700 + 100 * i)) $((50 + 20 * i)); done
sound speech/valid/3.wav 800 64

# ---- the two calls -----------------------------------------------------------------------------------------------------------
plan() { # first or second, then options
  "$root/scripts/gpu_suite.sh" --plan "$@" --small --budget none --build "$build" --out work --bring home --speech speech \
    >out 2>&1 </dev/null
  code=$?
  [ $code = 0 ] || fail "--plan $1 ended with exit code $code" 200
}
outcome() { # part, word
  grep -qE "^$1 +$2 " out || fail "$1: not '$2'"
}
plan first
for part in probes tests mission headline; do
  if [ $part = probes ] && [ ! -x "$build/bench/nacre_probes" ]; then
    outcome probes "not run"
  else
    outcome $part ok
  fi
done
outcome headline-peers "not run" # PyTorch cannot use the emulated device
plan second
for part in capture reruns; do outcome $part ok; done
grep -qE '^sanitizer +(ok|not run) ' out || fail "sanitizer: neither ok nor not run"
outcome peers-best "not run"

# ---- what they leave ---------------------------------------------------------------------------------------------------------
for file in first.tar.gz first.md second.tar.gz second.md; do
  [ -s home/$file ] || fail "$file is not brought back"
done
model=$(cd home && echo mission-*)
[[ $model =~ ^mission-(bf16|fp32).safetensors.00$ ]] || fail "not one model is brought back: $model"
[ "$(find home -type f | wc -l)" = 5 ] || fail "what is brought back is $(ls home)"
python3 - <<'PY' >said 2>&1 || { cat said; fail "the results are not what they should be"; }
import json
mission = json.load(open("work/mission.json"))
assert [r["precision"] for r in mission["runs"]] == ["bf16", "fp32"], mission
for run in mission["runs"]:
    assert run["exit"] == 0 and run["ended"] == "all epochs" and run["epochs"] and run["best_model"]["bytes"] > 0, run
    for epoch in run["epochs"]:
        assert all(isinstance(epoch[k], float) for k in ("valid/loss", "valid/snr", "valid/output_std")), epoch
ours = {b["name"].split("/iterations")[0]: b for b in json.load(open("work/headline.json"))["benchmarks"]}
for start in ("snake_forward", "snake_backward", "conv1d_forward", "conv1d_input_gradient", "conv1d_weight_gradient",
              "rvq_forward", "spectral_loss", "weight_norm_adamw", "codec_step", "codec_decode"):
    found = [n for n in ours if n.startswith(start)]
    assert found and not any(ours[n].get("error_occurred") for n in found), (start, sorted(ours))
parts = {p["part"]: p["outcome"] for p in json.load(open("work/suite.json"))["parts"]}
assert parts["tests"] == parts["mission"] == parts["headline"] == parts["capture"] == parts["reruns"] == "ok", parts
PY
# The model that comes back must load.
cat home/mission-*.safetensors.0? >model.safetensors
"$build/nacre" info model.safetensors >out 2>&1 || fail "the model that is brought back cannot be read"
"$root/scripts/gpu_report.py" --out results home/first.tar.gz home/second.tar.gz >out 2>&1 || fail "the report of both calls"
for file in report.md suite.json bench.json mission.json; do
  [ -s results/emulated/$file ] || fail "the report of both calls has no $file"
done

# ---- names that a real call needs
# ---------------------------------------------------------------------------------------------
"$build/bench/nacre_bench" --device cuda --cases cases.json >out 2>&1 || fail "nacre_bench --cases"
mapfile -t headline < <(bash "$root/scripts/gpu_suite.sh" __headline)
python3 - "$root/bench/goals.json" "${headline[@]}" <<'PY' >said 2>&1 || { cat said; fail "the headline or the goals name cases that nacre_bench has not"; }
import json, re, sys
names = [c["name"] for c in json.load(open("cases.json"))["cases"]]
found = [n for n in names if any(re.search(h, n) for h in sys.argv[2:])]
convolutions = [n for n in found if n.startswith("conv1d_")]
assert len(convolutions) == 6 * 3, convolutions
for start in ("snake_forward", "snake_backward", "rvq_forward", "spectral_loss", "weight_norm_adamw", "adamw", "codec_step/dac-16k",
              "codec_step/dac-44k", "codec_decode"):
    assert any(n.startswith(start) for n in found), (start, found)
print("\n".join(found))
missing = [g["case"] for g in json.load(open(sys.argv[1]))["goals"] if g["case"] not in names]
assert not missing, missing
PY

[ $failures = 0 ] && echo "all is well" || echo "$failures failures"
[ $failures = 0 ]
