"""Writes dac_discriminator.safetensors: DAC's discriminator, its losses, gradients and one optimizer step, by the
published code of DAC.

Run by hand, needs torch, numpy, scipy, safetensors, descript-audio-codec and descript-audiotools:

  python make_dac_discriminator.py [FILE]

The discriminators are those of the published code with fewer channels. Weights and audio are random and exact in float.
The results were computed in double and rounded once to float, so a difference from them is an error of the tested code.
The script also runs the published code as it is, in float, and stops if the two disagree.

What a test compares (real and fake have the shape [2, 1, 695]; <d> is the index of a sub-discriminator: 0 to 2 have the
periods 2, 3 and 5, 3 and 4 the windows 256 and 128; the period 5 divides the length, and no hop does):

  weights.<name>          set before everything else; <name> is that of PyTorch, with weight_g and weight_v
  logits.<d>.real|fake    the last activation of sub-discriminator d
  features.<d>.<i>.real|fake   activation i behind its leaky ReLU, for a choice of i
  norms.<d>.real|fake     [activations, 2], for all activations with the logits last: L1 and L2 norm of each
  loss.discriminator      [1] sum over d of mean (1 - real)^2 + mean fake^2, least squares
  loss.generator          [1] sum over d of mean (1 - fake)^2
  loss.feature            [1] sum over d and all activations but the logits of mean |fake - real|; no further division
  gradient.fake           of loss.generator + 2 loss.feature with respect to fake; gradients pass through the removal of
                          the mean and the scaling to a peak of 0.8
  gradient.<name>         of loss.discriminator with respect to a weight, before the clip; five weights
  norms.gradient          [weights], for all weights in the order of their names: L2 norm of the gradient of
                          loss.discriminator
  norm.discriminator      [1] L2 norm of the gradient of loss.discriminator over all weights, before the clip; above 10
  moment.<name>           AdamW's first moment after one step: (1 - 0.8) clip gradient, so it shows whether the clip was
                          applied
  stepped.<name>          the weight after one step of AdamW (lr 1e-4, betas 0.8 and 0.99, eps 1e-8, weight decay 0.01
                          on all weights) behind a clip of the global norm at 10
  shapes.default          [8, 4] shapes of the logits of DAC's default configuration (periods 2, 3, 5, 7, 11, windows
                          2048, 1024, 512, full width) for audio [1, 1, 16758]

All results belong to the weights before the step. Layouts are those of PyTorch:

  period p    activation [batch, channels, l, p]: sample l p + j of the padded signal is at [l, j]. Nacre's fold has it
              in item b p + j at time l. Weights [out, in, taps, 1]
  window      activation [batch, channels, frames, bins]; channels 0 and 1 of the spectrum are its real and imaginary
              part. Activations of band b, stage s have the index 5 b + s. Weights [out, in, taps over frames, taps over
              bins]

A leaky ReLU and |fake - real| have a kink at zero, where rounding decides the gradient. The seed is therefore the one
whose kinks are the farthest away: `kink_margin` in the metadata is the smallest ratio of the distance of a value to its
kink and the largest error of PyTorch's float over the activation that the value belongs to. The metadata also have the
largest error of PyTorch's float in each kind of result, relative to the largest absolute value of the same tensor.
"""
import json
import os
import re
import sys

import audiotools
import dac
import dac.model.discriminator as published
import numpy as np
import safetensors.torch
import torch
from dac.nn.loss import GANLoss
from torch import nn

PERIODS, WINDOWS, RATE, TIME = (2, 3, 5), (256, 128), 16000, 695
PERIOD_WIDTHS = {1: 1, 32: 2, 128: 4, 512: 8, 1024: 12}  # channels of the published code: channels here
WINDOW_WIDTHS = {1: 1, 2: 2, 32: 3}
FEATURES = {"period": (2, 4), "window": (9, 22)}  # activations that are stored; the logits always are
FOLLOWED = (  # weights whose gradient and step are stored
    "discriminators.0.convs.2.0.weight_v",
    "discriminators.1.convs.4.0.bias",
    "discriminators.2.convs.0.0.weight_g",
    "discriminators.3.band_convs.1.2.0.weight_v",
    "discriminators.4.band_convs.4.0.0.weight_g",
)
FEATURE_WEIGHT, CLIP = 2.0, 10.0
SEEDS = 64
FULL_WIDTH = published.WNConv2d


def narrow(inputs, outputs, *args, **kwargs):
    """The published constructor of a convolution, with fewer channels."""
    kernel = kwargs.get("kernel_size") or args[0]
    widths = PERIOD_WIDTHS if kernel[1] == 1 else WINDOW_WIDTHS
    return FULL_WIDTH(widths[inputs], widths[outputs], *args, **kwargs)


