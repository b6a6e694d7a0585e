#!/usr/bin/env python3
"""The training step and the decoding of speech-16k-small in PyTorch on the CPU: the peer of `nacre train` and `nacre_bench`.

Same layers, losses, balancer, optimizer, batch and crops in proportion to duration; weights are drawn anew, so loss curves agree
in course, not in digits. Run by hand (needs torch, numpy, scipy); never part of the tests.

  python3 bench/peers/codec_step.py --data DIR [--steps 60] [--threads 2] [--compile] [--batch 8] [--segment 4000]
"""
import argparse
import glob
import json
import math
import os
import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import wavfile
from torch import nn

try:
    from torch.nn.utils.parametrizations import weight_norm
except ImportError:
    from torch.nn.utils import weight_norm


class Snake(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x):
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


def conv(i, o, k, **kw):
    layer = nn.Conv1d(i, o, k, **kw)
    nn.init.zeros_(layer.bias)  # as DAC begins
    return weight_norm(layer)


class Unit(nn.Module):
    def __init__(self, c, d):
        super().__init__()
        self.block = nn.Sequential(Snake(c), conv(c, c, 7, dilation=d, padding=3 * d), Snake(c), conv(c, c, 1))

    def forward(self, x):
        return x + self.block(x)


def encoder(dim, rates, latent):
    layers, c = [conv(1, dim, 7, padding=3)], dim
    for r in rates:
        layers += [Unit(c, d) for d in (1, 3, 9)]
        layers += [Snake(c), conv(c, 2 * c, 2 * r, stride=r, padding=math.ceil(r / 2))]
        c *= 2
    return nn.Sequential(*layers, Snake(c), conv(c, latent, 3, padding=1))


