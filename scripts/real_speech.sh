#!/usr/bin/env bash
# Makes a folder of recorded speech from Debian packages: 392 minutes for training (Spanish, French, Italian, Russian, Czech,
# Dutch) and 43 held-out minutes in other languages (English, Malayalam). Downloads 345 MB by apt-get download, which needs
# no root. DIR takes 0.6 GB, and as much again while it is made.
#
#   scripts/real_speech.sh [--debs FOLDER] DIR     --debs: keep the packages in FOLDER, and use those that are already there
#
#   DIR/train/SET/, DIR/valid/SET/    the audio, as nacre train expects it, without files under 8 KiB (1 s of G.722, 0.25 s of WAV)
#   DIR/licences/PACKAGE.txt          the copyright file of each package; PACKAGES.txt lists the versions of the packages
#
# The speaker of the English prompts also reads the Spanish prompts: English is an unseen language, Malayalam also has unseen voices.
# Exit codes: 2 usage, 3 a package is damaged or contains no audio, 4 a tool is missing, a download failed or the disk is full.
set -euo pipefail
fail() {
  echo "real_speech: ${*:2}" >&2
  exit "$1"
}
usage() { fail 2 "usage: $0 [--debs FOLDER] DIR"; }

# Prints one line per set: package, set, conversion of its files, and the folder in the package with the files.
sets() {
  cat <<'END'
festvox-ru                     train/festvox-ru   copy  usr/share/festival/voices/russian/msu_ru_nsh_clunits/wav
fillets-ng-data-cs             train/fillets-cs   copy  usr/share/games/fillets-ng/sound
fillets-ng-data-nl             train/fillets-nl   copy  usr/share/games/fillets-ng/sound
asterisk-core-sounds-es-g722   train/asterisk-es  g722  usr/share/asterisk/sounds/es_MX_f_Allison
asterisk-core-sounds-fr-g722   train/asterisk-fr  g722  usr/share/asterisk/sounds/fr_CA_f_June
asterisk-core-sounds-it-g722   train/asterisk-it  g722  usr/share/asterisk/sounds/it_IT_m_Carlo
asterisk-core-sounds-ru-g722   train/asterisk-ru  g722  usr/share/asterisk/sounds/ru_RU_f_IvrvoiceRU
asterisk-core-sounds-en-g722   valid/asterisk-en  g722  usr/share/asterisk/sounds/en_US_f_Allison
klettres-data                  valid/malayalam    ogg   usr/share/klettres/ml
END
}

debs='' out=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --debs)
      debs=${2:-}
      [ -n "$debs" ] || usage
      shift
      ;;
    -* | '') usage ;;
    *) [ -z "$out" ] || usage; out=$1 ;;
  esac
  shift
done
[ -n "$out" ] || usage
for tool in apt-get dpkg-deb ffmpeg; do
  command -v "$tool" >/dev/null ||
    fail 4 "$tool is missing; $([ $tool = ffmpeg ] && echo "install it (apt-get install ffmpeg): the prompts are G.722" || echo "the script needs Debian or a derivative")"
done

mkdir -p "$(dirname "$out")" || fail 4 "$(dirname "$out"): cannot create the folder"
out=$(cd "$(dirname "$out")" && pwd)/$(basename "$out")
if [ -n "$(ls -A "$out" 2>/dev/null)" ] && [ ! -f "$out/licences/PACKAGES.txt" ]; then
  fail 2 "$out: exists, and was not made by this script; choose another folder, or remove it"
fi
work=$(mktemp -d "$out.XXXXXX") || fail 4 "$(dirname "$out"): cannot write"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ -n "$debs" ]; then
  mkdir -p "$debs" || fail 4 "$debs: cannot create the folder"
  debs=$(cd "$debs" && pwd)
else
  debs=$work/debs
  mkdir "$debs"
fi

fetch() { # package: sets deb to its file
  local found
  found=$(find "$debs" -maxdepth 1 -name "$1_*.deb" | sort | tail -n 1)
  if [ -z "$found" ]; then
    echo "downloading $1"
    rm -rf "$work/download" && mkdir "$work/download"
    # An interrupted download is never moved to the packages.
    if ! (cd "$work/download" && apt-get download "$1" >log 2>&1 </dev/null) ||
      ! found=$(find "$work/download" -name "$1_*.deb" | grep .) || ! mv "$found" "$debs/"; then
      fail 4 "package $1 cannot be downloaded ($(grep '^E:' "$work/download/log" | head -n 1 | sed 's/^E: *//')); apt-get update," \
        "as root, updates the lists of packages"
    fi
    found=$debs/$(basename "$found")
  fi
  deb=$found
}
convert() { # way, files' root, folder: reads file names, relative to the root and NUL-separated, from standard input
  local way=$1 root=$2 to=$3 file name inputs=() outputs=() n=0
  run() { # many files per process, because starting one takes longer than converting a file
    [ $n = 0 ] || ffmpeg -nostdin -loglevel error "${inputs[@]}" "${outputs[@]}" </dev/null ||
      fail 3 "ffmpeg cannot decode a file of $root"
    inputs=() outputs=() n=0
  }
  while IFS= read -r -d '' file; do
    name=$to/${file//\//-}
    case $way in
      copy) cp "$root/$file" "$name" || fail 4 "$name: cannot write" ;;
      g722) inputs+=(-f g722 -i "$root/$file") outputs+=(-map "$n" -c:a pcm_s16le "${name%.*}.wav"); n=$((n + 1)) ;;
      # These files lack the end-of-stream mark and look truncated. Decoding makes whole files of them. Both channels
      # contain the same voice.
      ogg) inputs+=(-i "$root/$file") outputs+=(-map "$n:a" -ac 1 -c:a flac -sample_fmt s16 "${name%.*}.flac"); n=$((n + 1)) ;;
    esac
    [ $n -lt 40 ] || run
  done
  run
}

mkdir -p "$work/data/train" "$work/data/valid" "$work/data/licences"
while read -r package set way folder; do # all downloads first, because they are the most likely to fail
  fetch "$package"
done < <(sets)
while read -r package set way folder; do
  fetch "$package"
  tree=$work/tree
  rm -rf "$tree" && mkdir "$tree"
  dpkg-deb -x "$deb" "$tree" 2>"$work/log" || fail 3 "$deb: cannot be unpacked ($(tail -n 1 "$work/log")); remove it and try again"
  to=$work/data/$set
  mkdir "$to"
  [ ! -d "$tree/$folder" ] ||
    (cd "$tree/$folder" && find . -type f \( -name '*.wav' -o -name '*.ogg' -o -name '*.g722' \) ! -path '*/silence/*' -size +8k \
      -printf '%P\0' | LC_ALL=C sort -z) | convert "$way" "$tree/$folder" "$to"
  files=$(find "$to" -type f | wc -l)
  [ "$files" -gt 0 ] || fail 3 "$deb: contains no audio in $folder; another version of the package may have moved it"
  cp "$tree/usr/share/doc/$package/copyright" "$work/data/licences/$package.txt" || fail 3 "$deb: contains no copyright file"
  echo "$package $(dpkg-deb -f "$deb" Version) $set" >>"$work/data/licences/PACKAGES.txt"
  echo "$set: $files files"
done < <(sets)
# The folder appears only when it is complete.
rm -rf "$out"
mv "$work/data" "$out"