class Exact(audiotools.AudioSignal):
    """A signal that keeps double precision; the published one rounds samples and window to float."""

    def load_from_array(self, audio, sample_rate, device=None):
        super().load_from_array(audio, sample_rate, device)
        self.audio_data = audio
        return self

    @staticmethod
    def get_window(kind, length, device):
        assert kind == "hann"
        return torch.hann_window(length, dtype=torch.float64)


def name_of(parameter):
    """Both ways in which PyTorch stores a normalised weight, under the names of the older one."""
    name = re.sub(r"parametrizations\.weight\.original0$", "weight_g", parameter)
    return re.sub(r"parametrizations\.weight\.original1$", "weight_v", name)


def weights_of(model):
    return {name_of(name): p for name, p in model.named_parameters()}


def make(seed):
    """A discriminator whose gains are not the norms of its directions, and whose activations do not fade with depth."""
    published.WNConv2d = narrow
    torch.manual_seed(seed)
    model = published.Discriminator(rates=[], periods=list(PERIODS), fft_sizes=list(WINDOWS), sample_rate=RATE)
    published.WNConv2d = FULL_WIDTH
    with torch.no_grad():
        for name, p in weights_of(model).items():
            if name.endswith("weight_g"):
                p.mul_(1.5 + torch.rand_like(p))
    return model


def audio(seed):
    """Two items of voice-like sound with an offset, and a distorted copy."""
    rng = np.random.default_rng(seed)
    t = np.arange(TIME) / RATE
    real = []
    for pitch, offset, level in ((130.0, 0.02, 0.3), (235.0, -0.05, 0.8)):
        wave = sum(np.sin(2 * np.pi * pitch * k * t + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 20))
        envelope = 0.6 + 0.4 * np.sin(2 * np.pi * 40 * t + rng.uniform(0, 2 * np.pi))
        real.append(level * (0.4 * wave * envelope + 0.05 * rng.standard_normal(TIME)) + offset)
    real = np.stack(real)
    noise = np.abs(real).max(1, keepdims=True) * rng.standard_normal(real.shape)
    fake = 0.7 * real + 0.2 * np.roll(real, 3, 1) + 0.08 * noise
    return [torch.tensor(x, dtype=torch.float32)[:, None] for x in (real, fake)]


def run(seed, exact):
    """All results, and the inputs of all leaky ReLUs; in double with `exact`, else the published code as it is."""
    dtype = torch.float64 if exact else torch.float32
    published.AudioSignal = Exact if exact else audiotools.AudioSignal
    model, (real, fake) = make(seed).to(dtype), (x.to(dtype) for x in audio(seed))
    weights = weights_of(model)
    out = {f"weights.{name}": p.detach().clone() for name, p in weights.items()}
    out |= {"real": real.clone(), "fake": fake.clone()}
    signal = Exact if exact else audiotools.AudioSignal
    fake.requires_grad_()
    inputs, found = [], {}

    hooks = [m.register_forward_hook(lambda m, x, y: inputs.append(x[0].detach()))
             for m in model.modules() if isinstance(m, nn.LeakyReLU)]  # fmt: skip
    for side, x in (("real", real), ("fake", fake)):
        found[side] = model(x)
    for h in hooks:
        h.remove()
    losses = GANLoss(model)
    generator, feature = losses.generator_loss(signal(fake, RATE), signal(real, RATE))
    (gradient,) = torch.autograd.grad(generator + FEATURE_WEIGHT * feature, fake)
    discriminator = losses.discriminator_loss(signal(fake, RATE), signal(real, RATE))
    model.zero_grad()
    discriminator.backward()

    kinks = {f"input {i}": x for i, x in enumerate(inputs)}
    for d, both in enumerate(zip(found["real"], found["fake"])):
        kind = "period" if d < len(PERIODS) else "window"
        for side, maps in zip(("real", "fake"), both):
            for i in FEATURES[kind]:
                out[f"features.{d}.{i}.{side}"] = maps[i].detach()
            out[f"logits.{d}.{side}"] = maps[-1].detach()
            out[f"norms.{d}.{side}"] = torch.stack([torch.stack([m.abs().sum(), m.norm()]) for m in maps]).detach()
        kinks |= {f"difference {d} {i}": (y - x).detach() for i, (x, y) in enumerate(list(zip(*both))[:-1])}
    for name, value in (("discriminator", discriminator), ("generator", generator), ("feature", feature)):
        out[f"loss.{name}"] = value.detach().reshape(1)
    out["gradient.fake"] = gradient
    out |= {f"gradient.{name}": weights[name].grad.clone() for name in FOLLOWED}
    out["norms.gradient"] = torch.stack([weights[name].grad.norm() for name in sorted(weights)])

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.8, 0.99), eps=1e-8, weight_decay=0.01)
    out["norm.discriminator"] = nn.utils.clip_grad_norm_(model.parameters(), CLIP).reshape(1)
    optimizer.step()
    for name in FOLLOWED:
        out[f"moment.{name}"] = optimizer.state[weights[name]]["exp_avg"].clone()
        out[f"stepped.{name}"] = weights[name].detach().clone()
    check_losses(found, out)
    return out, kinks


