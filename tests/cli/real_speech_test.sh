#!/usr/bin/env bash
# scripts/real_speech.sh with packages made here and stubs of the programs that download, unpack and decode. No network.
# $1 is the source tree.
set -u
root=$(readlink -f "$1")
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
speech() { # options
  PATH=$work/bin:$PATH "$root/scripts/real_speech.sh" "$@" >out 2>err </dev/null
  code=$?
}
refused() { # exit code, text, options: expects one line with that text, and no files left behind
  local before
  before=$(find . -path ./bin -prune -o -path ./out -prune -o -path ./err -prune -o -print | sort)
  speech "${@:3}"
  [ "$code" = "$1" ] || fail "${*:3}: exit code $code, expected $1"
  [ "$(wc -l <err)" = 1 ] && grep -q '^real_speech: ' err || fail "${*:3}: not one clear line"
  grep -qF -- "$2" err || fail "${*:3}: does not say '$2'"
  [ "$(find . -path ./bin -prune -o -path ./out -prune -o -path ./err -prune -o -print | sort)" = "$before" ] ||
    fail "${*:3}: leaves something behind"
}

# ---- stub programs: a package is a tar file
# -----------------------------------------------------------------------------------
mkdir bin archive
program() { # name; the text comes from standard input
  { echo '#!/usr/bin/env bash'; cat; } >"bin/$1"
  chmod +x "bin/$1"
}
program apt-get <<END
[ "\$1" = download ] || exit 1
cat >/dev/null # reads what is there to be read, as some programs do
cp "$work/archive/\$2"_*.deb . 2>/dev/null || { echo "E: Unable to locate package \$2" >&2; exit 100; }
END
program dpkg-deb <<'END'
case $1 in
  -x) tar -xf "$2" -C "$3" ;;
  -f) echo 1.5 ;;
esac
END
program ffmpeg <<'END'
cat >/dev/null
ins=() outs=()
while [ $# -gt 0 ]; do
  case $1 in
    -i) ins+=("$2"); shift ;;
    *.wav | *.flac) outs+=("$1") ;;
  esac
  shift
