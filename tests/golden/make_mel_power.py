"""Writes mel_power.inc: EnCodec's multi-scale mel loss (arXiv 2210.13438) per scale, and the gradient of the sum over the
scales with respect to the estimate, by PyTorch in double.

Run by hand, needs torch:  python make_mel_power.py > mel_power.inc
"""
import numpy as np
import torch

RATE, BATCH, TIME, BANDS, LOW = 24000, 2, 1201, 64, 64.0
WINDOWS = [64, 128, 256, 512, 1024]
FLOOR = float(np.float32(1e-5))  # the library's constant is a float


def signals():
    """The numbers of the test: a linear congruential generator, exact in float."""
    state, out = 54321, []
    for _ in range(2 * BATCH * TIME):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append((state >> 8) / 2**24 - 0.5)
    return torch.tensor(out, dtype=torch.float64).reshape(2, BATCH, TIME)


def filters(window):
    """[bands][bins]: triangles whose corners have equal distances on the HTK scale, of height 1."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(2595 * np.log10(1 + LOW / 700), top, BANDS + 2) / 2595) - 1)
    f = np.arange(window // 2 + 1) * RATE / window
    rows = [np.interp(f, corners[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(BANDS)]
    return torch.tensor(np.array(rows))


def mel_powers(x, window):
    hop = window // 4
    pad = (window - hop) // 2
    x = torch.nn.functional.pad(x, (pad, pad), mode="reflect")
    x = torch.nn.functional.pad(x, (0, -(x.shape[-1] - window) % hop))  # completes the last frame with zeros
    h = torch.hann_window(window, dtype=torch.float64)
    frames = x.unfold(-1, window, hop) * (h / h.square().sum().sqrt())
    assert frames.shape[1] == -(-TIME // hop)
    return torch.fft.rfft(frames).abs().square() @ filters(window).T


def loss(x, y, window):
    s, t = mel_powers(x, window), mel_powers(y, window)
    logs = torch.log10(FLOOR + s) - torch.log10(FLOOR + t)
    return ((s - t).abs().mean() + logs.square().mean()) / (2 * len(WINDOWS))


def show(name, values):
    print(f"inline const std::vector<double> {name}{{")
    text = [f"{float(v):.13g}" for v in values]
    for i in range(0, len(text), 8):
        print("    " + ", ".join(text[i : i + 8]) + ",")
    print("};")


x, y = signals()
x.requires_grad_()
losses = [loss(x, y, window) for window in WINDOWS]
(gradient,) = torch.autograd.grad(sum(losses), x)
print("// Written by make_mel_power.py with PyTorch %s." % torch.__version__.split("+")[0])
print("// clang-format off")
show("mel_power_losses", [v.detach() for v in losses])
show("mel_power_gradient", gradient.flatten())
print("// clang-format on")
