#!/usr/bin/env bash
# scripts/quickstart.sh from start to end, in its own tree with little speech. Packages and the build exist already, and
# the program is the real one. $1 is the source tree, $2 the program.
set -u
root=$(readlink -f "$1") nacre=$(readlink -f "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0
fail() {
  echo "FAILED: $1"
  [ -s out ] && sed 's/^/  out| /' out | tail -n 15
  [ -s err ] && sed 's/^/  err| /' err | tail -n 15
  failures=$((failures + 1))
}
quickstart() {
  PATH=$work/bin:$PATH NACRE_QUICKSTART_STEPS=2 tree/scripts/quickstart.sh "$@" >out 2>err </dev/null
  code=$?
}
expect_text() { grep -qE -- "$1" out || fail "$2: does not say '$1'"; }

mkdir -p bin tree/scripts tree/build/cpu
# A model of a few thousand weights, also at 32 kbit/s, replaces the full one, which would train too long.
cat >tree/tiny.json <<'JSON'
{"codec": {"encoder_dim": 4, "encoder_rates": [2, 2], "decoder_dim": 16, "decoder_rates": [2, 2], "latent_dim": 8,
           "quantizer": "ema", "metric": "euclidean", "n_codebooks": 2, "codebook_size": 16},
 "loss": {"windows": [16, 64], "mels": [5, 10]},
 "training": {"segment_length": 400, "batch_size": 2, "codebook_start_rows": 300}}
JSON
sed 's/_config=[a-z0-9-]* /_config=tiny.json /' "$root/scripts/quickstart.sh" >tree/scripts/quickstart.sh
chmod +x tree/scripts/quickstart.sh
[ "$(grep -c '_config=tiny.json ' tree/scripts/quickstart.sh)" = 2 ] || fail "the configurations are not where they were"
program() { # name; the text comes from standard input
  { echo '#!/usr/bin/env bash'; cat; } >"$1"
  chmod +x "$1"
}
echo 'exit 0' | program bin/cmake
# One thread: other tests run beside this one, and waiting threads would spin and take their time.
echo "case \$1 in train | encode | decode | eval | report) set -- \"\$@\" -t 1 ;; esac; exec '$nacre' \"\$@\"" | program tree/build/cpu/nacre
echo 'echo "packages: $*"' | program tree/scripts/packages.sh
cat >speech.sh <<'END'
bytes() { # $2 as $1 little-endian bytes, escaped for printf
  local i text=
  for ((i = 0; i < $1; ++i)); do printf -v text '%s\\x%02x' "$text" $((($2 >> (8 * i)) & 255)); done
  echo -n "$text"
}
wav() { # path, seconds, a text that is repeated as 16-bit samples
  mkdir -p "$(dirname "$1")"
  {
    printf 'RIFF'"$(bytes 4 $((36 + 32000 * $2)))"'WAVEfmt '"$(bytes 4 16)$(bytes 2 1)$(bytes 2 1)$(bytes 4 16000)"
    printf "$(bytes 4 32000)$(bytes 2 2)$(bytes 2 16)"'data'"$(bytes 4 $((32000 * $2)))"
    for ((i = 0; i < 32000 * $2 / ${#3} + 1; ++i)); do printf '%s' "$3"; done | head -c $((32000 * $2))
  } >"$1"
}
END
{ cat speech.sh && echo 'for i in 1 2 3; do wav "$1/$i.wav" 2 "A rather low sound, $i; a~rat!er hi#h on&"; done; wav "$1/valid/4.wav" 2 "Anoth%r so{nd"'; } |
  program tree/scripts/make_speech.sh
{
  cat speech.sh
  echo '[ "$1" = --debs ] || exit 1; echo "packages in $2"; mkdir "$2"'
  echo 'for i in 1 2 3; do wav "$3/train/set/$i.wav" 2 "A rather low sound, $i; a~rat!er hi#h on&"; done'
  echo 'for i in 1 2 3; do wav "$3/valid/one/a$i.wav" 2 "Anoth%r so{nd $i"; wav "$3/valid/two/b$i.wav" 2 "Ye& an$i}her"; done'
} | program tree/scripts/real_speech.sh

quickstart
[ $code = 0 ] || fail "exit code $code"
expect_text '^packages: all$' "synthetic speech"
expect_text '^start  step 0  loss ' "synthetic speech"
expect_text '^epoch 1  step 2  loss ' "synthetic speech"
expect_text '^   4  *2.00  *64044  *[0-9]*  *32\.[0-9]' "synthetic speech"
expect_text '^All done .* The figures above are on synthetic speech' "synthetic speech"
[ -s tree/quickstart/report.html ] && [ -s tree/quickstart/decoded/4.wav ] || fail "no page, or no decoded speech"
grep -qF "<td>Before training</td>" tree/quickstart/report.html || fail "the page lacks the start"
[ ! -e tree/quickstart-real ] || fail "recorded speech without being asked for"

for options in --real "--keep --real" "--real"; do
  # shellcheck disable=SC2086
  quickstart $options
  [ $code = 0 ] || fail "$options: exit code $code"
  expect_text '^packages: real$' "$options"
  expect_text 'The figures above are on recorded speech: 6 files of two held-out languages' "$options"
  [ -s tree/quickstart-real/report.html ] && [ "$(find tree/quickstart-real/decoded -name '*.wav' | wc -l)" = 6 ] ||
    fail "$options: no page, or not all decoded speech"
  if [ "$options" = "--keep --real" ]; then
    expect_text 'this run is finished' "$options"
  else
    expect_text '^epoch 1  step 2  loss ' "$options"
  fi
  if [ -e once ]; then expect_text 'quickstart-real/data already exists' "$options"; else expect_text '^packages in quickstart-real/debs' "$options"; fi
  touch once
done

quickstart --frobnicate
[ $code = 2 ] && [ "$(cat err)" = "usage: tree/scripts/quickstart.sh [--real] [--keep]" ] || fail "an unknown option: exit code $code"
quickstart --help
[ $code = 0 ] && grep -q -- '^  --real ' out && grep -q -- '^  --keep ' out || fail "--help"
echo 'echo "nothing comes" >&2; exit 4' | program tree/scripts/real_speech.sh
rm -r tree/quickstart-real
quickstart --real
[ $code = 4 ] && grep -q "^quickstart: failed (exit code 4) while: fetching speech" err || fail "no speech to be had: exit code $code"

[ $failures = 0 ] && echo "all is well" || echo "$failures failures"
[ $failures = 0 ]