done
[ ${#ins[@]} = ${#outs[@]} ] || exit 1
for i in "${!ins[@]}"; do { echo decoded; cat "${ins[i]}"; } >"${outs[i]}"; done
END
sound() { mkdir -p "$(dirname "$1")" && { echo "$1" && head -c "$2" /dev/zero; } >"$1"; }
package() { # name; makes archive/NAME_1.deb of tree/
  mkdir -p "tree/usr/share/doc/$1"
  echo "licence of $1" >"tree/usr/share/doc/$1/copyright"
  tar -cf "archive/$1_1.deb" -C tree usr
  rm -rf tree
}
games=usr/share/games/fillets-ng/sound prompts=usr/share/asterisk/sounds
sound tree/usr/share/festival/voices/russian/msu_ru_nsh_clunits/wav/ru_1.wav 9000
sound tree/usr/share/festival/voices/russian/msu_ru_nsh_clunits/wav/short.wav 2000
package festvox-ru
for language in cs nl; do
  sound tree/$games/city/$language/a.ogg 9000 # the same name twice
  sound tree/$games/deep/$language/a.ogg 9000
  package fillets-ng-data-$language
done
for voice in es_MX_f_Allison fr_CA_f_June it_IT_m_Carlo ru_RU_f_IvrvoiceRU en_US_f_Allison; do
  for ((i = 0; i < 45; ++i)); do sound "tree/$prompts/$voice/digits/$i.g722" 9000; done # more than one call of ffmpeg
  sound "tree/$prompts/$voice/with space.g722" 9000
  sound "tree/$prompts/$voice/silence/1.g722" 9000
  package "asterisk-core-sounds-${voice:0:2}-g722"
done
sound tree/usr/share/klettres/ml/alpha/a.ogg 9000
sound tree/usr/share/klettres/te/alpha/a.ogg 9000
package klettres-data

# ---- a folder of speech ------------------------------------------------------------------------------------------------------
speech --debs kept speech
[ $code = 0 ] || fail "exit code $code"
[ "$(cd speech && find train valid -mindepth 1 -maxdepth 1 | sort | tr '\n' ' ')" = "train/asterisk-es train/asterisk-fr train/asterisk-it \
train/asterisk-ru train/festvox-ru train/fillets-cs train/fillets-nl valid/asterisk-en valid/malayalam " ] || fail "other sets"
[ "$(ls speech/train/festvox-ru)" = ru_1.wav ] || fail "short files are taken"
[ "$(ls speech/train/fillets-cs | tr '\n' ' ')" = "city-cs-a.ogg deep-cs-a.ogg " ] || fail "files of one name are lost"
[ "$(find speech/train/asterisk-it | wc -l)" = 47 ] || fail "not all prompts, or silence with them"
for file in digits-0 digits-44 "with space"; do
  [ "$(head -n 1 "speech/valid/asterisk-en/$file.wav" 2>/dev/null)" = decoded ] || fail "$file was not decoded"
  grep -qaF "/${file##*-}.g722" "speech/valid/asterisk-en/$file.wav" || fail "$file is another file's sound"
done
[ "$(ls speech/valid/malayalam)" = alpha-a.flac ] || fail "other Malayalam than expected"
[ "$(wc -l <speech/licences/PACKAGES.txt)" = 9 ] || fail "not all packages are listed"
grep -qx "klettres-data 1.5 valid/malayalam" speech/licences/PACKAGES.txt || fail "a package's version is not listed"
[ "$(cat speech/licences/festvox-ru.txt)" = "licence of festvox-ru" ] || fail "no licence file"
[ "$(ls -A | tr '\n' ' ')" = "archive bin err kept out speech " ] || fail "something is left behind"
[ "$(find kept -name '*.deb' | wc -l)" = 9 ] || fail "--debs keeps other packages than nine"

# ---- errors change nothing
# ----------------------------------------------------------------------------------------------------
mv archive gone
mkdir archive
speech --debs kept speech
[ $code = 0 ] || fail "packages that were kept are downloaded again"
grep -q downloading out && fail "packages that were kept are downloaded again"
find speech -type f -print0 | sort -z | xargs -0 cat | cksum >before
rm kept/klettres-data_1.deb
refused 4 "klettres-data cannot be downloaded (Unable to locate package klettres-data); apt-get update" --debs kept speech
refused 4 "festvox-ru cannot be downloaded" other
echo damaged >kept/klettres-data_1.deb
refused 3 "klettres-data_1.deb: cannot be unpacked" --debs kept speech
tar -cf kept/klettres-data_1.deb -C kept --exclude=klettres-data_1.deb . 2>/dev/null
refused 3 "klettres-data_1.deb: contains no audio in usr/share/klettres/ml" --debs kept speech
cp gone/klettres-data_1.deb kept
mv bin/ffmpeg ffmpeg
echo 'exit 1' | program ffmpeg
refused 3 "ffmpeg cannot decode" --debs kept speech
find speech -type f -print0 | sort -z | xargs -0 cat | cksum | cmp -s - before || fail "a failure changes the folder that was there"
mkdir precious && echo keep >precious/file
refused 2 "was not made by this script" --debs kept precious
refused 2 "usage: "
refused 2 "usage: " --debs
refused 2 "usage: " a b
refused 2 "usage: " --frobnicate a
# Without ffmpeg: the path has only the programs that the script needs before it looks for ffmpeg.
mkdir poor
for tool in bash dirname; do ln -s "$(command -v $tool)" poor; done
cp bin/apt-get bin/dpkg-deb poor
PATH=$work/poor "$BASH" "$root/scripts/real_speech.sh" new >out 2>err </dev/null
code=$?
[ $code = 4 ] && [ "$(wc -l <err)" = 1 ] && grep -q "ffmpeg is missing; install it" err || fail "a missing ffmpeg: exit code $code"

[ $failures = 0 ] && echo "all is well" || echo "$failures failures"
[ $failures = 0 ]
