#!/usr/bin/env bash
# Makes about ten minutes of synthetic Telugu speech with espeak-ng: every sentence of examples/telugu.txt in four
# voices at two speeds, 16 kHz, 16 bit. Every eighth sentence goes to DIR/valid, so that the held-out texts do not occur
# in training.
#
#   scripts/make_speech.sh DIR
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
for tool in espeak-ng sox; do
  command -v "$tool" >/dev/null || { echo "$0: $tool is missing; install it (apt-get install $tool)" >&2; exit 4; }
done
out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/train" "$work/valid"
line=0
while IFS= read -r sentence; do
  [ -n "$sentence" ] || continue
  line=$((line + 1))
  part=train
  [ $((line % 8)) -ne 0 ] || part=valid
  voice_number=0
  for voice in te te+f2 te+m3 te+f4; do
    voice_number=$((voice_number + 1))
    for speed in 140 175; do
      pitch=$((30 + 8 * voice_number + (speed == 175 ? 6 : 0)))
      name=$(printf 'sentence%02d-voice%d-speed%d.wav' "$line" "$voice_number" "$speed")
      espeak-ng -v "$voice" -p "$pitch" -s "$speed" -w "$work/speech.wav" "$sentence"
      sox "$work/speech.wav" -r 16000 -b 16 -c 1 "$work/$part/$name"
    done
  done
done <"$root/examples/telugu.txt"
# The folder appears only when it is complete.
rm -rf "$out"
mkdir -p "$(dirname "$out")"
mv "$work/train" "$work/data"
mv "$work/valid" "$work/data/valid"
mv "$work/data" "$out"
