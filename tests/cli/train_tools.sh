# What the tests of `nacre train` share: a folder of short files, a small configuration, checks. $1 is the program.
nacre=$(readlink -f "$1")
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
cd "$work" || exit 1
RANDOM=${SEED:-1}
failures=0

fail() {
  echo "FAILED: $1"
  [ -s out ] && sed 's/^/  out| /' out | tail -n 12
  [ -s err ] && sed 's/^/  err| /' err | tail -n 12
  failures=$((failures + 1))
}
expect_code() { [ "$code" = "$1" ] || fail "$2: exit code $code, expected $1"; }
expect_text() { cat out err | grep -qF -- "$1" || fail "$2: does not say '$1'"; }
train() {
  "$nacre" train -t 1 "$@" >out 2>err
  code=$?
}
# Waits until `file` has `text`, as long as the run continues. The duration does not matter.
wait_for() {
  while kill -0 "$pid" 2>/dev/null; do
    grep -q -- "$2" "$1" 2>/dev/null && return 0
    sleep 0.05
  done
  grep -q -- "$2" "$1" 2>/dev/null && return 0
  fail "$1 never said '$2'"
  return 1
}
bytes() { # $2 as $1 little-endian bytes, escaped for printf
  local i text=
  for ((i = 0; i < $1; ++i)); do printf -v text '%s\\x%02x' "$text" $((($2 >> (8 * i)) & 255)); done
  echo -n "$text"
}
header() { # sample format (1 integers, 3 floats), bytes per sample, samples
  printf 'RIFF'"$(bytes 4 $((36 + $2 * $3)))"'WAVEfmt '"$(bytes 4 16)$(bytes 2 "$1")$(bytes 2 1)$(bytes 4 16000)"
  printf "$(bytes 4 $((16000 * $2)))$(bytes 2 "$2")$(bytes 2 $((8 * $2)))"'data'"$(bytes 4 $(($2 * $3)))"
}
wav() { # path, samples, period, amplitude: a triangle with a little noise
  local t v text= noise=12345
  for ((t = 0; t < $2; ++t)); do
    v=$((t % $3 * 2 - $3)) v=$(((v < 0 ? -v : v) * 2 - $3)) noise=$(((noise * 1103515245 + 12345) & 2147483647))
    v=$((v * $4 / $3 + noise % ($4 / 20 + 1)))
    printf -v text '%s\\x%02x\\x%02x' "$text" $((v & 255)) $(((v >> 8) & 255))
  done
  { header 1 2 "$2" && printf "$text"; } >"$1"
}
same_end() { # run a, run b, step
  local file
  for file in model.safetensors optimizer.safetensors; do
    cmp "$1/step-$3/$file" "$2/step-$3/$file" || fail "$2: $file is not what a run without interruption ends with"
  done
}

mkdir data
n=0
for samples in 2400 1600 3000 250 2000 1200; do wav data/$n.wav $samples $((30 + 11 * n)) $((9000 + 1000 * n++)); done
cat >tiny.json <<'JSON'
{"codec": {"encoder_dim": 4, "encoder_rates": [2, 2], "decoder_dim": 16, "decoder_rates": [2, 2], "latent_dim": 8,
           "quantizer": "ema", "metric": "euclidean", "n_codebooks": 2, "codebook_size": 16, "quantizer_dropout": 0.5},
 "loss": {"windows": [16, 64], "mels": [5, 10]}, "optimizer": {"ema_decay": 0.9},
 "training": {"segment_length": 400, "batch_size": 2, "codebook_start_rows": 300, "schedule": "cosine"}}
JSON
tiny() { train --data_dir data --config tiny.json "$@"; }
