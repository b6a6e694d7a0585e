# shellcheck shell=bash source-path=SCRIPTDIR/..
# find_package(nacre): a program that builds, and the errors of requests that cannot be met.
source "$SOURCE/tools.sh"
quietly cmake --install "$BUILD" --prefix "$WORK/a prefix"
cp "$SOURCE/noise.h" "$SOURCE/consumer.cpp" "$SOURCE/cmake/CMakeLists.txt" .
configure() { bare cmake -S . -B build -DCMAKE_CXX_COMPILER="$COMPILER" -DCMAKE_PREFIX_PATH="$WORK/a prefix" -DREQUEST= "$@"; }
version=$(cached CMAKE_PROJECT_VERSION)
quietly configure -DREQUEST="$version"
quietly bare cmake --build build
quietly ./build/consumer

refused "version: $version" configure -DREQUEST=99
refused '^ +nacre has no components, expected find_package\(nacre\)$' configure -DREQUEST='COMPONENTS;training'
refused '^ +nacre needs threads, not found \(on Debian: apt-get install libc6-dev\)$' configure \
  -DCMAKE_DISABLE_FIND_PACKAGE_Threads=ON
config=$(find "$WORK/a prefix" -name nacreConfig.cmake)
cp "$config" kept
sed -i 's/^\( *if("\)o[nf]*" STREQUAL "on")/\1on" STREQUAL "on")/' "$config" # as in a build for CUDA
refused '^ +nacre needs the CUDA toolkit, not found \(on Debian: apt-get install nvidia-cuda-toolkit\)$' configure \
  -DCMAKE_DISABLE_FIND_PACKAGE_Threads=OFF -DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON
cp kept "$config"
rm -r build
refused '^ +nacre needs the language CXX, expected project\(NAME LANGUAGES CXX\)$' configure -DLANGUAGE=NONE

# All missing dependencies are listed in one line.
refused '^ *nacre: NACRE_TRAINING needs libsndfile, libmpg123, libsoxr, zlib, not found \(on Debian: apt-get install libsndfile1-dev libmpg123-dev libsoxr-dev zlib1g-dev\)$' \
  env PKG_CONFIG_LIBDIR="$WORK" PKG_CONFIG_PATH= cmake -S "$NACRE" -B unbuilt -DCMAKE_CXX_COMPILER="$COMPILER" \
  -DCMAKE_DISABLE_FIND_PACKAGE_ZLIB=ON
