#!/usr/bin/env python3
"""Measures whole processes: the time of a fresh process, and of a training step beside busy processes, as ratios.

    bench/process.py [BUILD]        default: build/cpu

Needs only Python. Prints, for the configuration speech-16k-small on as many threads as there are cores:
  - nacre encode and decode of a clip of 3 s in a fresh process: seconds, times real time, memory, and that memory against
    the prediction of `nacre info --memory`;
  - a training step (nacre_bench, codec_step) alone, beside one busy process, and beside one per core, as ratios to alone.
Rounds alternate and medians are printed, so that other work on the machine affects all of them.
"""
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import array
import wave

build = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "build/cpu")
nacre, bench = os.path.join(build, "nacre"), os.path.join(build, "bench", "nacre_bench")
config, seconds, rate = "speech-16k-small", 3, 16000
cores = len(os.sched_getaffinity(0))


def fresh(command):
    """Runs one process. Returns its seconds and its peak memory in bytes."""
    code = ("import resource, subprocess, sys, time\n"
            "start = time.monotonic()\n"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
            "print(time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)")
    out = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True).stdout.split()
    return float(out[0]), int(out[1])


def step(folder):
    """The median seconds of a step."""
    path = os.path.join(folder, "step.json")
    subprocess.run([bench, "--benchmark_filter=codec_step/" + config, "--benchmark_out=" + path, "--benchmark_out_format=json"],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(path) as f:
        return json.load(f)["benchmarks"][0]["real_time"] * 1e-6


def beside(busy, folder):
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        time.sleep(0.5)
        return step(folder)
    finally:
        for p in loops:
            p.kill()
            p.wait()


with tempfile.TemporaryDirectory() as folder:
    data = os.path.join(folder, "data")
    os.mkdir(data)
    for i in (1, 2, 3):
        with wave.open(os.path.join(data, f"{i}.wav"), "wb") as f:
            f.setnchannels(1), f.setsampwidth(2), f.setframerate(rate)
            f.writeframes(array.array("h", (int(9000 * math.sin(0.08 * i * t)) for t in range(seconds * rate))).tobytes())
    run = os.path.join(folder, "run")
    subprocess.run([nacre, "train", "--config", config, "--data_dir", data, "--checkpoint_dir", run, "--max_steps", "1",
                    "--batch_size", "1", "--segment_length", "2000", "--set", "training.codebook_start_rows=1100",
                    "--set", "training.codebook_average_rows=0", "--valid_fraction", "0.34"],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    said = re.search(r"nacre encode (\d+) bytes.*nacre decode (\d+) bytes",
                     subprocess.run([nacre, "info", config, "--memory"], check=True, capture_output=True, text=True).stdout)
    stream = os.path.join(folder, "s.nacre")
    commands = {"encode": [nacre, "encode", "-q", "-f", "-m", run, os.path.join(data, "1.wav"), "-o", stream],
                "decode": [nacre, "decode", "-q", "-f", "-m", run, stream, "-o", os.path.join(folder, "o.wav")]}
    found = {verb: [] for verb in commands}
    for _ in range(5):
        for verb, command in commands.items():
            found[verb].append(fresh(command))
    for i, (verb, runs) in enumerate(found.items()):
        wall, memory = statistics.median(r[0] for r in runs), max(r[1] for r in runs)
        print(f"fresh {verb} of {seconds} s: {wall:.2f} s, {seconds / wall:.1f} times real time, {memory / 1e6:.0f} MB, "
              f"info says {int(said[i + 1]) / memory:.2f} of it")

    loads = {"alone": 0, "one busy process": 1, "one per core": cores}
    times = {name: [] for name in loads}
    for _ in range(3):
        for name, busy in loads.items():
            times[name].append(beside(busy, folder))
    alone = statistics.median(times["alone"])
    for name in loads:
        print(f"step, {cores} threads, {name}: {1e3 * statistics.median(times[name]):.0f} ms, "
              f"{statistics.median(times[name]) / alone:.2f} of the time alone")
