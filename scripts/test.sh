#!/usr/bin/env bash
# Installs missing packages, builds, and runs every test in five lanes:
#
#   asan       the CPU's code under AddressSanitizer and UndefinedBehaviorSanitizer
#   tsan       the code around a call (threads, forks, a shared context) under ThreadSanitizer
#   emulated   CUDA kernels emulated: every access is checked for bounds and races, every launch runs in up to three
#              orders of threads, and host code runs under AddressSanitizer and UndefinedBehaviorSanitizer
#   cpu        optimised build, and a consumer of the installed package
#   cuda       nvcc for sm_80 and sm_90a: the program, the benches and the tests are compiled, linked and started, and
#              the kernels' code is checked; without nvcc, the lane is one line
#
# Each lane is followed by its slowest tests. At the end the script prints the duration of each lane and of its build.
#
#   scripts/test.sh [asan|tsan|emulated|cpu|cuda]...     default: all
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/packages.sh test
presets=("$@")
[ $# -gt 0 ] || presets=(asan tsan emulated cuda cpu)
launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
fi
nvcc=$(command -v nvcc || true)
[ -n "$nvcc" ] || [ ! -x /usr/local/cuda/bin/nvcc ] || nvcc=/usr/local/cuda/bin/nvcc

run() {
  local code=0 results=$PWD/build/$1/tests.xml
  rm -f "$results"
  ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 \
    ctest --preset "$1" --parallel 2 --output-junit "$results" || code=$?
  [ ! -f "$results" ] || slowest "$results"
  return $code
}
slowest() { # the ten slowest tests, from ctest's JUnit report
  echo "slowest tests:"
  LC_ALL=C awk '/^[ \t]*<testcase / && match($0, / name="[^"]*"/) {
    name = substr($0, RSTART + 7, RLENGTH - 8)
    gsub(/&quot;/, "\"", name); gsub(/&apos;/, "\047", name); gsub(/&lt;/, "<", name); gsub(/&gt;/, ">", name); gsub(/&amp;/, "\\&", name)
    if (match($0, / time="[0-9.eE+-]*"/)) printf "%8.1f s  %s\n", substr($0, RSTART + 7, RLENGTH - 8), name
  }' "$1" | LC_ALL=C sort -rn | awk 'NR <= 10'
}
# Prints the duration of each lane, also if one fails.
lane='' took=() built=''
summary() {
  [ -z "$lane" ] || took+=("lane $lane: failed after $((SECONDS - began)) s")
  [ ${#took[@]} -eq 0 ] || printf '%s\n' "${took[@]}"
}
trap summary EXIT
configure() { cmake --preset "$@" -DNACRE_WERROR=ON "${launcher[@]}" >/dev/null; }

check_cuda() {
  if [ -z "$nvcc" ]; then
    echo "nvcc: not found, CUDA compile skipped"
    return
  fi
  configure cuda -DCMAKE_CUDA_COMPILER="$nvcc" -DCMAKE_CUDA_FLAGS=-no-compress  # keeps the PTX in the library readable
  # Build the kernels from scratch, so that the log contains all of them.
  rm -f build/cuda/libnacre.a build/cuda/CMakeFiles/nacre_library.dir/kernels/*/*.cu.o
  if ! cmake --build --preset cuda --target nacre_program nacre_minimal > build/cuda/build.log 2>&1; then
    grep -E -A5 'error|FAILED' build/cuda/build.log | head -40
    return 1
  fi
  scripts/check_kernels.sh build/cuda/build.log build/cuda/libnacre.a build/emulated/launches
  # The programs that scripts/gpu_suite.sh runs on a machine with a GPU must also link and start. Their kernels are not
  # among those of the ops.
  if ! cmake --build --preset cuda --target nacre_bench nacre_probes nacre_tests > build/cuda/suite.log 2>&1; then
    grep -E -A5 'error|FAILED' build/cuda/suite.log | head -40
    return 1
  fi
  build/cuda/bench/nacre_bench --device cuda --cases build/cuda/cases.json
  # The exit code of the list is the number of tests. The file is therefore checked instead.
  build/cuda/tests/nacre_tests --list-test-names-only > build/cuda/tests.txt || [ -s build/cuda/tests.txt ]
  # Without a driver, a CUDA build must still start and report in one line what is missing.
  build/cuda/nacre_minimal >/dev/null
  build/cuda/nacre info speech-16k-small --memory --device auto >/dev/null
  local code=0
  build/cuda/nacre info speech-16k-small --memory --device cuda > build/cuda/start.log 2>&1 || code=$?
  if [ $code -ne 0 ] && { [ $code -ne 6 ] || [ "$(grep -c '^nacre: device cuda' build/cuda/start.log)" -ne 1 ]; }; then
    echo "a CUDA build without a device exits with $code and says:"; cat build/cuda/start.log
    return 1
  fi
  tail -1 build/cuda/start.log
  build/cuda/bench/nacre_probes --list >/dev/null
  code=0
  build/cuda/bench/nacre_probes --small > build/cuda/probes.log 2>&1 || code=$?
  if [ $code -ne 0 ] && { [ $code -ne 6 ] || [ "$(wc -l < build/cuda/probes.log)" -ne 1 ]; }; then
    echo "nacre_probes exits with $code and says:"; cat build/cuda/probes.log
    return 1
  fi
  tail -1 build/cuda/probes.log
}

for lane in "${presets[@]}"; do
  echo "== $lane"
  began=$SECONDS built=''
  if [ "$lane" = cuda ]; then
    check_cuda
  else
    configure "$lane"
    cmake --build --preset "$lane" -- --quiet
    built=", build $((SECONDS - began)) s"
    rm -rf "build/$lane/launches"
    run "$lane"
  fi
  took+=("lane $lane: $((SECONDS - began)) s$built")
done
lane=''
