#!/usr/bin/env bash
# From a fresh clone to decoded speech: installs packages, builds, makes ten minutes of synthetic Telugu speech, trains a
# small codec on it for a few minutes, encodes and decodes held-out sentences, and writes an HTML page about the run. All
# files are written to quickstart/. A second run trains again and reuses the rest.
#
#   scripts/quickstart.sh [--real] [--keep]
#
#   --real    use recorded speech: six and a half hours in six languages from Debian packages (345 MB to download,
#             scripts/real_speech.sh), evaluated on two other languages; files are written to quickstart-real/
#   --keep    continue the existing run, if there is one
set -euo pipefail

# Configuration and number of steps for each kind of speech. The initialisation of the codebooks takes about as long as these steps.
synthetic_config=speech-16k-small synthetic_steps=600
real_config=speech-16k-small real_steps=600
real_judged=30 # held-out files to encode, decode and score at the end, spread over all of them

speech=synthetic keep=no
for option in "$@"; do
  case $option in
    --real) speech=real ;;
    --keep) keep=yes ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "usage: $0 [--real] [--keep]" >&2; exit 2 ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
if [ $speech = real ]; then
  out=quickstart-real config=$real_config steps=$real_steps
else
  out=quickstart config=$synthetic_config steps=$synthetic_steps
fi
steps=${NACRE_QUICKSTART_STEPS:-$steps}
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
scripts/packages.sh "$([ $speech = real ] && echo real || echo all)"

begin "building"
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
cmake --preset cpu "${launcher[@]}" >/dev/null
cmake --build --preset cpu --target nacre_program

begin "$([ $speech = real ] && echo "fetching" || echo "making") speech"
if [ -d "$out/data/valid" ]; then
  echo "$out/data already exists"
elif [ $speech = real ]; then
  scripts/real_speech.sh --debs "$out/debs" "$out/data"
else
  scripts/make_speech.sh "$out/data"
fi
# The files to listen to at the end.
mapfile -t judged < <(find "$out/data/valid" -type f | LC_ALL=C sort)
if [ $speech = real ]; then
  every=$(((${#judged[@]} + real_judged - 1) / real_judged))
  mapfile -t judged < <(printf '%s\n' "${judged[@]}" | awk -v every=$every 'NR % every == 0')
  what="recorded speech: ${#judged[@]} files of two held-out languages, spread over all of them"
else
  what="synthetic speech: held-out sentences"
fi

begin "training, $steps steps"
[ "$keep" = yes ] || rm -rf "$out/run"
"$nacre" train --config "$config" --data_dir "$out/data" --checkpoint_dir "$out/run" --num_epochs 1000000 --max_steps "$steps" \
  --set training.schedule_steps="$steps"

begin "encoding and decoding held-out speech"
rm -rf "$out/encoded" "$out/decoded"
"$nacre" encode --model "$out/run" "${judged[@]}" -o "$out/encoded/"
"$nacre" decode --model "$out/run" "$out/encoded" -o "$out/decoded/"
table=$out/encoded/sizes.txt
facts() { "$nacre" info "$1" | sed -n 's/.* \([0-9]*\) Hz, .* \([0-9]*\) samples.*/\1 \2/p'; } # rate, samples
for file in "${judged[@]}"; do
  name=$(basename "${file%.*}")
  fact=$(facts "$file")
  if [ -z "$fact" ] || [ "$fact" != "$(facts "$out/decoded/$name.wav")" ]; then
    echo "$name: the decoded file has another rate or length" >&2
    exit 1
  fi
  echo "$name $fact $(stat -c %s "$file") $(stat -c %s "$out/encoded/$name.nacre")"
done >"$table"
nominal=$("$nacre" info "$out/run/config.json" | sed -n 's|.* \([0-9.]*\) kbit/s$|\1|p')
awk -v nominal="$nominal" '
  function line(name, seconds, wav, bytes) {
    printf "   %-28s %8.2f %10d %9d %8.2f %+8.1f %%\n", name, seconds, wav, bytes, 8 * bytes / seconds / 1000,
           100 * (8 * bytes / seconds / 1000 / nominal - 1)
  }
  BEGIN { printf "   %-28s %8s %10s %9s %8s %10s\n", "file", "s", "file bytes", "bytes", "kbit/s", "to nominal" }
  { seconds = $3 / $2; line($1, seconds, $4, $5); s += seconds; w += $4; b += $5
    if (8 * $5 / seconds > 1.05 * 1000 * nominal) over++ }
  END { line("all", s, w, b)
        if (over) { printf "%d files are more than 5 %% above %g kbit/s\n", over, nominal > "/dev/stderr"; exit 1 } }' "$table"

begin "evaluating and reporting"
"$nacre" eval --model "$out/run" --baseline opus "${judged[@]}"
"$nacre" report --run "$out/run" --data_dir "$out/data" -f -o "$out/report.html"
printf '   done in %s\n' "$(duration $((SECONDS - stage_from)))"

cat <<END

All done in $(duration $SECONDS). The figures above are on $what.
  the page:         $root/$out/report.html
  the model:        $root/$out/run
  decoded speech:   $root/$out/decoded/
$([ $speech = synthetic ] || echo "  its licences:     $root/$out/data/licences/")
END
