# shellcheck shell=bash source-path=SCRIPTDIR/..
# nacre as a part of an external project, and the package of that project.
source "$SOURCE/tools.sh"
cp -r "$SOURCE"/subdirectory/. "$SOURCE/noise.h" .
configure() { # folder, options
  quietly cmake -G "$(cached CMAKE_GENERATOR)" -S . -B "$1" -DCMAKE_CXX_COMPILER="$COMPILER" -DNACRE_SOURCE="$NACRE" \
    -DCMAKE_CXX_COMPILER_LAUNCHER="$(cached CMAKE_CXX_COMPILER_LAUNCHER)" "${@:2}"
}
configure without-a-type # no build type stays none; the project checks its other variables
configure debug -DCMAKE_BUILD_TYPE=Debug
# The build's own flags, so that the compiler cache can reuse the library's objects.
configure build -DCMAKE_BUILD_TYPE="$(cached CMAKE_BUILD_TYPE)" -DNACRE_WERROR="$(cached NACRE_WERROR)" \
  -DCMAKE_INSTALL_PREFIX="$WORK/prefix"
quietly cmake --build build -j 2 --target parent
for name in parent nacre; do
  [ -f build/archives/lib$name.a ] || fail "lib$name.a is not where the project wants its archives"
done
quietly cmake --install build
quietly bare cmake -S user -B user-build -DCMAKE_CXX_COMPILER="$COMPILER" -DCMAKE_PREFIX_PATH="$WORK/prefix"
quietly bare cmake --build user-build
quietly ./user-build/user

# A project may leave nacre's files out of its installation.
configure not-installed -DNACRE_INSTALL=OFF -DCMAKE_INSTALL_PREFIX="$WORK/none"
quietly cmake --install not-installed
[ ! -e none ] || fail "NACRE_INSTALL=OFF installs $(find none -type f | head -n 1)"
