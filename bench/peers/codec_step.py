#!/usr/bin/env python3
"""The training step and the decoding of speech-16k-small in PyTorch on the CPU: the peer of `nacre train` and `nacre_bench`.

The layers, losses, balancer, optimizer and batch are the same, and crops are drawn in proportion to duration. The
weights are drawn with other random numbers, so loss curves agree in their course and not in their digits. Run by hand
(needs torch, numpy, scipy); the tests never run it.

  python3 bench/peers/codec_step.py --data DIR [--steps 60] [--threads 2] [--compile] [--batch 8] [--segment 4000]
"""
import argparse
import dataclasses
import glob
import json
import os
import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import wavfile

import models


def load(folder):
    clips = []
    for f in sorted(glob.glob(os.path.join(folder, "*.wav"))):
        rate, w = wavfile.read(f)
        assert rate == 16000, f
        w = w.astype(np.float32) / 32768
        clips.append(torch.from_numpy(w / max(np.abs(w).max(), 1e-9) * 0.95))
    return clips


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--data", required=True)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--segment", type=int, default=4000)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--books", type=int, default=8)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    clips = load(a.data)
    part = np.array([len(c) for c in clips], dtype=float)
    part /= part.sum()
    config = dataclasses.replace(models.CONFIGS["speech-16k-small"], n_codebooks=a.books)
    codec = models.Codec(config)
    step = models.Step(codec, models.Spectral(config.sample_rate), lr=a.lr)

    def batch():
        rows = []
        for i in rng.choice(len(clips), a.batch, p=part):
            c = clips[i]
            at = int(rng.integers(0, max(1, len(c) - a.segment + 1)))
            c = c[at : at + a.segment]
            rows.append(F.pad(c, (0, a.segment - len(c))))
        return torch.stack(rows)[:, None]

    if a.compile:
        step.encode, step.decode = torch.compile(step.encode), torch.compile(step.decode)
        step.losses = torch.compile(step.losses)

    with torch.no_grad():
        batches = max(1, 20000 * config.hop // (a.batch * a.segment))
        latents = [codec.encoder(batch()).transpose(1, 2).reshape(-1, config.latent) for _ in range(batches)]
        codec.quantizer.start(torch.cat(latents))
    times, curve = [], []
    for i in range(a.steps):
        x = batch()
        start = time.perf_counter()
        loss = step.run(x)
        times.append(time.perf_counter() - start)
        curve.append(float(loss))
        if i % 20 == 0 or i == a.steps - 1:
            print(f"step {i + 1:4d}  loss {curve[-1]:.4f}  {times[-1] * 1e3:.1f} ms", file=sys.stderr, flush=True)
    codec.eval()
    z = torch.randn(1, config.latent, 800)
    decode = []
    with torch.no_grad():
        for _ in range(12):
            start = time.perf_counter()
            codec.decoder(z)
            decode.append(time.perf_counter() - start)
    warm = times[min(10, len(times) // 2) :]
    print(json.dumps({
        "peer": "PyTorch " + torch.__version__ + (" compile" if a.compile else " eager"),
        "threads": a.threads, "batch": a.batch, "segment": a.segment,
        "step_ms_median": round(statistics.median(warm) * 1e3, 2), "step_ms_min": round(min(warm) * 1e3, 2),
        "decode_2s_ms_median": round(statistics.median(decode[2:]) * 1e3, 2),
        "loss_every_10": [round(v, 4) for v in curve[::10]],
        "parameters": sum(q.numel() for q in step.parameters),
    }))


if __name__ == "__main__":
    main()
