#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: an optimised build, then the same tests under AddressSanitizer and
# UndefinedBehaviorSanitizer.
#
#   scripts/test.sh            both
#   scripts/test.sh cpu|asan   one of them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/packages.sh test
presets=("${@:-cpu}")
[ $# -gt 0 ] || presets=(asan cpu)
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
for preset in "${presets[@]}"; do
  echo "== $preset"
  cmake --preset "$preset" "${launcher[@]}" >/dev/null
  cmake --build --preset "$preset" -- --quiet
  # A stuck thread pool must not hang a machine for hours, and sanitizers must not stop at a library's leak at exit.
  ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 LSAN_OPTIONS=suppressions=$PWD/cmake/lsan.supp:print_suppressions=0 \
    UBSAN_OPTIONS=print_stacktrace=1 ctest --preset "$preset" --parallel 2
done
command -v nvcc >/dev/null && echo "nvcc: found; this version has no CUDA sources yet" || echo "nvcc: not found, CUDA compile skipped"
