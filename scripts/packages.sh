#!/usr/bin/env bash
# Installs the packages for building, testing and the quickstart on Debian and its derivatives. Does nothing if all are
# installed.
#
#   scripts/packages.sh [build|test|real|all]     (default: all; real: what quickstart.sh --real needs)
set -euo pipefail
build=(g++ make ninja-build cmake pkg-config libsndfile1-dev libmpg123-dev libsoxr-dev
       libcli11-dev nlohmann-json3-dev libprotobuf-dev protobuf-compiler zlib1g-dev libboost-context-dev catch2 libbenchmark-dev)
case "${1:-all}" in
  build) packages=("${build[@]}") ;;
  test) packages=("${build[@]}" python3 xz-utils ccache) ;;  # gpu_pack.sh compresses with xz; lanes share objects
  real) packages=("${build[@]}" ffmpeg) ;;
  all) packages=("${build[@]}" python3 xz-utils ccache espeak-ng sox) ;;
  *) echo "usage: $0 [build|test|real|all]" >&2; exit 2 ;;
esac
missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
# The speech packages are downloaded later without root. apt must already know them.
lists=known
[ "${1:-all}" != real ] || [ -n "$(apt-cache show festvox-ru 2>/dev/null)" ] || lists=unknown
[ ${#missing[@]} -gt 0 ] || [ $lists = unknown ] || exit 0
command -v apt-get >/dev/null || { echo "$0: apt-get is missing; install by hand: ${missing[*]:-the lists of packages (apt-get update)}" >&2; exit 4; }
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "$0: needs root or sudo; or install by hand: ${missing[*]:-the lists of packages (apt-get update)}" >&2; exit 4; }
  as_root=(sudo)
fi
[ ${#missing[@]} = 0 ] || echo "installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
[ ${#missing[@]} -gt 0 ] || exit 0
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
