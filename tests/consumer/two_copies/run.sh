# shellcheck shell=bash source-path=SCRIPTDIR/..
# Several copies of nacre in one program.
source "$SOURCE/tools.sh"
cp "$SOURCE/noise.h" "$SOURCE"/two_copies/*.cpp .
quietly cmake --install "$BUILD" --prefix "$WORK/prefix"
export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$(find "$WORK/prefix" -name nacre.pc)")
link() { quietly bare sh -c "'$COMPILER' -std=c++20 $1 \$(pkg-config --cflags --libs nacre) ${2:-}"; }
link "-fPIC -shared copy.cpp -o libfirst.so"
cp libfirst.so libsecond.so
link "program.cpp -o program" -ldl
quietly ./program ./libfirst.so ./libsecond.so
[ "$(sort -u log | wc -l)" = 1 ] && [ "$(wc -l <log)" = 4 ] || fail "the copies differ"
# Linked by one loader: the symbols of the first copy serve both.
cat >linked.cpp <<'END'
extern "C" int code_noise_of_copy();
int main() { return code_noise_of_copy(); }
END
quietly "$COMPILER" linked.cpp ./libfirst.so ./libsecond.so -o linked
quietly ./linked
