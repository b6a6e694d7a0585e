"""Writes spectral.inc: mel filter banks by librosa, and the spectral losses with their gradients by PyTorch in double.

Run by hand, needs librosa and torch:  python make_spectral.py > spectral.inc
"""
import librosa
import numpy as np
import torch

BATCH, TIME = 2, 300
SCALES = [(64, 16, 10), (120, 31, 12)]  # window, hop, mels
BANKS = [  # sample rate, window, bands, fmin, fmax, htk, area normalised
    (16000, 64, 10, 0.0, 8000.0, False, True),
    (22050, 128, 8, 50.0, 8000.0, True, False),
    (44100, 96, 6, 0.0, 22050.0, False, False),
    (16000, 80, 7, 64.0, 7600.0, True, True),
]
SETTINGS = [  # name, log power, magnitude, log magnitude, mel magnitude, mel log, htk, area normalised, padding
    ("slaney", 1.0, 1.0, 1.0, 0.5, 1.0, False, True, "reflect"),
    ("htk", 2.0, 0.0, 1.0, 1.0, 0.0, True, False, "constant"),
]


def signals():
    """The numbers of the test: a linear congruential generator, exact in float."""
    state, out = 12345, []
    for _ in range(2 * BATCH * TIME):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append((state >> 8) / 2**23 - 1.0)
    return torch.tensor(out, dtype=torch.float64).reshape(2, BATCH, TIME)


def bank(rate, window, bands, fmin, fmax, htk, area):
    return librosa.filters.mel(sr=rate, n_fft=window, n_mels=bands, fmin=fmin, fmax=fmax, htk=htk,
                               norm="slaney" if area else None, dtype=np.float64)


def magnitude(x, window, hop, pad_mode):
    h = torch.hann_window(window, dtype=torch.float64)
    return torch.stft(x, window, hop, window=h, center=True, pad_mode=pad_mode, return_complex=True).abs()


def losses(x, y, setting):
    _, power, magnitude_weight, log_magnitude, mel_magnitude, mel_log, htk, area, pad_mode = setting
    stft, mel = 0.0, 0.0
    for window, hop, mels in SCALES:
        m, n = magnitude(x, window, hop, pad_mode), magnitude(y, window, hop, pad_mode)
        log = lambda v: v.clamp(min=1e-5).pow(power).log10()
        stft = stft + magnitude_weight * (m - n).abs().mean() + log_magnitude * (log(m) - log(n)).abs().mean()
        f = torch.tensor(bank(16000, window, mels, 0.0, 8000.0, htk, area))
        m, n = f @ m, f @ n
        log = lambda v: v.clamp(min=1e-5).log10()
        mel = mel + mel_magnitude * (m - n).abs().mean() + mel_log * (log(m) - log(n)).abs().mean()
    return stft, mel


def show(kind, name, values):
    print(f"inline const {kind} {name}{{")
    text = [f"{float(v):.13g}" for v in values]
    for i in range(0, len(text), 8):
        print("    " + ", ".join(text[i : i + 8]) + ",")
    print("};")


print("// Written by make_spectral.py with librosa %s, PyTorch %s." % (librosa.__version__, torch.__version__.split("+")[0]))
print("// clang-format off")
for i, b in enumerate(BANKS):
    show("std::vector<double>", f"mel_bank_{i}", bank(*b).flatten())
for setting in SETTINGS:
    x, y = signals()
    x.requires_grad_()
    values = losses(x, y, setting)
    show("std::vector<double>", f"losses_{setting[0]}", [v.detach() for v in values])
    for part, v in zip(("dstft", "dmel"), values):  # both share the spectra
        (g,) = torch.autograd.grad(v, x, retain_graph=True)
        show("std::vector<double>", f"{part}_{setting[0]}", g.flatten())
print("// clang-format on")
