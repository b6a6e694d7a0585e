# shellcheck shell=bash source-path=SCRIPTDIR/..
# Each public header is the first include of a program with an older standard. The compiler prints one message and
# stops.
source "$SOURCE/tools.sh"
headers=$(cd "$NACRE/include" && find nacre -name '*.h' | sort)
for header in $headers; do
  echo "#include \"$header\"" >first.cpp
  refused 'error: .*nacre needs C\+\+20: compile with -std=c\+\+20' "$COMPILER" -std=c++17 -I"$NACRE/include" -fsyntax-only first.cpp
  # The second error stops the compiler.
  [ "$(grep -c 'error: ' log)" = 2 ] || fail "$header: more errors than the one that says why"
done
