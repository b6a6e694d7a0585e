"""The codecs of models.py in JAX, forward only, for XLA. Arrays are [batch, time, channels]; the weights are folded."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import models

EPSILON = 1e-9
DIMENSIONS = ("NWC", "WIO", "NWC")


def array(tensor, *order):
    return np.ascontiguousarray(tensor.detach().permute(*order).numpy() if order else tensor.detach().numpy())


def layer_of(module):
    """The function of a layer, and its weights."""
    if isinstance(module, models.Snake):
        return ("snake",), array(module.alpha.reshape(-1))
    if isinstance(module, models.torch.nn.ConvTranspose1d):
        k, p = module.kernel_size[0], module.padding[0]
        weight = np.ascontiguousarray(array(module.weight, 2, 0, 1)[::-1])
        return ("transposed", module.stride[0], k - 1 - p, k - 1 - p + module.output_padding[0]), (weight, array(module.bias))
    if isinstance(module, models.torch.nn.Conv1d):
        return ("conv", module.stride[0], module.padding[0], module.dilation[0]), (array(module.weight, 2, 1, 0), array(module.bias))
    if isinstance(module, models.Unit):
        parts = [layer_of(m) for m in module.block]
        return ("unit", tuple(kind for kind, _ in parts)), [weights for _, weights in parts]
    if isinstance(module, models.torch.nn.Tanh):
        return ("tanh",), ()
    raise ValueError(f"{type(module).__name__} has no counterpart in JAX")


def stack_of(modules):
    parts = [layer_of(m) for m in modules]
    return tuple(kind for kind, _ in parts), [weights for _, weights in parts]


def convolved(x, weights, precision, stride=1, padding=(0, 0), dilation=1, spread=1):
    weight, bias = weights
    y = lax.conv_general_dilated(x, weight, (stride,), (padding,), (spread,), (dilation,), DIMENSIONS, precision=precision)
    return y + bias


def apply(kind, weights, x, precision):
    what, numbers = kind[0], kind[1:]
    if what == "snake":
        alpha, wide = weights.astype(jnp.float32), x.astype(jnp.float32)
        return (wide + jnp.sin(alpha * wide) ** 2 / (alpha + EPSILON)).astype(x.dtype)
    if what == "conv":
        stride, padding, dilation = numbers
        return convolved(x, weights, precision, stride, (padding, padding), dilation)
    if what == "transposed":
        stride, left, right = numbers
        return convolved(x, weights, precision, padding=(left, right), spread=stride)
    if what == "unit":
        return x + run_stack(numbers[0], weights, x, precision)
    return jnp.tanh(x)


def run_stack(kinds, weights, x, precision):
    for kind, mine in zip(kinds, weights):
        x = apply(kind, mine, x, precision)
    return x


def quantizer_of(quantizer):
    if isinstance(quantizer, models.EmaQuantizer):
        return "latent", {"books": array(quantizer.embed)}
    project = lambda c: (array(c.weight, 2, 1, 0)[0], array(c.bias))
    return "factorised", {"books": np.stack([array(b.weight) for b in quantizer.books]),
                          "into": [project(c) for c in quantizer.into], "out": [project(c) for c in quantizer.out]}  # fmt: skip


def unit_rows(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def search(kind, q, z):
    """Maps z [batch, time, latent] in float to codes [batch, time, stages]."""
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    codes, r = [], z
    for s, book in enumerate(q["books"]):
        if kind == "latent":
            codes.append(jnp.argmin(0.5 * jnp.sum(book * book, 1) - product(r, book.T), -1))
            r = r - book[codes[-1]]
        else:
            e = product(r, q["into"][s][0]) + q["into"][s][1]
            codes.append(jnp.argmax(product(unit_rows(e), unit_rows(book).T), -1))
            r = r - (product(book[codes[-1]], q["out"][s][0]) + q["out"][s][1])
    return jnp.stack(codes, -1)


def looked_up(kind, q, codes):
    total = 0
    for s, book in enumerate(q["books"]):
        chosen = book[codes[..., s]]
        if kind == "factorised":
            chosen = jnp.matmul(chosen, q["out"][s][0], precision=lax.Precision.HIGHEST) + q["out"][s][1]
        total = total + chosen
    return total


class Codec:
    """Encoding and decoding of a folded PyTorch codec, compiled by XLA."""

    def __init__(self, codec, dtype, precision):
        self.dtype, self.precision = dtype, precision
        (self.down, down), (self.up, up) = stack_of(codec.encoder), stack_of(codec.decoder)
        self.kind, q = quantizer_of(codec.quantizer)
        cast = functools.partial(jax.tree_util.tree_map, lambda w: jnp.asarray(w, dtype))
        floats = functools.partial(jax.tree_util.tree_map, lambda w: jnp.asarray(w, jnp.float32))
        self.weights = jax.device_put({"down": cast(down), "up": cast(up), "quantizer": floats(q)})

    def encode(self, weights, x):
        """Latent and codes of audio [batch, time, 1]."""
        z = run_stack(self.down, weights["down"], x, self.precision).astype(jnp.float32)
        return z, search(self.kind, weights["quantizer"], z)

    def decode(self, weights, codes):
        z = looked_up(self.kind, weights["quantizer"], codes).astype(self.dtype)
        return run_stack(self.up, weights["up"], z, self.precision)

    def round_trip(self, weights, x):
        z, codes = self.encode(weights, x)
        return z, codes, self.decode(weights, codes)
