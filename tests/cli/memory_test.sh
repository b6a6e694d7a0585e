#!/usr/bin/env bash
# Runs the program under limits of its address space (ulimit -v), from one where it does not start to one where
# everything works. In each it does its job, or it says in one line that memory is missing, exits with 5 and leaves
# nothing behind. Also checks the figures of info --memory. $1 is the program.
set -u
nacre=$(readlink -f "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0
fail() {
  echo "FAILED: $1"
  sed 's/^/  err| /' err | tail -n 5
  failures=$((failures + 1))
}
tiny='{"codec": {"encoder_dim": 16, "encoder_rates": [2, 4], "decoder_dim": 64, "decoder_rates": [4, 2], "latent_dim": 16,
               "quantizer": "ema", "metric": "euclidean", "n_codebooks": 2, "codebook_size": 64},
      "loss": {"windows": [32, 256], "mels": [5, 40]},
      "training": {"segment_length": 4000, "batch_size": 2, "codebook_start_rows": 500, "codebook_average_rows": 0}}'
echo "$tiny" >tiny.json
mkdir data
python3 - <<'END' || exit 1
import array, math, wave
for i in 1, 2, 3:
    with wave.open(f"data/{i}.wav", "wb") as f:
        f.setnchannels(1), f.setsampwidth(2), f.setframerate(16000)
        f.writeframes(array.array("h", (int(9000 * math.sin(0.08 * i * t)) for t in range(32000))).tobytes())
END

# Takes the limit in KiB and the command. Counts the outcomes in done and refused.
try() {
  local limit=$1 out=$2
  shift 2
  rm -rf "$out"
  (ulimit -v "$limit"; exec "$@") >log 2>err </dev/null
  code=$?
  case $code in
    0) done=$((done + 1)); [ -e "$out" ] || fail "$1 $2 under $limit KiB: no $out" ;;
    5)
      refused=$((refused + 1))
      [[ $(tail -n 1 err) == "nacre: "* ]] || fail "$1 $2 under $limit KiB: exit code 5 without a line of its own"
      [ "$2" = train ] || [ ! -e "$out" ] || fail "$1 $2 under $limit KiB: left $out"
      ;;
    *) fail "$1 $2 under $limit KiB: exit code $code, expected 0 or 5" ;;
  esac
}
# The least limit under which the program starts at all, found in steps of 12 %.
least=4000
until (ulimit -v $least; exec "$nacre" --version) >log 2>&1; do
  least=$((least + least / 8))
  [ $least -lt 2000000 ] || { fail "nacre --version under $least KiB"; exit 1; }
done
sweep() { # name, output, command: limits 12 % apart up to 2 GiB
  local name=$1 limit
  shift
  done=0 refused=0
  for ((limit = least; limit < 2000000; limit += limit / 8)); do
    try $limit "$@"
    [ $done -lt 3 ] || break  # more memory cannot make it fail
  done
  [ $done -gt 0 ] && [ $refused -gt 0 ] || fail "$name: done $done times, refused $refused times, expected both"
}
"$nacre" train -t 2 --config tiny.json --data_dir data --checkpoint_dir model --max_steps 2 --valid_fraction 0.34 >log 2>err ||
  { fail "training without a limit"; exit 1; }
"$nacre" encode -t 2 -q -m model data/1.wav -o one.nacre 2>err || { fail "encoding without a limit"; exit 1; }
sweep train run "$nacre" train -t 2 --config tiny.json --data_dir data --checkpoint_dir run --max_steps 2 --valid_fraction 0.34
sweep encode out.nacre "$nacre" encode -t 2 -q -m model data/1.wav -o out.nacre
sweep decode out.wav "$nacre" decode -t 2 -q -m model one.nacre -o out.wav

# The prediction of info is within 20 % of the memory of the process.
"$nacre" train -t 2 --config speech-16k-small --data_dir data --checkpoint_dir small --max_steps 1 --valid_fraction 0.34 \
  --batch_size 1 --segment_length 2000 --set training.codebook_start_rows=1100 --set training.codebook_average_rows=0 \
  >log 2>err || { fail "training speech-16k-small"; exit 1; }
said=$("$nacre" info speech-16k-small --memory -t 2 | sed -n 's/.*nacre encode \([0-9]*\) bytes.*nacre decode \([0-9]*\) bytes.*/\1 \2/p')
had() {
  python3 -c 'import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)' "$@" 2>err
}
compare() { # prediction, measurement, what
  [ -n "$1" ] && [ -n "$2" ] && [ $((10 * $1)) -ge $((8 * $2)) ] && [ $((10 * $1)) -le $((12 * $2)) ] ||
    fail "$3: info --memory says ${1:-nothing}, it had ${2:-nothing}"
}
compare "${said% *}" "$(had "$nacre" encode -t 2 -q -m small data/1.wav -o small.nacre)" encode
compare "${said#* }" "$(had "$nacre" decode -t 2 -q -m small small.nacre -o small.wav)" decode
[ $failures = 0 ] && echo "all limits passed"
exit $((failures > 0))
