"""Writes encodec_discriminator.safetensors: EnCodec's discriminator with its losses and gradients, by the published
class MultiScaleSTFTDiscriminator, and three steps of its balancer.

Run by hand, needs torch, einops, numpy, safetensors, encodec, and torchaudio or any module of that name, which the
published class imports:

  python make_encodec_discriminator.py [FILE]

The discriminators are those of the published class with fewer channels and shorter windows. Weights and audio are random
and exact in float. The results were computed in double and rounded once to float, so a difference from them is an error
of the tested code. The script also runs the published class in float, and stops if the two disagree. The spectrogram,
which the published class takes from torchaudio, is written out here, because that one rounds its window to float.

What a test compares (real and fake have the shape [2, 1, 600]; <d> is the index of a sub-discriminator: 0 and 1 have the
windows 256 and 128; no hop divides what is left of the audio behind the first window of sub-discriminator 0):

  weights.<name>          set before everything else; <name> is that of PyTorch, with weight_g and weight_v
  logits.<d>.real|fake    [batch, 1, frames, bins]
  features.<d>.<i>.real|fake   activation i behind its leaky ReLU, for a choice of i
  norms.<d>.real|fake     [activations, 2], for all activations with the logits last: L1 and L2 norm of each
  loss.discriminator      [1] sum over d of mean max(0, 1 - real) + mean max(0, 1 + fake). The published losses are means
                          over d
  loss.hinge              [1] sum over d of mean max(0, 1 - fake)
  loss.hinge_linear       [1] sum over d of -mean fake
  loss.feature            [1] sum over d and all activations but the logits of mean |fake - real|
  loss.feature_relative   [1] the same, each mean divided by mean |real| of its activation
  gradient.fake.hinge     of loss.hinge + 2 loss.feature_relative with respect to fake
  gradient.fake.hinge_linear   of loss.hinge_linear + 2 loss.feature
  gradient.<name>         of loss.discriminator with respect to a weight; five weights
  norms.gradient          [weights], for all weights in the order of their names: L2 norm of the gradient of
                          loss.discriminator
  shapes.default          [3, 4] shapes of the logits of the published defaults (windows 1024, 2048, 512, full width)
                          for audio [1, 1, 24000]

  balancer.<step>.gradients   [losses, batch, time] for the steps 0 to 2; weights 4, 4, 1
  balancer.<step>.joint   [batch, time] the gradient behind the balancer: decay 0.999, total norm 1, eps 1e-12, norms
                          |g[b]|_2 averaged over the items b, sums of norms and of ones weighted by the number of items
                          (Defossez et al. 2022, arXiv 2210.13438, section 3.4, and the published training code)

A leaky ReLU, |fake - real| and the hinge have a kink, where rounding decides the gradient. The seed is therefore the one
whose kinks are the farthest away: `kink_margin` in the metadata is the smallest ratio of the distance of a value to its
kink and the largest error of PyTorch's float over the activation that the value belongs to.
"""
import json
import os
import sys
import types
from importlib.metadata import version

import numpy as np
import safetensors.torch
import torch
from encodec import msstftd
from encodec.msstftd import MultiScaleSTFTDiscriminator
from torch import nn

WINDOWS, CHANNELS, RATE, TIME = (256, 128), 3, 24000, 600
FEATURES = (1, 4)
FOLLOWED = (  # weights whose gradient is stored
    "discriminators.0.convs.0.conv.weight",
    "discriminators.0.convs.2.conv.weight_v",
    "discriminators.1.convs.3.conv.weight_g",
    "discriminators.1.convs.4.conv.bias",
    "discriminators.1.conv_post.conv.weight_v",
)
FEATURE_WEIGHT = 2.0
SEEDS = 64


