# shellcheck shell=bash
# Functions that the cases share. Cases run in $WORK, a fresh folder, by `bash -euo pipefail`.

fail() { # what; prints the log if there is one
  echo "  $1"
  [ ! -s log ] || sed 's/^/    | /' log | tail -n 25
  exit 1
}
# Runs a command in an environment that does not refer to the source tree.
bare() { env -i PATH=/usr/local/bin:/usr/bin:/bin HOME="$WORK" ${PKG_CONFIG_PATH:+PKG_CONFIG_PATH="$PKG_CONFIG_PATH"} "$@"; }
quietly() { "$@" >log 2>&1 || fail "failed: $*"; }
refused() { # words that the output must have in one line, command
  local words=$1
  shift
  ! "$@" >log 2>&1 || fail "succeeded: $*"
  grep -qE -- "$words" log || fail "no line '$words' from: $*"
}
cached() { sed -n "s/^$1:[A-Z]*=//p" "$BUILD/CMakeCache.txt"; }
# Configures a build of the library alone in ./configured with the given options. It uses the archive that exists
# already.
configure_anew() {
  local cuda
  cuda=$(cached NACRE_CUDA)
  quietly cmake -S "$NACRE" -B configured -DCMAKE_CXX_COMPILER="$COMPILER" -DCMAKE_BUILD_TYPE="$(cached CMAKE_BUILD_TYPE)" \
    -DNACRE_CUDA="$cuda" -DNACRE_TRAINING=OFF -DNACRE_EXAMPLES=OFF -DNACRE_TESTS=OFF -DNACRE_BENCH=OFF "$@"
  cp "$BUILD/libnacre.a" configured/
}
