#!/usr/bin/env python3
"""Fits the constants of towards_atanh() in lib/codec/transform_start.cpp. Run by hand; needs numpy and scipy.

There are one to three steps u -> u + sum over one or two terms of c (2u - sin(2 a u) / a), with |c| at most 0.6 /
steps. The bound is needed because the noise of training moves c and a, and large terms that cancel would amplify it. c
and a are fitted so that tanh of the last step is near u, over amplitudes from a mixture of Laplacians (speech scaled to
a peak of 0.95). Prints the error over the signal in dB.
"""
import numpy as np
from scipy.optimize import minimize

u = np.linspace(-0.97, 0.97, 389)
density = sum(part * (d / d.sum()) for part, d in ((p, np.exp(-np.abs(u) / s)) for p, s in ((0.5, 0.05), (0.3, 0.12), (0.2, 0.3))))


def error(steps):
    x = u.copy()
    for terms in steps:
        x = x + sum(c * (2 * x - np.sin(2 * a * x) / a) for c, a in terms)
    return (density * (np.tanh(x) - u) ** 2).sum() / (density * u * u).sum()


print(f"tanh alone: {10 * np.log10(error([])):.2f} dB")
for count in (1, 2):
    for steps in (1, 2, 3):
        shape, bound, best = (steps, count, 2), 0.6 / steps, None
        random = np.random.default_rng(0)
        for _ in range(24):
            first = np.stack([random.uniform(0, bound, shape[:2]), random.uniform(0.4, 2.5, shape[:2])], -1)
            fit = minimize(lambda p: np.log(error(p.reshape(shape))), first.ravel(), method="L-BFGS-B",
                           bounds=[(-bound, bound), (0.2, 4)] * (steps * count), options={"maxiter": 1500})
            if best is None or fit.fun < best.fun:
                best = fit
        rounded = np.round(best.x, 4).reshape(shape)
        print(f"{steps} steps of {count}: {10 * np.log10(error(rounded)):.2f} dB {rounded.tolist()}")
