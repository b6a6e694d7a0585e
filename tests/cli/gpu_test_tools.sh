# shellcheck shell=bash
# Shared by the tests of scripts/gpu_*: run a program and check its messages.
failures=0
fail() {
  echo "FAILED: $1"
  [ -s out ] && sed 's/^/  out| /' out | tail -n 15
  [ -s err ] && sed 's/^/  err| /' err | tail -n 15
  failures=$((failures + 1))
}
run() {
  "$@" >out 2>err </dev/null
  code=$?
}
expect_code() { [ "$code" = "$1" ] || fail "$2: exit code $code, expected $1"; }
expect_text() { cat out err | grep -qF -- "$1" || fail "$2: does not say '$1'"; }
expect_line() { grep -qE -- "$2" "$1" || fail "$1 has no line like '$2'"; }
refused() { # exit code, program, options: expects one line, which names the program
  run "${@:2}"
  expect_code "$1" "${*:2}"
  if [ -s out ] || [ "$(wc -l <err)" != 1 ] || ! grep -q "^gpu_" err; then fail "${*:2}: not one clear line"; fi
}