def check_losses(found, out):
    """The formulas of the head of this file are those of GANLoss."""
    pairs = list(zip(found["real"], found["fake"]))
    mine = {
        "discriminator": sum((1 - r[-1]).square().mean() + f[-1].square().mean() for r, f in pairs),
        "generator": sum((1 - f[-1]).square().mean() for _, f in pairs),
        "feature": sum((y - x).abs().mean() for r, f in pairs for x, y in zip(r[:-1], f[:-1])),
    }
    for name, value in mine.items():
        assert torch.allclose(value.detach(), out[f"loss.{name}"][0], rtol=1e-5, atol=0), name


def margin(exact, single):
    """The smallest distance to a kink, in units of the largest error of float over the same activation."""
    return min(float(x.abs().min() / (single[name].double() - x).abs().max()) for name, x in exact.items())


def peak_margin(x):
    """The distance between the largest samples and the next largest, relative to the peak. The peak selects the sample
    that has the gradient of the scale."""
    top = (x.double() - x.double().mean(-1, keepdim=True)).abs().topk(2).values
    return float(((top[..., 0] - top[..., 1]) / top[..., 0]).min())


def default_shapes():
    published.AudioSignal = audiotools.AudioSignal
    torch.manual_seed(0)
    with torch.no_grad():
        return [list(maps[-1].shape) for maps in published.Discriminator()(torch.randn(1, 1, 16758))]


def main():
    torch.set_num_threads(1)  # sums in the same order every time
    margins = {}
    for seed in range(SEEDS):
        (exact, kinks), (_, rounded) = run(seed, True), run(seed, False)
        peaks_apart = min(peak_margin(x) for x in (exact["real"], exact["fake"])) > 1e-3
        if peaks_apart and exact["norm.discriminator"][0] > 1.05 * CLIP:
            margins[seed] = margin(kinks, rounded)
    seed = max(margins, key=margins.get)
    (exact, _), (single, _) = run(seed, True), run(seed, False)
    errors = {}
    for name, x in exact.items():
        error = float((single[name].double() - x).abs().max() / x.abs().max())
        assert error < 1e-5, f"{name}: the published code differs by {error}"
        errors[name.split(".")[0]] = max(errors.get(name.split(".")[0], 0), error)
    shapes = default_shapes()
    exact["shapes.default"] = torch.tensor(shapes)
    about = {
        "periods": PERIODS, "windows": WINDOWS, "sample_rate": RATE, "bands": published.BANDS,
        "period_widths": [PERIOD_WIDTHS[c] for c in (32, 128, 512, 1024, 1024)], "window_width": WINDOW_WIDTHS[32],
        "feature_weight": FEATURE_WEIGHT, "clip": CLIP, "seed": seed, "kink_margin": round(margins[seed], 1),
        "float_errors": {k: float(f"{v:.1e}") for k, v in errors.items() if v}, "torch": torch.__version__,
        "audiotools": audiotools.__version__, "dac": dac.__version__,
    }  # fmt: skip
    beside = os.path.join(os.path.dirname(__file__), "dac_discriminator.safetensors")
    file = sys.argv[1] if len(sys.argv) > 1 else beside
    tensors = {name: x.float().contiguous() for name, x in exact.items()}
    # One entry only, because the order of several entries varies.
    with open(file, "wb") as f:
        f.write(safetensors.torch.save(tensors, {"about": json.dumps(about)}))
    print(json.dumps(about))
    print(f"norm {float(exact['norm.discriminator'][0]):.3f}, losses",
          *(f"{k} {float(exact[f'loss.{k}'][0]):.5f}" for k in ("discriminator", "generator", "feature")))  # fmt: skip
    print(f"{len(tensors)} tensors, {os.path.getsize(file)} bytes; shapes of the default configuration:")
    for s in shapes:
        print("   ", s)


if __name__ == "__main__":
    main()
