# shellcheck shell=bash source-path=SCRIPTDIR/..
# pkg-config nacre: programs linked as usual and fully static, and a shared library around the archive. The
# installations use a prefix with a space, folders below the prefix, and absolute folders.
source "$SOURCE/tools.sh"
cp "$SOURCE/noise.h" "$SOURCE/consumer.cpp" "$SOURCE/two_copies/copy.cpp" .
compile() { # options of pkg-config, further options of the compiler
  # The shell removes the backslashes before spaces in names.
  quietly bare bash -c "eval \"\$(printf %q '$COMPILER') -std=c++20 $2 \$(pkg-config $1 --cflags --libs nacre)\""
}
program() { # the folder of nacre.pc
  export PKG_CONFIG_PATH=$1
  [ -f "$1/nacre.pc" ] || fail "no $1/nacre.pc"
  compile "" "consumer.cpp -o consumer"
  quietly ./consumer
}
quietly cmake --install "$BUILD" --prefix "$WORK/a prefix"
program "$(dirname "$(find "$WORK/a prefix" -name nacre.pc)")"
[ "$(pkg-config --modversion nacre)" = "$(cached CMAKE_PROJECT_VERSION)" ] || fail "another version: $(pkg-config --modversion nacre)"
refused 'nacre >= 99' pkg-config --exists --print-errors 'nacre >= 99'
compile --static "consumer.cpp -o consumer"
quietly ./consumer
compile "" "-fPIC -shared copy.cpp -o libcopy.so"
if [ "$(cached NACRE_CUDA)" = off ]; then # with CUDA, NVIDIA's runtime loads the driver, which is a shared library
  compile --static "-static consumer.cpp -o consumer"
  quietly ./consumer
fi
# A folder that was moved as a whole.
mv "$WORK/a prefix" "$WORK/moved"
export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$(find "$WORK/moved" -name nacre.pc)")
compile --define-prefix "consumer.cpp -o consumer"

# Debian's folders, then absolute ones as in Nix, with the library and the headers in a tree of their own each.
configure_anew -DCMAKE_INSTALL_PREFIX="$WORK/usr" -DCMAKE_INSTALL_LIBDIR=lib/some-linux-gnu
quietly cmake --install configured
program "$WORK/usr/lib/some-linux-gnu/pkgconfig"
configure_anew -DCMAKE_INSTALL_PREFIX="$WORK/store" -DCMAKE_INSTALL_LIBDIR="$WORK/store lib/lib" \
  -DCMAKE_INSTALL_INCLUDEDIR="$WORK/store-dev/include"
quietly cmake --install configured
program "$WORK/store lib/lib/pkgconfig"
# find_package finds the same folders.
mkdir find
cp noise.h consumer.cpp "$SOURCE/cmake/CMakeLists.txt" find
quietly bare cmake -S find -B find/build -DCMAKE_CXX_COMPILER="$COMPILER" -Dnacre_DIR="$WORK/store lib/lib/cmake/nacre"
quietly bare cmake --build find/build
# DESTDIR is only where files go now. Their content does not mention it.
quietly env DESTDIR="$WORK/staged" cmake --install configured
cmp "$WORK/staged$WORK/store lib/lib/pkgconfig/nacre.pc" "$PKG_CONFIG_PATH/nacre.pc" || fail "DESTDIR is in nacre.pc"
# Another build with another prefix, installed in between, changes neither this installation nor the first.
quietly cmake --install "$BUILD" --prefix "$WORK/second"
cmp "$WORK/staged$WORK/store lib/lib/pkgconfig/nacre.pc" "$PKG_CONFIG_PATH/nacre.pc" || fail "two builds share a nacre.pc"
program "$WORK/usr/lib/some-linux-gnu/pkgconfig"
program "$(dirname "$(find "$WORK/second" -name nacre.pc)")"
