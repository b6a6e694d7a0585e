#!/usr/bin/env bash
# Packs the files that scripts/gpu_suite.sh needs on a machine with a GPU, its driver and the CUDA libraries, but without
# this repository and the libraries that nacre is linked with: the stripped programs; their shared libraries, except those
# of the system and of CUDA; the speech of the quickstart as FLAC; scripts, peers, goals, golden data of the tests, and the
# commit. It prints the two commands to run there; docs/gpu.md describes their results.
#
#   scripts/gpu_pack.sh [--build DIR] [--speech DIR|--no-speech] [--out FILE.tar.xz] [--limit BYTES] [--stale]
#
#   --build DIR      the build to pack (default build/cuda)
#   --speech DIR     audio to train on there (default: quickstart/data; if that is missing, speech is made by
#                    scripts/make_speech.sh, which needs espeak-ng and sox)
#   --no-speech      pack no audio; the part mission then cannot run there
#   --out FILE       the archive to write (default build/nacre-gpu.tar.xz)
#   --limit BYTES    maximum size of the archive (default 62914560, which is 60 MiB)
#   --stale          also pack programs that were built from another commit
#
# Libraries are found through LD_LIBRARY_PATH, which the suite sets only for nacre's programs. The paths that programs were
# linked with need not be rewritten.
#
# Exit codes: 0 success, 2 usage, 3 the archive is larger than allowed, 4 reading or writing failed, 5 the programs were
# built from another commit.
set -euo pipefail
self=$(readlink -f "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$self")")
build=$root/build/cuda out=$root/build/nacre-gpu.tar.xz limit=62914560 stale=0
speech=''

fail() { # exit code, message
  echo "gpu_pack: ${*:2}" >&2
  exit "$1"
}
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$self"
      exit 0
      ;;
    --stale) stale=1 && shift && continue ;;
    --no-speech) speech=none && shift && continue ;;
    --build | --out | --limit | --speech) ;;
    --build=* | --out=* | --limit=* | --speech=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    *) fail 2 "$1: unknown option; see --help" ;;
  esac
  if [ $# -lt 2 ] || [ -z "$2" ]; then fail 2 "$1: expected a value"; fi
  case "$1" in
    --build) build=$2 ;;
    --speech)
      [ -d "$2" ] || fail 2 "--speech $2: no such folder"
      speech=$2
      ;;
    --out)
      [[ $2 == *.tar.xz ]] || fail 2 "--out $2: expected a name that ends in .tar.xz"
      out=$2
      ;;
    --limit)
      [[ $2 =~ ^[1-9][0-9]{0,11}$ ]] || fail 2 "--limit $2: expected a number of bytes"
      limit=$2
      ;;
  esac
  shift 2
done
programs=(nacre bench/nacre_bench tests/nacre_tests bench/nacre_probes)
for p in "${programs[@]}"; do
  [ -x "$build/$p" ] || fail 4 "$build has no $p; build nacre_program, nacre_bench, nacre_tests and nacre_probes first"
done
# Every program contains the commit it was built from, shortened, and with the suffix "-dirty" for local changes.
if [ -f "$root/COMMIT" ]; then
  commit=$(head -n 1 "$root/COMMIT")
elif commit=$(git -C "$root" rev-parse HEAD 2>/dev/null); then
  [ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] || commit+=+changes
else
  commit=unknown
fi
for p in "${programs[@]}"; do
  built=$(grep -aom1 'nacre-commit:[0-9a-z-]*' "$build/$p" | head -n 1) || built=nacre-commit:unknown
  [ "$p$built" != bench/nacre_probesnacre-commit:unknown ] || continue # nacre_probes may be linked without the library
  built=${built#nacre-commit:} wish=${commit%+changes}
  clean=${built%-dirty}
  wish=${wish:0:${#clean}}
  [[ $commit != *+changes ]] || wish+=-dirty
  [ "$commit" = unknown ] || [ "$built" = "$wish" ] || [ $stale = 1 ] ||
    fail 5 "$p was built from $built, the tree is at $commit; build again, or use --stale"
done
for tool in tar xz; do command -v $tool >/dev/null || fail 4 "$tool is missing"; done
if [ -z "$speech" ]; then
  speech=$root/quickstart/data
  if [ ! -d "$speech" ]; then
    for tool in espeak-ng sox; do
      command -v $tool >/dev/null ||
        fail 4 "no speech: quickstart/data and $tool are missing; install $tool, or use --speech DIR or --no-speech"
    done
    speech=$root/build/speech
    if [ ! -d "$speech" ]; then
      echo "gpu_pack: making ten minutes of speech in build/speech"
      "$root/scripts/make_speech.sh" "$speech" >/dev/null || fail 4 "scripts/make_speech.sh failed"
    fi
  fi
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/nacre-gpu
packed=$tree/build/cuda
mkdir -p "$packed/bench" "$packed/tests" "$packed/lib/fallback" "$tree/scripts" "$tree/bench" "$tree/tests"

is_elf() { [ "$(head -c 4 "$1" | tail -c 3)" = ELF ]; }
for p in "${programs[@]}"; do
  cp "$build/$p" "$packed/$p"
  if is_elf "$packed/$p" && command -v strip >/dev/null; then strip "$packed/$p"; fi
done
# Pack all libraries that ldd finds, except those of the system and of CUDA. The C++ library is stored separately: the
# suite uses it only if the machine's own is missing or older than that of the build.
for p in "${programs[@]}"; do
  if is_elf "$build/$p"; then ldd "$build/$p"; fi
done | sed -n 's/^[[:space:]]*\([^ ]*\) => \(not found\|\/[^ ]*\).*/\1 \2/p' | sort -u >"$work/libraries"
missing=$(sed -n 's/ not found$//p' "$work/libraries" | tr '\n' ' ')
[ -z "$missing" ] || fail 4 "libraries of the programs are missing on this machine: $missing"
while read -r name path; do
  case "$name" in
    libc.so* | libm.so* | libdl.so* | libpthread.so* | librt.so* | libresolv.so* | libutil.so* | libmvec.so* | ld-linux*) continue ;;
    libcuda.so* | libcudart.so* | libcufft* | libcublas* | libcudnn* | libnv* | libcurand* | libcusolver* | libcusparse*) continue ;;
    libstdc++.so* | libgcc_s.so*) to=$packed/lib/fallback ;;
    *) to=$packed/lib ;;
  esac
  cp -L "$path" "$to/$name"
  if command -v strip >/dev/null; then strip --strip-unneeded "$to/$name" 2>/dev/null || true; fi
