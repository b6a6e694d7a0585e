#!/usr/bin/env bash
# External projects against the build in $1. Each case is a folder beside this script and runs in a fresh folder.
# Further arguments select cases; the default is all.
set -euo pipefail
export BUILD SOURCE NACRE WORK COMPILER
BUILD=$(cd "$1" && pwd)
SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NACRE=$(cd "$SOURCE/../.." && pwd)
COMPILER=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$BUILD/CMakeCache.txt")
shift
[ $# -gt 0 ] || set -- cmake cxx17 pkg_config subdirectory two_copies
failed=()
for case in "$@"; do
  WORK=$(mktemp -d)
  started=$SECONDS
  if (cd "$WORK" && bash -euo pipefail "$SOURCE/$case/run.sh"); then
    echo "$case: passed in $((SECONDS - started)) s"
  else
    echo "$case: FAILED"
    failed+=("$case")
  fi
  rm -rf "$WORK"
done
[ ${#failed[@]} = 0 ]
