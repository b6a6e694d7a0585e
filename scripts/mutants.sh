#!/usr/bin/env bash
# Plants faults in nacre one by one and reports which of them the tests find. scripts/mutants.txt lists the faults, each with
# the tests that must fail. The script works in its own git worktree, a copy of the tracked files with their uncommitted
# changes, and only reads the tree that it is called from. The whole list takes about an hour on two cores.
#
#   scripts/mutants.sh [--check] [--only REGEX] [--folder DIR] [--jobs N] [--allow N] [-- CMAKE OPTIONS]
#
#   --check         only check that every fault can still be planted; build nothing
#   --only REGEX    plant only the faults whose file, description or tests match (grep -E)
#   --folder DIR    create the worktree here, and keep it for the next run (default: a temporary folder, removed at the end)
#   --jobs N        compilers and tests to run in parallel (default: all cores)
#   --allow N       percentage of faults that the tests may miss (default 3)
#
# It prints one line for each fault: found (a test fails), SURVIVED (no test fails), no longer applies (its text is not in
# exactly one place of the file), does not build; then the number of each.
# Exit codes: 0 success, 1 more faults survived than allowed, or some could not be planted or built, 2 usage, 3 the list has a
# syntax error, 4 the tree without faults could not be built or fails its tests.
set -euo pipefail
export LC_ALL=C
self=$(readlink -f "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$self")")
list=$root/scripts/mutants.txt
check=0 only='' folder='' jobs=$(nproc) allow=3 seconds=300
fail() {
  echo "mutants: ${*:2}" >&2
  exit "$1"
}
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$self"; exit 0 ;;
    --check) check=1 && shift && continue ;;
    --) shift && break ;;
    --only=* | --folder=* | --jobs=* | --allow=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --only | --folder | --jobs | --allow) ;;
    *) fail 2 "$1: unknown option; see --help" ;;
  esac
  if [ $# -lt 2 ] || [ -z "$2" ]; then fail 2 "$1: expected a value"; fi
  case "$1" in
    --only) only=$2 ;;
    --folder) folder=$2 ;;
    --jobs | --allow)
      [[ $2 =~ ^[0-9]{1,3}$ ]] || fail 2 "$1 $2: expected a number"
      if [ "$1" = --jobs ]; then jobs=$2; else allow=$2; fi
      ;;
  esac
  shift 2
done

# ---- read the list
files=() names=() olds=() news=() tests=()
number=0 part=file
bad() { fail 3 "$list:$number: $*"; }
while IFS= read -r line || [ -n "$line" ]; do
  number=$((number + 1))
  case "$part $line" in
    'file ' | 'file #'*) ;;
    'file '[!-+?]*' '*) file=${line%% *} name=${line#* } part=old ;;
    'old - '?*) old=${line#- } part=new ;;
    'new +'*) new=${line#+} new=${new# } part=tests ;;
    'tests ? '?*)
      part=file
      [ "$old" != "$new" ] || bad "the new line equals the old one"
      [ -z "$only" ] || grep -Eq -- "$only" <<<"$file: $name ${line#\? }" || continue
      files+=("$file") names+=("$name") olds+=("$old") news+=("$new") tests+=("${line#\? }")
      ;;
    *) bad "expected $(case $part in
      file) echo 'a file and a description' ;;
      old) echo '"- " and text of one line of the file' ;;
      new) echo '"+ " and what it becomes' ;;
      tests) echo '"? " and the tests that must fail' ;; esac)" ;;
  esac
done < "$list"
[ $part = file ] || bad "the list ends within a fault"
count=${#files[@]}
[ "$count" -gt 0 ] || fail 2 "--only $only: no fault matches"

# ---- check that each fault applies
applies=() lost=0
say() { printf '%-28s %s: %s\n' "$1" "${files[$2]}" "${names[$2]}"; }
for ((i = 0; i < count; ++i)); do
  mapfile -t places < <(grep -oF -e "${olds[i]}" -- "$root/${files[i]}" 2>/dev/null)
  if [ ${#places[@]} = 1 ]; then
    applies[i]=1
  else
    applies[i]=0 lost=$((lost + 1))
    say 'no longer applies' "$i"
  fi
done
if [ $check = 1 ]; then
  echo "$count faults, $lost of them no longer apply"
  [ $lost = 0 ] || exit 1
  exit 0
fi

# ---- make the worktree
if [ -n "$folder" ]; then
  mkdir -p "$folder"
  tree=$(readlink -f "$folder")/tree
else
  folder=$(mktemp -d "${TMPDIR:-/tmp}/nacre-mutants-XXXXXX") tree=$folder/tree
  trap 'git -C "$root" worktree remove --force "$tree" >/dev/null 2>&1 || true; rm -rf "$folder"' EXIT
fi
trap 'exit 130' INT
trap 'exit 143' TERM
log=$folder/log.txt
commit=$(git -C "$root" stash create)
commit=${commit:-$(git -C "$root" rev-parse HEAD)}
if [ -e "$tree/.git" ]; then
  git -C "$tree" checkout --quiet --detach --force "$commit"
else
  git -C "$root" worktree prune
  git -C "$root" worktree add --quiet --detach --force "$tree" "$commit"
fi
launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  export CCACHE_BASEDIR=$tree CCACHE_NOHASHDIR=1  # results of another folder are reused
fi
build=$tree/build/cpu
targets_of() {
  case "$1" in *cli/*) echo nacre_cli_tests ;; *) echo nacre_tests ;; esac
}
make() { cmake --build "$build" --parallel "$jobs" --target "$@" > "$log" 2>&1; }
run_tests() {
  ctest --test-dir "$build" --parallel "$jobs" --timeout $seconds --no-tests=error --stop-on-failure --output-on-failure \
    -R "$1" > "$log" 2>&1
}
began=$SECONDS
cmake -S "$tree" --preset cpu -B "$build" -DNACRE_BENCH=OFF "${launcher[@]}" "$@" > "$log" 2>&1 || { tail -5 "$log" >&2; fail 4 "the tree could not be configured: $log"; }
mapfile -t needed < <(for t in "${tests[@]}"; do targets_of "$t"; done | sort -u)
make "${needed[@]}" || { tail -20 "$log" >&2; fail 4 "the tree could not be built"; }
while IFS= read -r regex; do  # run separately, because a regex without tests would go unnoticed among others
  run_tests "$regex" || { tail -20 "$log" >&2; fail 4 "without a fault, the tests $regex fail, or there are none"; }
done < <(printf '%s\n' "${tests[@]}" | sort -u)

# ---- run the faults one by one
found=0 survived=0 unbuilt=0
for ((i = 0; i < count; ++i)); do
  [ "${applies[i]}" = 1 ] || continue
  file=${files[i]}
  text=$(< "$tree/$file")
  printf '%s\n' "${text/"${olds[i]}"/"${news[i]}"}" > "$tree/$file"
  if ! make "$(targets_of "${tests[i]}")"; then
    unbuilt=$((unbuilt + 1)) result='does not build'
  elif run_tests "${tests[i]}"; then
    survived=$((survived + 1)) result=SURVIVED
  else
    found=$((found + 1)) result=found
  fi
  git -C "$tree" checkout --quiet -- "$file"
  say "$result" "$i"
done
planted=$((found + survived))
echo "$count faults in $(((SECONDS - began + 59) / 60)) min: $found found, $survived survived, $lost no longer apply, $unbuilt do not build"
if [ $((100 * survived)) -gt $((allow * planted)) ] || [ $((lost + unbuilt)) -gt 0 ]; then exit 1; fi
