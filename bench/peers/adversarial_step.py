#!/usr/bin/env python3
"""The adversarial training step of DAC in PyTorch, with a generator and discriminators of reduced width.

The generator is DAC's for 16 kHz with a quarter of the channels (an eighth in the decoder). The discriminators have
periods 2, 3, 5, 7, 11 and windows 2048, 1024, 512, with a quarter of the published channels. Losses, their weights,
optimizers, clips and the order of the step are those of the published training code:

  1. y = generator(x), once
  2. discriminators: least squares on x and y without its gradient; clip at 10; AdamW
  3. generator: 15 mel (7 scales) + 2 feature + 1 adversarial + 1 codebook + 0.25 commitment, judged by the updated
     discriminators; clip at 1000; AdamW

In 2, x and y are one batch. In 3, the discriminators collect no gradients of their weights, and x is judged without a
tape. AdamW is PyTorch's fused one. The published code does none of this; --as-published times it so. Run by hand, the
tests never run it.

  python3 bench/peers/adversarial_step.py [--steps 12] [--threads 2] [--batch 4] [--segment 6080] [--as-published]
  python3 bench/peers/adversarial_step.py --golden tests/golden/dac_discriminator.safetensors

The second command (needs safetensors) compares the discriminators and losses of this file with results of the published
code. Threads that wait for each other may spin, so processor times are comparable with --threads 1 only.
"""
import argparse
import json
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import models

CONFIG = models.Config(encoder_dim=16, decoder_dim=192, encoder_rates=(2, 4, 5, 8), n_codebooks=12)
BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # edges, as parts of the bins


def conv(i, o, kernel, stride=1, padding=0):
    return models.weight_norm(nn.Conv2d(i, o, kernel, stride, padding))


def active(*geometry):
    return nn.Sequential(conv(*geometry), nn.LeakyReLU(0.1))


class Period(nn.Module):
    """Judges the signals that every `period`-th sample makes up."""

    def __init__(self, period, widths):
        super().__init__()
        self.period = period
        ins = (1, *widths[:-1])
        self.convs = nn.ModuleList(
            active(i, o, (5, 1), (3, 1) if n < len(widths) - 1 else 1, (2, 0))
            for n, (i, o) in enumerate(zip(ins, widths))
        )
        self.conv_post = conv(widths[-1], 1, (3, 1), 1, (1, 0))

    def forward(self, x):
        x = F.pad(x[:, None], (0, self.period - x.shape[-1] % self.period), mode="reflect")
        x = x.view(x.shape[0], 1, -1, self.period)
        maps = []
        for layer in self.convs:
            x = layer(x)
            maps.append(x)
        return maps + [self.conv_post(x)]


