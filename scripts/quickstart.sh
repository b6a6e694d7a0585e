#!/usr/bin/env bash
# From nothing to a trained codec that can be heard: installs packages, builds, makes ten minutes of synthetic Telugu speech,
# trains a small codec on it for a few minutes, encodes and decodes sentences it has never heard, and writes a page about all
# of it. Everything lands in quickstart/; a second run trains anew and reuses the rest.
#
#   scripts/quickstart.sh [--keep]     --keep: go on with the run that is there, if there is one
set -euo pipefail

# What two cores train in five to six minutes (0.2 s a step, and an evaluation every 291).
steps=${NACRE_QUICKSTART_STEPS:-1400}
config=speech-16k-small

keep=no
case "${1:-}" in
  "") ;;
  --keep) keep=yes ;;
  -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) echo "usage: $0 [--keep]" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
out=quickstart
nacre=$root/build/cpu/nacre

duration() { printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); }
number=0 stage=starting stage_from=0
begin() {
  [ "$number" -eq 0 ] || printf '   done in %s\n' "$(duration $((SECONDS - stage_from)))"
  number=$((number + 1)) stage=$1 stage_from=$SECONDS
  printf '\n== %d/6 %s\n' "$number" "$1"
}
ended() {
  local code=$?
  [ "$code" -eq 0 ] || printf '\nquickstart: failed (exit code %d) while: %s\n' "$code" "$stage" >&2
}
trap ended EXIT

begin "installing packages"
scripts/packages.sh all

begin "building"
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
cmake --preset cpu "${launcher[@]}" >/dev/null
cmake --build --preset cpu --target nacre_program

begin "making speech"
if [ -d "$out/data/valid" ]; then
  echo "$out/data is there already"
else
  scripts/make_speech.sh "$out/data"
fi

begin "training, $steps steps"
[ "$keep" = yes ] || rm -rf "$out/run"
"$nacre" train --config "$config" --data_dir "$out/data" --checkpoint_dir "$out/run" --num_epochs 1000000 --max_steps "$steps"

begin "encoding and decoding held-out sentences"
rm -rf "$out/encoded" "$out/decoded"
"$nacre" encode --model "$out/run" "$out/data/valid" -o "$out/encoded/"
"$nacre" decode --model "$out/run" "$out/encoded" -o "$out/decoded/"
table=$out/encoded/sizes.txt
for wav in "$out"/data/valid/*.wav; do
  name=$(basename "$wav" .wav)
  [ "$(soxi -s "$wav")" = "$(soxi -s "$out/decoded/$name.wav")" ] || { echo "$name: the decoded file has another length" >&2; exit 1; }
  echo "$name $(soxi -D "$wav") $(stat -c %s "$wav") $(stat -c %s "$out/encoded/$name.nacre")"
done >"$table"
awk -v nominal=32000 '
  function line(name, seconds, wav, bytes) {
    printf "   %-28s %8.2f %10d %9d %8.2f %+8.1f %%\n", name, seconds, wav, bytes, 8 * bytes / seconds / 1000,
           100 * (8 * bytes / seconds / nominal - 1)
  }
  BEGIN { printf "   %-28s %8s %10s %9s %8s %10s\n", "sentence", "s", "wav bytes", "bytes", "kbit/s", "to nominal" }
  { line($1, $2, $3, $4); s += $2; w += $3; b += $4
    if (8 * $4 / $2 > 1.05 * nominal) over++ }
  END { line("all", s, w, b)
        if (over) { printf "%d files are more than 5 %% above %d bit/s\n", over, nominal > "/dev/stderr"; exit 1 } }' "$table"

begin "judging and reporting"
"$nacre" eval --model "$out/run" "$out/data/valid"
"$nacre" report --run "$out/run" --data_dir "$out/data" -f -o "$out/report.html"
printf '   done in %s\n' "$(duration $((SECONDS - stage_from)))"

cat <<END

All done in $(duration $SECONDS).
  the page:         $root/$out/report.html
  the model:        $root/$out/run
  decoded speech:   $root/$out/decoded/
END