def decoder(dim, rates, latent):
    layers, c = [conv(latent, dim, 7, padding=3)], dim
    for r in rates:
        up = nn.ConvTranspose1d(c, c // 2, 2 * r, stride=r, padding=math.ceil(r / 2), output_padding=r % 2)
        layers += [Snake(c), weight_norm(up)]
        c //= 2
        layers += [Unit(c, d) for d in (1, 3, 9)]
    return nn.Sequential(*layers, Snake(c), conv(c, 1, 7, padding=3), nn.Tanh())


class Quantizer(nn.Module):
    """Residual quantizer with moving-average codebooks in the latent space."""

    def __init__(self, stages, codes, dim, decay=0.99, dead=0.03):
        super().__init__()
        self.decay, self.dead = decay, dead
        self.register_buffer("embed", torch.zeros(stages, codes, dim))
        self.register_buffer("counts", torch.ones(stages, codes))
        self.register_buffer("sums", torch.zeros(stages, codes, dim))
        self.started = False

    @torch.no_grad()
    def start(self, rows):
        r = rows.clone()
        for s in range(self.embed.shape[0]):
            c = r[torch.randperm(r.shape[0])[: self.embed.shape[1]]].clone()
            for _ in range(10):
                i = torch.cdist(r, c).argmin(1)
                n = torch.zeros(c.shape[0]).index_add_(0, i, torch.ones(r.shape[0]))
                m = torch.zeros_like(c).index_add_(0, i, r)
                c = torch.where(n[:, None] > 0, m / n[:, None].clamp_min(1), c)
            self.embed[s] = c
            self.sums[s] = c
            r = r - c[torch.cdist(r, c).argmin(1)]

    def forward(self, z):
        b, d, t = z.shape
        r = z.transpose(1, 2).reshape(-1, d)
        flat, total, loss = r, 0, 0
        for s in range(self.embed.shape[0]):
            e = self.embed[s]
            with torch.no_grad():
                index = ((e * e).sum(1) - 2 * r.detach() @ e.t()).argmin(1)
                q = F.embedding(index, e)
            loss = loss + F.mse_loss(r, q)
            if self.training:
                self.update(s, r.detach(), index)
            total = total + q
            r = r - q
        y = flat + (total - flat).detach()
        return y.reshape(b, t, d).transpose(1, 2), loss

    @torch.no_grad()
    def update(self, s, r, index):
        k = self.embed.shape[1]
        n = torch.bincount(index, minlength=k).float()
        m = torch.zeros_like(self.embed[s]).index_add_(0, index, r)
        self.counts[s].mul_(self.decay).add_(n, alpha=1 - self.decay)
        self.sums[s].mul_(self.decay).add_(m, alpha=1 - self.decay)
        dead = self.counts[s] < self.dead
        self.embed[s] = self.sums[s] / (self.counts[s][:, None] + 1e-5)
        if dead.any():
            rows = r[torch.randint(0, r.shape[0], (int(dead.sum()),))]
            self.embed[s][dead] = rows
            self.sums[s][dead] = rows
            self.counts[s][dead] = 1.0


def mel_bank(rate, n, bands):
    """Slaney scale, area normalised."""
    lin, log = 200.0 / 3, math.log(6.4) / 27
    to_mel = lambda f: f / lin if f < 1000 else 15 + math.log(f / 1000) / log
    to_hz = lambda m: m * lin if m < 15 else 1000 * math.exp(log * (m - 15))
    edges = [to_hz(m) for m in np.linspace(0, to_mel(rate / 2), bands + 2)]
    f = np.linspace(0, rate / 2, n // 2 + 1)
    rows = []
    for a, b, c in zip(edges, edges[1:], edges[2:]):
        rows.append(np.maximum(0, np.minimum((f - a) / (b - a), (c - f) / (c - b))) * 2 / (c - a))
    return torch.tensor(np.array(rows), dtype=torch.float32)


class Spectral(nn.Module):
    def __init__(self, rate, windows=(64, 256, 1024), mels=(10, 40, 80)):
        super().__init__()
        self.windows = windows
        for n, m in zip(windows, mels):
            self.register_buffer(f"window{n}", torch.hann_window(n))
            self.register_buffer(f"bank{n}", mel_bank(rate, n, m))

    def forward(self, y, x):
        stft = mel = 0
        for n in self.windows:
            window, bank = getattr(self, f"window{n}"), getattr(self, f"bank{n}")
            both = torch.stft(torch.cat([y, x]), n, n // 4, window=window, return_complex=True).abs()
            a, b = both.chunk(2)
            stft = stft + (a - b).abs().mean() + (a.clamp_min(1e-5).log10() - b.clamp_min(1e-5).log10()).abs().mean()
            a, b = (bank @ both).clamp_min(1e-5).log10().chunk(2)
            mel = mel + (a - b).abs().mean()
        return stft / len(self.windows), mel / len(self.windows)


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
    rates, latent = (2, 4, 5), 64
    enc, dec, vq, spec = encoder(16, rates, latent), decoder(256, rates[::-1], latent), Quantizer(a.books, 1024, latent), Spectral(16000)
    params = [q for m in (enc, dec) for q in m.parameters()]
    opt = torch.optim.AdamW(params, lr=a.lr, betas=(0.5, 0.9), weight_decay=0.01)
    means = [0.0, 0.0, 0.0]
    seen = [0]

    def batch():
        rows = []
        for i in rng.choice(len(clips), a.batch, p=part):
            c = clips[i]
            at = int(rng.integers(0, max(1, len(c) - a.segment + 1)))
            c = c[at : at + a.segment]
            rows.append(F.pad(c, (0, a.segment - len(c))))
        return torch.stack(rows)[:, None]

    def forward(x):
        q, vq_loss = vq(enc(x))
        return dec(q), vq_loss

    run, losses = forward, lambda y, x: ((y - x).abs().mean(), *spec(y, x))
    if a.compile:
        enc_c, dec_c, losses = torch.compile(enc), torch.compile(dec), torch.compile(losses)

        def run(x):
            q, vq_loss = vq(enc_c(x))
            return dec_c(q), vq_loss

    with torch.no_grad():
        rows = torch.cat([enc(batch()).transpose(1, 2).reshape(-1, latent) for _ in range(max(1, 20000 * 40 // (a.batch * a.segment)))])
        vq.start(rows)
    times, curve = [], []
    for step in range(a.steps):
        x = batch()
        start = time.perf_counter()
        y, vq_loss = run(x)
        parts = losses(y[:, 0], x[:, 0])
        seen[0] += 1
        total = 0
        for i, part_loss in enumerate(parts):
            g = torch.autograd.grad(part_loss, y, retain_graph=True)[0]
            means[i] = 0.999 * means[i] + 0.001 * float(g.norm())
            total = total + g / 3 / (means[i] / (1 - 0.999 ** seen[0]) + 1e-12)
        opt.zero_grad(set_to_none=True)
        torch.autograd.backward([y, vq_loss], [total, None])
        nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        times.append(time.perf_counter() - start)
        curve.append(float(sum(parts) + vq_loss))
        if step % 20 == 0 or step == a.steps - 1:
            print(f"step {step + 1:4d}  loss {curve[-1]:.4f}  {times[-1] * 1e3:.1f} ms", file=sys.stderr, flush=True)
    vq.eval()
    z = torch.randn(1, latent, 800)
    decode = []
    with torch.no_grad():
        for _ in range(12):
            start = time.perf_counter()
            dec(z)
            decode.append(time.perf_counter() - start)
    warm = times[min(10, len(times) // 2) :]
    print(json.dumps({
        "peer": "PyTorch " + torch.__version__ + (" compile" if a.compile else " eager"),
        "threads": a.threads, "batch": a.batch, "segment": a.segment,
        "step_ms_median": round(statistics.median(warm) * 1e3, 2), "step_ms_min": round(min(warm) * 1e3, 2),
        "decode_2s_ms_median": round(statistics.median(decode[2:]) * 1e3, 2),
        "loss_every_10": [round(v, 4) for v in curve[::10]],
        "parameters": sum(q.numel() for q in params),
    }))


if __name__ == "__main__":
    main()
