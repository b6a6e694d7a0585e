"""Writes mel_norms.inc: SoundStream's L_rec (arXiv 2107.03312) per window, and the gradient of the sum over the windows
with respect to the estimate, by numpy in double from dense matrices: frames, windowed DFT, HTK triangles.

Per window s, hop s / 4, 64 bands, as means over the frames of |S - T|_1 + sqrt(s / 2) |ln(1e-5 + S) - ln(1e-5 + T)|_2.

Run by hand, needs numpy:  python make_mel_norms.py > mel_norms.inc
"""
import numpy as np

RATE, BATCH, TIME, BANDS = 24000, 2, 1201, 64
WINDOWS = [64, 128, 256, 512, 1024, 2048]
FLOOR = float(np.float32(1e-5))  # the library's constant is a float


def signals():
    """The numbers of the test: a linear congruential generator, exact in float."""
    state, out = 54321, []
    for _ in range(2 * BATCH * TIME):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append((state >> 8) / 2**24 - 0.5)
    return np.array(out).reshape(2, BATCH, TIME)


def filters(window):
    """[bands][bins]: triangles whose corners have equal distances on the HTK scale, of height 1."""
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2) / 2595) - 1)
    f = np.arange(window // 2 + 1) * RATE / window
    return np.array([np.interp(f, corners[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(BANDS)])


def positions(window):
    """[frames][window]: sample of the signal at each place of each centred frame, reflected at the ends."""
    at = np.arange(1 + TIME // (window // 4))[:, None] * (window // 4) + np.arange(window) - window // 2
    at = np.abs(at) % (2 * TIME - 2)
    return np.where(at < TIME, at, 2 * TIME - 2 - at)


def loss(x, y, window):
    """The loss, and its gradient in x."""
    at, bank = positions(window), filters(window)
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(window // 2 + 1), n % window) / window) * hann
    X, Y = x[:, at] @ dft.T, y[:, at] @ dft.T  # [batch][frames][bins]
    S, T = np.abs(X) @ bank.T, np.abs(Y) @ bank.T
    e = np.log(FLOOR + S) - np.log(FLOOR + T)
    norm = np.sqrt((e**2).sum(-1, keepdims=True))
    alpha, frames = np.sqrt(window / 2), BATCH * len(at)
    value = (np.abs(S - T).sum() + alpha * norm.sum()) / frames
    dS = (np.sign(S - T) + alpha * e / norm / (FLOOR + S)) / frames
    rows = ((dS @ bank) * X / np.abs(X) @ dft.conj()).real
    dx = np.zeros_like(x)
    for b in range(BATCH):
        np.add.at(dx[b], at, rows[b])
    return value, dx


def show(name, values):
    print(f"inline const std::vector<double> {name}{{")
    text = [f"{float(v):.13g}" for v in values]
    for i in range(0, len(text), 8):
        print("    " + ", ".join(text[i : i + 8]) + ",")
    print("};")


x, y = signals()
found = [loss(x, y, window) for window in WINDOWS]
print("// Written by make_mel_norms.py.")
print("// clang-format off")
show("mel_norms_losses", [value for value, _ in found])
show("mel_norms_gradient", sum(dx for _, dx in found).flatten())
print("// clang-format on")