class Spectrogram(nn.Module):
    """Complex spectra of frames inside the signal, divided by the norm of the periodic Hann window."""

    def __init__(self, n_fft, hop_length, win_length, window_fn, normalized, center, pad_mode, power):
        super().__init__()
        assert win_length == n_fft and window_fn is torch.hann_window
        assert normalized and not center and pad_mode is None and power is None
        self.length, self.hop = n_fft, hop_length

    def forward(self, x):
        window = torch.hann_window(self.length, dtype=x.dtype)
        y = torch.stft(x.flatten(0, 1), self.length, self.hop, window=window, center=False, return_complex=True)
        return y.unflatten(0, x.shape[:2]) / window.norm()


def make(seed, dtype):
    """A discriminator whose gains are not the norms of its directions, and whose activations do not fade with depth. Some
    logits are outside of -1 to 1, where the hinge is flat."""
    msstftd.torchaudio = types.SimpleNamespace(transforms=types.SimpleNamespace(Spectrogram=Spectrogram))
    torch.manual_seed(seed)
    model = MultiScaleSTFTDiscriminator(filters=CHANNELS, n_ffts=list(WINDOWS), win_lengths=list(WINDOWS),
                                        hop_lengths=[w // 4 for w in WINDOWS])  # fmt: skip
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("weight_g"):
                p.mul_((40 if "conv_post" in name else 1.5) + torch.rand_like(p))
    return model.to(dtype)


def audio(seed):
    """Two items of voice-like sound, and a distorted copy."""
    rng = np.random.default_rng(seed)
    t = np.arange(TIME) / RATE
    real = []
    for pitch, level in ((180.0, 0.3), (310.0, 0.8)):
        wave = sum(np.sin(2 * np.pi * pitch * k * t + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 20))
        real.append(level * (0.4 * wave + 0.05 * rng.standard_normal(TIME)))
    real = np.stack(real)
    noise = np.abs(real).max(1, keepdims=True) * rng.standard_normal(real.shape)
    fake = 0.7 * real + 0.2 * np.roll(real, 3, 1) + 0.08 * noise
    return [torch.tensor(x, dtype=torch.float32)[:, None] for x in (real, fake)]


def run(seed, dtype):
    """All results, and the values that have a kink at zero."""
    model, (real, fake) = make(seed, dtype), (x.to(dtype) for x in audio(seed))
    weights = dict(model.named_parameters())
    out = {f"weights.{name}": p.detach().clone() for name, p in weights.items()}
    out |= {"real": real.clone(), "fake": fake.clone()}
    fake.requires_grad_()
    inputs = []
    hooks = [m.register_forward_hook(lambda m, x, y: inputs.append(x[0].detach().clone()))
             for m in model.modules() if isinstance(m, nn.LeakyReLU)]  # fmt: skip
    found = {"real": model(real), "fake": model(fake)}
    for h in hooks:
        h.remove()
    kinks = {f"input {i}": x for i, x in enumerate(inputs)}
    for side, (logits, features) in found.items():
        for d, (logit, maps) in enumerate(zip(logits, features)):
            for i in FEATURES:
                out[f"features.{d}.{i}.{side}"] = maps[i].detach()
            out[f"logits.{d}.{side}"] = logit.detach()
            out[f"norms.{d}.{side}"] = torch.stack(
                [torch.stack([m.abs().sum(), m.norm()]) for m in [*maps, logit]]).detach()  # fmt: skip
            kinks |= {f"hinge {d} {side} {sign}": (1 + sign * logit).detach() for sign in (1, -1)}
    pairs = [list(zip(r, f)) for r, f in zip(found["real"][1], found["fake"][1])]
    kinks |= {f"difference {d} {i}": (f - r).detach() for d, p in enumerate(pairs) for i, (r, f) in enumerate(p)}
    logits = list(zip(found["real"][0], found["fake"][0]))
    losses = {
        "discriminator": sum((1 - r).relu().mean() + (1 + f).relu().mean() for r, f in logits),
        "hinge": sum((1 - f).relu().mean() for _, f in logits),
        "hinge_linear": sum(-f.mean() for _, f in logits),
        "feature": sum((f - r.detach()).abs().mean() for p in pairs for r, f in p),
        "feature_relative": sum((f - r.detach()).abs().mean() / r.detach().abs().mean() for p in pairs for r, f in p),
    }
    out |= {f"loss.{name}": value.detach().reshape(1) for name, value in losses.items()}
    for adversarial, feature in (("hinge", "feature_relative"), ("hinge_linear", "feature")):
        total = losses[adversarial] + FEATURE_WEIGHT * losses[feature]
        (out[f"gradient.fake.{adversarial}"],) = torch.autograd.grad(total, fake, retain_graph=True)
    model.zero_grad()
    losses["discriminator"].backward()
    out |= {f"gradient.{name}": weights[name].grad.clone() for name in FOLLOWED}
    out["norms.gradient"] = torch.stack([weights[name].grad.norm() for name in sorted(weights)])
    return out, kinks


def margin(exact, single):
    """The smallest distance to a kink, in units of the largest error of float over the same activation."""
    return min(float(x.abs().min() / (single[name].double() - x).abs().max()) for name, x in exact.items())


def balance():
    rng, weights, decay = np.random.default_rng(5), np.array([4.0, 4.0, 1.0]), 0.999
    sums, ones, out = np.zeros(3), 0.0, {}
    for step in range(3):
        scale = np.array([1e-3, 2.0, 40.0])[:, None, None] * (1 + step) * np.array([1.0, 0.1, 5.0, 0.6])[:, None]
        g = (scale * rng.standard_normal((3, 4, 50))).astype(np.float32)
        exact = g.astype(np.float64)
        norms = np.sqrt((exact**2).sum(2)).mean(1)
        sums, ones = decay * sums + norms * 4, decay * ones + 4
        factors = weights / weights.sum() / (1e-12 + sums / ones)
        out[f"balancer.{step}.gradients"] = torch.tensor(g)
        out[f"balancer.{step}.joint"] = torch.tensor((factors[:, None, None] * exact).sum(0))
    return out


def main():
    torch.set_num_threads(1)  # sums in the same order every time
    margins = {}
    for seed in range(SEEDS):
        (_, kinks), (_, rounded) = run(seed, torch.float64), run(seed, torch.float32)
        margins[seed] = margin(kinks, rounded)
    seed = max(margins, key=margins.get)
    (exact, _), (single, _) = run(seed, torch.float64), run(seed, torch.float32)
    for name, x in exact.items():
        error = float((single[name].double() - x).abs().max() / x.abs().max())
        assert error < (1e-4 if "gradient" in name else 1e-5), f"{name}: the published class in float differs by {error}"
    torch.manual_seed(0)
    with torch.no_grad():
        shapes = [list(x.shape) for x in MultiScaleSTFTDiscriminator(filters=32)(torch.randn(1, 1, 24000))[0]]
    exact["shapes.default"] = torch.tensor(shapes)
    exact |= balance()
    about = {
        "windows": WINDOWS, "channels": CHANNELS, "feature_weight": FEATURE_WEIGHT, "seed": seed,
        "kink_margin": round(margins[seed], 1), "torch": torch.__version__, "encodec": version("encodec"),
    }  # fmt: skip
    beside = os.path.join(os.path.dirname(__file__), "encodec_discriminator.safetensors")
    file = sys.argv[1] if len(sys.argv) > 1 else beside
    tensors = {name: x.float().contiguous() for name, x in exact.items()}
    # One entry only, because the order of several entries varies.
    with open(file, "wb") as f:
        f.write(safetensors.torch.save(tensors, {"about": json.dumps(about)}))
    print(json.dumps(about))
    print("losses", *(f"{k} {float(v[0]):.5f}" for k, v in exact.items() if k.startswith("loss.")))
    print(f"{len(tensors)} tensors, {os.path.getsize(file)} bytes; shapes of the default configuration: {shapes}")


if __name__ == "__main__":
    main()
