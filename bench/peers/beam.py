#!/usr/bin/env python3
"""Measures the gain of a beam search without a network: a lapped transform, k-means for each stage, and the code search.

    bench/peers/beam.py TRAIN VALID [--bands 40] [--stages 16] [--beams 1 4 16]

TRAIN and VALID are folders of 16 kHz wav files (scripts/real_speech.sh makes such folders). Prints the mean SNR over files in dB, for
each beam and number of stages. Run by hand; needs numpy and scipy.
"""
import argparse, pathlib, random

import numpy as np
from scipy.io import wavfile

rng = np.random.default_rng(0)


def clips(folder, seconds, seed):
    files = sorted(pathlib.Path(folder).rglob("*.wav"))
    random.Random(seed).shuffle(files)
    total = 0
    for file in files:
        rate, x = wavfile.read(file)
        x = (x.mean(1) if x.ndim > 1 else x).astype(np.float32)
        if rate != 16000 or np.abs(x).max() < 50:
            continue
        yield x / np.abs(x).max() * 0.95
        total += len(x) / rate
        if total > seconds:
            return


def latents(x, n):
    k, m = np.arange(n)[:, None] + 0.5, np.arange(2 * n)[None] + 0.5
    basis = np.sqrt(2 / n) * np.sin(np.pi * m / (2 * n)) * np.cos(np.pi / n * (m + n / 2) * k)
    x = np.pad(x[: len(x) // n * n], n)
    return (np.lib.stride_tricks.sliding_window_view(x, 2 * n)[::n] @ basis.T).astype(np.float32)


def nearest(x, book):
    half = (book**2).sum(1) / 2
    return np.concatenate([(half - part @ book.T).argmin(1) for part in np.array_split(x, len(x) // 8192 + 1)])


def kmeans(x, codes, iterations=6):
    book = x[rng.permutation(len(x))[:codes]].copy()
    for _ in range(iterations):
        chosen = nearest(x, book)
        count = np.bincount(chosen, minlength=codes)
        total = np.zeros_like(book)
        np.add.at(total, chosen, x)
        book = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], x[rng.integers(0, len(x), codes)]).astype(np.float32)
    return book


def rest(x, books, beam):
    """The error of x after the best of `beam` sequences."""
    out = np.empty_like(x)
    for i in range(0, len(x), 512):
        v = x[i : i + 512]
        kept = v[:, None]
        for book in books:
            scores = (kept**2).sum(2)[:, :, None] - 2 * kept @ book.T + (book**2).sum(1)
            scores = scores.reshape(len(v), -1)
            best = np.argpartition(scores, beam - 1, axis=1)[:, :beam]
            kept = np.take_along_axis(kept, (best // len(book))[:, :, None], 1) - book[best % len(book)]
        out[i : i + 512] = kept[np.arange(len(v)), (kept**2).sum(2).argmin(1)]
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("train")
    p.add_argument("valid")
    p.add_argument("--bands", type=int, default=40)
    p.add_argument("--stages", type=int, default=16)
    p.add_argument("--beams", type=int, nargs="+", default=[1, 4, 16])
    p.add_argument("--codes", type=int, default=1024)
    p.add_argument("--rows", type=int, default=60000)
    p.add_argument("--seconds", type=float, nargs=2, default=[900, 30], help="seconds of audio: for clustering, for evaluation")
    a = p.parse_args()
    x = np.concatenate([latents(c, a.bands) for c in clips(a.train, a.seconds[0], 0)])
    x = x[rng.permutation(len(x))[: a.rows]]
    books = []
    for _ in range(a.stages):
        books.append(kmeans(x, a.codes))
        x = x - books[-1][nearest(x, books[-1])]
    judged = [latents(c, a.bands) for c in clips(a.valid, a.seconds[1], 1)]
    for beam in a.beams:
        for stages in sorted({a.stages // 2, a.stages * 3 // 4, a.stages}):
            snr = [10 * np.log10((v**2).sum() / (rest(v, books[:stages], beam) ** 2).sum()) for v in judged]
            rate = stages * np.log2(a.codes) * 16 / a.bands
            print(f"beam {beam}, {stages} stages, {rate:g} kbit/s: {np.mean(snr):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
