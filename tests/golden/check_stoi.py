#!/usr/bin/env python3
"""Compares STOI and ESTOI as `nacre eval` prints them with pystoi, on the same decoded audio.

Run by hand (python3 -m venv env; env/bin/pip install pystoi soundfile):

    env/bin/python tests/golden/check_stoi.py --nacre build/cpu/nacre --model quickstart/run quickstart/data/valid

Audio is mono, at the model's rate. The audio that eval decodes internally is made again by `nacre encode` and `nacre decode
--float`. They restore the level, on which neither score depends. Exit code 1 if a score differs by more than --allowed.
"""
import argparse
import json
import math
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import soundfile
from pystoi import stoi


def run(*command):
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, help="files, or folders of WAV files")
    parser.add_argument("--nacre", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--clips", type=int, default=20, help="maximum number of files, evenly chosen (default 20)")
    parser.add_argument("--allowed", type=float, default=1e-3)
    args = parser.parse_args()
    found = sorted(f for i in args.inputs for f in (i.rglob("*.wav") if i.is_dir() else [i]))
    clips = [found[k * len(found) // args.clips] for k in range(args.clips)] if len(found) > args.clips else found
    if not clips:
        sys.exit("no WAV file in " + " ".join(map(str, args.inputs)))

    scores = json.loads(run(args.nacre, "eval", "--json", "-q", "--model", args.model, *clips))["files"]
    by_path = {s["path"]: s for s in scores}
    worst, compared, failed = 0.0, 0, False
    print(f"{'STOI':>8} {'pystoi':>8} {'differ':>9} {'ESTOI':>8} {'pystoi':>8} {'differ':>9}  file")
    with tempfile.TemporaryDirectory() as work:
        for clip in clips:
            coded, decoded = Path(work) / "clip.nacre", Path(work) / "clip.wav"
            run(args.nacre, "encode", "-q", "-f", "--model", args.model, clip, "-o", coded)
            run(args.nacre, "decode", "-q", "-f", "--float", "--model", args.model, coded, "-o", decoded)
            (x, rate), (y, decoded_rate) = soundfile.read(clip), soundfile.read(decoded)
            if x.ndim != 1 or rate != decoded_rate or x.shape != y.shape:
                sys.exit(f"{clip}: expected a mono file")
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                theirs = [stoi(x, y, rate), stoi(x, y, rate, extended=True)]
            ours = [by_path[str(clip)]["stoi"], by_path[str(clip)]["estoi"]]
            if told:  # too short: pystoi warns and returns 1e-5
                theirs = [math.nan, math.nan]
            ours = [math.nan if o is None else o for o in ours]
            differ = [abs(o - t) for o, t in zip(ours, theirs)]
            if all(map(math.isnan, ours + theirs)):
                print(f"{'-':>8} {'-':>8} {'-':>9} {'-':>8} {'-':>8} {'-':>9}  {clip}")
                continue
            compared += 1
            worst = max([worst] + [d for d in differ if not math.isnan(d)])
            failed = failed or not all(d <= args.allowed for d in differ)
            print(f"{ours[0]:8.5f} {theirs[0]:8.5f} {differ[0]:9.1e} {ours[1]:8.5f} {theirs[1]:8.5f} {differ[1]:9.1e}  {clip}")
    print(f"{compared} clips, largest difference {worst:.1e}, allowed {args.allowed:g}")
    return 1 if failed or compared == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