done <"$work/libraries"
# The suite reads only whether the build's device is emulated.
grep '^NACRE_CUDA:' "$build/CMakeCache.txt" >"$packed/CMakeCache.txt" 2>/dev/null || true

cp -r "$root"/scripts/gpu_suite.sh "$root"/scripts/gpu_report.py "$root"/scripts/gpu "$tree/scripts/"
cp -r "$root/bench/peers" "$tree/bench/"
[ ! -f "$root/bench/goals.json" ] || cp "$root/bench/goals.json" "$tree/bench/"
cp -r "$root/tests/golden" "$tree/tests/"
find "$tree" -name __pycache__ -prune -exec rm -rf {} +
cp "$root/LICENSE" "$tree/"
echo "$commit" >"$tree/COMMIT"
# WAV becomes FLAC, which is lossless and half the size. Compressed files are copied.
as_flac() { # from, to
  if command -v sox >/dev/null; then
    sox -D "$1" "$2" 2>"$work/said"
  elif command -v flac >/dev/null; then
    flac --silent --best -o "$2" "$1" 2>"$work/said"
  else
    fail 4 "$1: cannot convert to FLAC: sox and flac are missing"
  fi || fail 4 "$1: $(head -n 1 "$work/said")"
}
sounds=0
if [ "$speech" != none ]; then
  while IFS= read -r -d '' name; do
    to=$tree/speech/${name#./}
    mkdir -p "${to%/*}"
    case "$name" in
      *.wav) as_flac "$speech/$name" "${to%.wav}.flac" ;;
      *) cp "$speech/$name" "$to" ;;
    esac
    sounds=$((sounds + 1))
  done < <(cd "$speech" && find . -type f \( -name '*.wav' -o -name '*.flac' -o -name '*.ogg' -o -name '*.opus' -o -name '*.mp3' \) \
    -print0 | sort -z)
  [ $sounds -gt 0 ] || fail 4 "--speech $speech: contains no audio"
fi

contents=(nacre-gpu/build/cuda/{nacre,bench,tests,lib,CMakeCache.txt} nacre-gpu/{COMMIT,LICENSE,scripts,bench,tests})
[ $sounds = 0 ] || contents+=(nacre-gpu/speech)
# The programs contain the same kernels. Placed next to each other within one dictionary, they compress to the size of
# one.
if ! tar -C "$work" --owner=0 --group=0 --numeric-owner -cf - "${contents[@]}" |
  xz -T1 --lzma2=preset=6,dict=128MiB >"$work/packed"; then
  fail 4 "packing failed"
fi
size=$(stat -c %s "$work/packed")
[ "$size" -le "$limit" ] || fail 3 "the archive has $size bytes, at most $limit are allowed; $out was not written"
mkdir -p "$(dirname "$out")" 2>/dev/null || fail 4 "$out: cannot create its folder"
if ! cp "$work/packed" "$out.part" 2>/dev/null || ! mv "$out.part" "$out"; then fail 4 "$out: cannot write"; fi
echo "gpu_pack: $out: $size bytes of $limit, commit $(cat "$tree/COMMIT"), libraries $(cd "$packed/lib" && find . -type f | sed 's/^\.\///' | sort | tr '\n' ' ')"
[ $sounds = 0 ] ||
  echo "gpu_pack: speech: $sounds files, $(find "$tree/speech" -type f -printf '%s\n' | awk '{ n += $1 } END { print n }') bytes"
name=$(basename "$out")
# Inside the source tree, the output is in a folder that git ignores.
there=$(readlink -f "$(dirname "$out")") place="in the folder of $name" go=''
if [[ $there/ == "$root"/* ]]; then
  place="in a copy of this tree" go=${there#"$root"} go=${go#/}
  echo "gpu_pack: ${go:+$go/}$name is ignored by git; if a copy of this tree is sent to the machine, add this file to it"
  go=${go:+cd $(printf %q "$go") && }
fi
unpack="{ tar xf $name || python3 -m tarfile -e $name .; }"
cat <<END
Run these two commands on the machine with the GPU, $place. OUT is the full path of an empty folder for the results; both
commands together write six files of less than 16 MiB each (docs/gpu.md):
  $go$unpack && nacre-gpu/scripts/gpu_suite.sh --plan first --bring "\$OUT"
  $go{ [ -d nacre-gpu ] || $unpack; } && nacre-gpu/scripts/gpu_suite.sh --plan second --bring "\$OUT"
The first takes at most 420 s and the second at most 200 s, without unpacking. A time limit of the machine should be at least
480 s for the first and 260 s for the second. Then copy the results to this machine and run here:
  scripts/gpu_report.py first.tar.gz second.tar.gz
END
