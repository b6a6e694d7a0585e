#!/usr/bin/env bash
# Installs the build in $1 to a fresh place and builds the consumer against it, by CMake and by pkg-config, with an
# environment that knows nothing of the source tree.
set -euo pipefail
build=$(cd "$1" && pwd)
source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
compiler=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$build/CMakeCache.txt")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/prefix" >/dev/null
cp "$source/consumer.cpp" "$source/CMakeLists.txt" "$work/"
cd "$work"
bare() { env -i PATH=/usr/local/bin:/usr/bin:/bin HOME="$work" "$@"; }
bare cmake -S . -B cmake-build -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_PREFIX_PATH="$work/prefix" >/dev/null
bare cmake --build cmake-build >/dev/null
bare ./cmake-build/consumer
pc=$(dirname "$(find "$work/prefix" -name nacre.pc)")
# The prefix was chosen at install, so the file must be told; that is what --define-prefix is for.
bare sh -c "PKG_CONFIG_PATH='$pc' '$compiler' -std=c++20 consumer.cpp \$(PKG_CONFIG_PATH='$pc' pkg-config --define-prefix --cflags --libs nacre) -o consumer"
bare ./consumer