class Window(nn.Module):
    """Judges the complex spectrum, every band by its own layers."""

    def __init__(self, window, width):
        super().__init__()
        self.window, self.hop = window, window // 4
        bins = window // 2 + 1
        self.edges = [int(b * bins) for b in BANDS]
        strides, kernels = (1, 2, 2, 2, 1), (9, 9, 9, 9, 3)
        self.band_convs = nn.ModuleList(
            nn.ModuleList(
                active(width if n else 2, width, (3, k), (1, s), (1, k // 2))
                for n, (s, k) in enumerate(zip(strides, kernels))
            )
            for _ in BANDS[1:]
        )
        self.conv_post = conv(width, 1, (3, 3), 1, (1, 1))
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def forward(self, x):
        """Frames share out the signal: frame f is centred on the middle of hop f."""
        side = (self.window - self.hop) // 2
        x = F.pad(x[:, None], (side, side + -x.shape[-1] % self.hop), mode="reflect")[:, 0]
        spectrum = torch.stft(x, self.window, self.hop, window=self.hann, center=False, return_complex=True)
        spectrum = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # [batch, 2, frames, bins]
        maps, ends = [], []
        for first, last, layers in zip(self.edges, self.edges[1:], self.band_convs):
            y = spectrum[..., first:last]
            for layer in layers:
                y = layer(y)
                maps.append(y)
            ends.append(y)
        return maps + [self.conv_post(torch.cat(ends, -1))]


class Discriminators(nn.Module):
    def __init__(
        self, periods=(2, 3, 5, 7, 11), windows=(2048, 1024, 512), period_widths=(8, 32, 128, 256, 256), width=8
    ):
        super().__init__()
        self.discriminators = nn.ModuleList([Period(p, period_widths) for p in periods])
        self.discriminators.extend(Window(w, width) for w in windows)

    def forward(self, x):
        """All activations of all discriminators for audio [batch, time]; the last one of each are its logits."""
        x = x - x.mean(-1, keepdim=True)
        x = 0.8 * x / (x.abs().amax(-1, keepdim=True) + 1e-9)
        return [d(x) for d in self.discriminators]


def discriminator_loss(real, fake):
    return sum((1 - r).square().mean() + f.square().mean() for r, f in zip(real, fake))


def generator_losses(real, fake):
    """Adversarial and feature loss of activations."""
    adversarial = sum((1 - f[-1]).square().mean() for f in fake)
    return adversarial, sum(F.l1_loss(y, x.detach()) for r, f in zip(real, fake) for x, y in zip(r[:-1], f[:-1]))


class Step:
    def __init__(self, codec, discriminators, as_published=False, dropout=0.5):
        self.codec, self.discriminators = codec, discriminators
        self.as_published, self.dropout = as_published, dropout
        codec.quantizer.commitment_weight = 0.25
        scales = [2**i for i in range(5, 12)]
        bands = [5 * w // 32 for w in scales]
        self.mel = models.Spectral(codec.config.sample_rate, scales, bands, [False] * len(scales))
        self.scales = len(scales)
        self.optimizers, self.schedules = {}, {}
        for name, part in (("generator", codec), ("discriminator", discriminators)):
            settings = {"lr": 1e-4, "betas": (0.8, 0.99), "weight_decay": 0.01, "fused": not as_published}
            o = torch.optim.AdamW(part.parameters(), **settings)
            self.optimizers[name], self.schedules[name] = o, torch.optim.lr_scheduler.ExponentialLR(o, 0.999996)

    def update(self, name, part, loss, clip):
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(part.parameters(), clip)
        self.optimizers[name].step()
        self.schedules[name].step()

    def generate(self, x):
        items, books = x.shape[0], self.codec.config.n_codebooks
        used = torch.full((items,), books)
        some = int(items * self.dropout)
        used[:some] = torch.randint(1, books + 1, (some,))
        z, vq_loss = self.codec.quantizer(self.codec.encoder(x[:, None]), used)
        return self.codec.decoder(z)[:, 0], vq_loss

    def judge(self, real, fake):
        if self.as_published:
            return self.discriminators(real), self.discriminators(fake)
        self.discriminators.requires_grad_(False)
        with torch.no_grad():
            judged = self.discriminators(real)
        judged = judged, self.discriminators(fake)
        self.discriminators.requires_grad_(True)
        return judged

    def run(self, x):
        """One step on audio [batch, time]; the losses of discriminators and generator."""
        y, vq_loss = self.generate(x)
        if self.as_published:
            fake, real = ([maps[-1] for maps in self.discriminators(s)] for s in (y.detach(), x))
        else:
            both = [maps[-1].chunk(2) for maps in self.discriminators(torch.cat([x, y.detach()]))]
            real, fake = zip(*both)
        judging = discriminator_loss(real, fake)
        self.update("discriminator", self.discriminators, judging, 10)
        adversarial, feature = generator_losses(*self.judge(x, y))
        mel = self.scales * self.mel(y, x)[1]  # the mean over scales; DAC has the sum
        loss = 15 * mel + 2 * feature + adversarial + vq_loss
        self.update("generator", self.codec, loss, 1000)
        return judging.detach(), loss.detach()


def compare(file):
    """Compares with tests/golden/make_dac_discriminator.py. The tolerance is ten times the errors of PyTorch in float
    that the file names; a wrong formula or layout is larger."""
    from safetensors import safe_open

    with safe_open(file, "pt") as f:
        about = json.loads(f.metadata()["about"])
        stored = {k: f.get_tensor(k) for k in f.keys()}
    d = Discriminators(about["periods"], about["windows"], about["period_widths"], about["window_width"])
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    parameters = {}
    for name, p in d.named_parameters():
        for new, old in names.items():
            name = name.replace(new, old)
        parameters[name] = p
        p.data.copy_(stored.pop("weights." + name))
    assert not any(k.startswith("weights.") for k in stored), "weights are left over"
    real, fake = stored["real"][:, 0], stored["fake"][:, 0].requires_grad_()
    maps = d(real), d(fake)
    found = {f"logits.{i}.{side}": m[-1] for side, ms in zip(("real", "fake"), maps) for i, m in enumerate(ms)}
    for k in stored:
        if k.startswith("features."):
            _, i, j, side = k.split(".")
            found[k] = maps[side == "fake"][int(i)][int(j)]
    found["loss.generator"], found["loss.feature"] = generator_losses(*maps)
    total = found["loss.generator"] + about["feature_weight"] * found["loss.feature"]
    found["gradient.fake"] = torch.autograd.grad(total, fake, retain_graph=True)[0][:, None]
    found["loss.discriminator"] = discriminator_loss(*([m[-1] for m in ms] for ms in (d(real), d(fake.detach()))))
    found["loss.discriminator"].backward()
    optimizer = torch.optim.AdamW(d.parameters(), lr=1e-4, betas=(0.8, 0.99), weight_decay=0.01)
    followed = [k.removeprefix("gradient.") for k in stored if k.startswith("gradient.disc")]
    found |= {"gradient." + k: parameters[k].grad.clone() for k in followed}
    nn.utils.clip_grad_norm_(d.parameters(), about["clip"])
    optimizer.step()
    found |= {"stepped." + k: parameters[k] for k in followed}
    wrong = 0
    for name, x in found.items():
        want = stored[name].reshape(x.shape)
        error = float((x - want).abs().max() / want.abs().max())
        limit = 10 * max(about["float_errors"].values())
        wrong += error > limit
        if error > limit:
            print(f"{name}: differs by {error:.1e}, allowed {limit:.1e}")
    print(f"{len(found) - wrong} of {len(found)} results agree")
    return wrong


def tones(batch, segment, rate):
    """Harmonic sounds with noise. Times do not depend on the audio."""
    t = torch.arange(segment) / rate
    pitch = torch.empty(batch, 1, 1).uniform_(80, 300)
    k = torch.arange(1, 20)[:, None]
    wave = (torch.sin(2 * math.pi * (pitch * k * t + torch.rand(batch, 19, 1))) / k).sum(1)
    return 0.2 * wave + 0.02 * torch.randn(batch, segment)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--segment", type=int, default=6080)
    p.add_argument("--as-published", action="store_true")
    p.add_argument("--golden", metavar="FILE")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    if a.golden:
        sys.exit(1 if compare(a.golden) else 0)
    codec, discriminators = models.Codec(CONFIG), Discriminators()
    step = Step(codec, discriminators, a.as_published)
    times, processor, curve = [], [], []
    for i in range(a.steps):
        x = tones(a.batch, a.segment, CONFIG.sample_rate)
        start, used = time.perf_counter(), time.process_time()
        losses = step.run(x)
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
        curve.append([round(float(v), 4) for v in losses])
        print(f"step {i + 1:4d}  losses {curve[-1]}  {times[-1]:.3f} s, {processor[-1]:.3f} s of all threads",
              file=sys.stderr, flush=True)  # fmt: skip
    warm = slice(min(2, len(times) - 1), None)
    print(json.dumps({
        "peer": "PyTorch " + torch.__version__ + (" eager, as published" if a.as_published else " eager"),
        "threads": a.threads, "batch": a.batch, "segment": a.segment,
        "step_s": [round(t, 4) for t in times[warm]],
        "step_s_median": round(statistics.median(times[warm]), 4), "step_s_min": round(min(times[warm]), 4),
        "processor_s_median": round(statistics.median(processor[warm]), 4),
        "losses": curve[warm],
        "parameters": {"generator": sum(q.numel() for q in codec.parameters()),
                       "discriminators": sum(q.numel() for q in discriminators.parameters())},
    }))


if __name__ == "__main__":
    main()
