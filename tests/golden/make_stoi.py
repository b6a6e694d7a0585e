"""Writes stoi.inc: STOI and ESTOI by pystoi and segmental SNR by NumPy, of signals that
tests/training/evaluation_test.cpp makes by the same formulas.

Run by hand, needs pystoi:  python make_stoi.py > stoi.inc
"""
from importlib.metadata import version

import numpy as np
from pystoi import stoi

SECONDS = 2.5
CASES = [  # sample rate, distortion, its parameter
    (10000, "noise", 0.01),
    (10000, "noise", 0.1),
    (10000, "noise", 1.0),
    (10000, "clip", 0.1),
    (10000, "steps", 0.25),
    (8000, "noise", 0.1),
    (16000, "noise", 0.03),
    (16000, "noise", 0.3),
    (16000, "clip", 0.05),
    (16000, "steps", 0.125),
    (22050, "noise", 0.1),
    (24000, "noise", 0.1),
    (44100, "noise", 0.1),
    (48000, "steps", 0.25),
]


def noise(count):
    """The numbers of the test: a linear congruential generator, exact in float."""
    state, out = 12345, np.empty(count)
    for i in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        out[i] = (state >> 8) / 2**23 - 1.0
    return out


def signals(rate, distortion, parameter):
    """Syllables of voice and of noise, 2.1 a second, with near silence between them; and the same distorted."""
    count = round(SECONDS * rate)
    t = np.arange(count) / rate
    random = noise(2 * count)
    phase = 2 * np.pi * 120 * t - 20 / 0.7 * np.cos(2 * np.pi * 0.7 * t)
    formant = 900 + 700 * np.sin(2 * np.pi * 1.3 * t)
    voice = np.zeros(count)
    for h in range(1, 29):
        voice += (np.exp(-(((120 * h - formant) / 400) ** 2)) + 0.2 / h) * np.sin(h * phase)
    syllables = np.maximum(0, np.sin(2 * np.pi * 2.1 * t)) ** 2
    hisses = np.maximum(0, np.sin(2 * np.pi * 2.1 * t + 2.5)) ** 2
    x = (0.2 * syllables * voice + (0.03 * hisses + 1e-4) * random[:count]).astype(np.float32)
    if distortion == "noise":
        y = x + np.float32(parameter) * random[count:].astype(np.float32)
    elif distortion == "clip":
        y = np.clip(x, np.float32(-parameter), np.float32(parameter))
    else:
        y = np.floor(x / np.float32(parameter) + np.float32(0.5)) * np.float32(parameter)
    return x.astype(np.float64), y.astype(np.float64)


def segmental_snr(x, y, rate):
    length = round(0.03 * rate)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1, length + 1) / (length + 1))
    values = []
    for first in range(0, len(x) - length + 1, length // 4):
        a, b = window * x[first : first + length], window * (x - y)[first : first + length]
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = 10 * np.log10(np.sum(a * a) / np.sum(b * b)) if np.any(b) else np.inf
        values.append(np.clip(snr, -10, 35))
    return np.mean(values)


if __name__ == "__main__":
    np.random.seed(0)  # pystoi adds noise of 2e-16
    print("// Written by make_stoi.py with pystoi %s, NumPy %s, SciPy %s." % tuple(map(version, ("pystoi", "numpy", "scipy"))))
    print("// clang-format off")
    print("inline const std::vector<GoldenScore> golden_scores{")
    for rate, distortion, parameter in CASES:
        x, y = signals(rate, distortion, parameter)
        print('    {%d, "%s", %sf, %.10f, %.10f, %.10f},' % (rate, distortion, parameter, stoi(x, y, rate),
                                                          stoi(x, y, rate, extended=True), segmental_snr(x, y, rate)))
    print("};")
    print("// clang-format on")
