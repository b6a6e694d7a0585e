#!/usr/bin/env python3
"""Where the constants of towards_atanh() in lib/transform_start.cpp come from. By hand; needs numpy and scipy.

One to three steps u -> u + c (2u - sin(2 a u) / a) with a given c; a is fitted so that tanh of the last is near u, over
amplitudes distributed as a mixture of Laplacians (speech scaled to a peak of 0.95). Prints the error over the signal in dB.
"""
import numpy as np
from scipy.optimize import minimize

u = np.linspace(-0.97, 0.97, 389)
density = sum(part * (d / d.sum()) for part, d in ((p, np.exp(-np.abs(u) / s)) for p, s in ((0.5, 0.05), (0.3, 0.12), (0.2, 0.3))))


def error(c, frequencies):
    x = u.copy()
    for a in frequencies:
        x = x + c * (2 * x - np.sin(2 * a * x) / a)
    return (density * (np.tanh(x) - u) ** 2).sum() / (density * u * u).sum()


print(f"tanh alone: {10 * np.log10(error(0, [])):.2f} dB")
for c, steps in ((0.42, 1), (0.3, 2), (0.2, 3)):
    fit = minimize(lambda a: error(c, a), [1.0] * steps, method="Nelder-Mead", options={"maxiter": 1500, "xatol": 1e-5, "fatol": 1e-10})
    print(f"c {c}: a {np.round(np.abs(fit.x), 4)}, {10 * np.log10(fit.fun):.2f} dB")
