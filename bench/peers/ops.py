"""The PyTorch peers of each case of nacre_bench: a registry from op to the peers that apply.

The name of a peer says how it is written. Its arithmetic says in which type products are computed. For a float case
that may be TF32, because PyTorch's convolutions use TF32 unless told otherwise.

  eager                      plain PyTorch in the case's storage type, launched one by one; the notes of other peers say
                             what they are
  eager_fp32                 the same without TF32
  eager_captured             the same as eager, replayed as a CUDA graph
  cudnn_benchmark[_tf32]     cuDNN measures and picks; captured
  conv2d_channels_last[_w1]  two-dimensional convolutions, channels last, the dummy dimension before the time (or behind
                             it); cuDNN measures and picks; captured
  autocast_bf16              float weights, cast by autocast at every run
  compile                    torch.compile without limits to its autotuning; captured here instead of by the compiler,
                             which would copy the inputs into its graph at every run

If there is a float result (`reference`), every peer of the case is compared with it once, over all outputs. The largest
difference must be within `tolerance` times the root mean square of the reference. Otherwise the peer is an error and is
not timed.
"""
import dataclasses
import functools
import zlib
from typing import Any, Callable

import torch
import torch.nn.functional as F

import models
from timing import Settings

# Errors of rounded factors and results, and of sums in any order. The phases of Snake in 16 bits are worse. Two
# tolerances apply, that of the peer's arithmetic and that of the case's storage; the larger one counts.
TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 8e-2, "fp16": 1e-2}
SNAKE_TOLERANCE = {**TOLERANCE, "bf16": 0.25}


class Skipped(Exception):
    """Something that the peer needs is missing on this machine. This is no failure and gives no figure."""


@dataclasses.dataclass
class Peer:
    name: str
    make: Callable[[], Callable[[], Any]]  # makes data and state, returns the function to time
    arithmetic: str = "fp32"
    settings: Settings = Settings()
    captured: bool = False
    compiled: bool = False  # belongs to the set `compiled`
    note: str = ""
    canonical: Callable = lambda output: output  # converts to the reference's layout


@dataclasses.dataclass
class Peers:
    peers: list
    reference: Callable[[], Any] | None = None
    tolerance: dict = dataclasses.field(default_factory=lambda: TOLERANCE)
    mean: bool = False  # compare the root mean square of all differences; a single one may be ten times as large


class Case:
    """One case of the list. Parameters are attributes. All peers of the case share its data."""

    def __init__(self, name, parameters, device):
        self.name, self.parameters, self.device = name, parameters, device
        self.cuda = device.type == "cuda"
        self.type = parameters.get("type", "fp32")
        self.storage = torch.bfloat16 if self.type == "bf16" else torch.float32

    def __getattr__(self, key):
        try:
            return self.__dict__["parameters"][key]
        except KeyError:
            raise ValueError(f"the case lacks the parameter {key}") from None

    def get(self, key, otherwise=None):
        return self.parameters.get(key, otherwise)

    def numbers(self, key):
        """Parses "64,256,1024" into integers. A single number may already be an integer."""
        return [int(n) for n in str(self.parameters[key]).split(",")]

    def random(self, *shapes, low=-1.0, high=1.0, dtype=torch.float32):
        """Uniform values that depend only on the case and on the shape."""
        made = []
        for i, shape in enumerate(shapes):
            words = f"{self.name} {i} {tuple(shape)} {low}".encode()
            draw = torch.Generator(self.device).manual_seed(zlib.crc32(words))
            made.append(torch.rand(shape, generator=draw, device=self.device).mul_(high - low).add_(low).to(dtype))
        return made if len(made) > 1 else made[0]


REGISTRY = {}


def op(*names):
    def register(builder):
        REGISTRY.update({name: builder for name in names})
        return builder

    return register


def uncaptured(note):
    return "; ".join(part for part in note.split("; ") if part not in ("", "captured"))


def peers_of(case):
    """All peers that exist for this case on this device."""
    if case.get("op") not in REGISTRY:
        return Peers([])
    found = REGISTRY[case.op](case)
    if not case.cuda:  # no cuDNN, no TF32, no graphs
        none = ("cudnn_", "eager_fp32")
        found.peers = [p for p in found.peers if not p.name.startswith(none) and not p.name.endswith("_captured")]
        for p in found.peers:
            p.captured, p.note = False, uncaptured(p.note)
            p.arithmetic = "fp32" if p.arithmetic == "tf32" else p.arithmetic
    return found


def compiled(function):
    """Compiles with unlimited autotuning. `captured` makes the graphs."""
    torch._functorch.config.donated_buffer = False  # graphs are kept: backward runs more than once
    mode = "max-autotune-no-cudagraphs" if torch.cuda.is_available() else "max-autotune"
    return torch.compile(function, mode=mode, dynamic=False)


def simple(function, inputs, reference=None, arithmetic="fp32", compiles=True, note=""):
    """The peers eager, captured and compiled of `function`, applied to the result of `inputs()`."""

    def make(wrap=lambda f: f):
        wrapped, given = wrap(function), inputs()
        return lambda: wrapped(*given)

    found = [Peer("eager", make, arithmetic, note=note),
             Peer("eager_captured", make, arithmetic, captured=True, note=note)]  # fmt: skip
    if compiles:
        found.append(Peer("compile", lambda: make(compiled), arithmetic, captured=True, compiled=True, note=note))
    return Peers(found, reference)


# ---- elementwise


def tensors(case, count, dtype=None):
    """`count` activations [batch, channels, time], PyTorch's layout."""
    shape = (case.batch, case.channels, case.time)
    drawn = case.random(*[shape] * count, dtype=dtype or case.storage)
    return drawn if count > 1 else [drawn]


ELEMENTWISE = {  # forward from x, backward from dy and the saved values; add's backward accumulates
    ("tanh", "forward"): (1, torch.tanh),
    ("tanh", "backward"): (2, torch.ops.aten.tanh_backward),
    ("leaky_relu", "forward"): (1, lambda x: F.leaky_relu(x, 0.1)),
    ("leaky_relu", "backward"): (2, lambda dy, y: torch.ops.aten.leaky_relu_backward(dy, y, 0.1, True)),
    ("elu", "forward"): (1, F.elu),
    ("elu", "backward"): (2, lambda dy, y: torch.ops.aten.elu_backward(dy, 1, 1, 1, True, y)),
    ("add", "forward"): (2, torch.add),
    ("add", "accumulate"): (2, lambda x, y: y.add_(x, alpha=1e-6)),
    ("add", "backward"): (2, lambda x, y: y.add_(x, alpha=1e-6)),
    ("convert", "to_bf16"): (1, lambda x: x.to(torch.bfloat16)),
    ("convert", "to_float"): (1, lambda x: x.to(torch.float32)),
}


@op("tanh", "add", "leaky_relu", "elu", "convert")
def elementwise(case):
    count, function = ELEMENTWISE[case.op, case.direction]
    dtype = {"to_bf16": torch.float32, "to_float": torch.bfloat16}.get(case.direction)
    return simple(function, lambda: tensors(case, count, dtype))


def snake_of(x, alpha, amplitude):
    return x + (amplitude + 1e-9).reciprocal() * torch.sin(alpha * x).pow(2)


def snake(x, alpha, beta=None):
    return snake_of(x, alpha, alpha if beta is None else beta)


def scripted_snake():
    scripted = torch.jit.script(snake_of)
    return lambda x, alpha, beta=None: scripted(x, alpha, alpha if beta is None else beta)


def snake_in_float(x, alpha, beta=None):
    """For compilers: computes in float and stores in the storage type."""
    return snake(x.float(), alpha, beta).to(x.dtype)


def snake_gradient(x, alpha, dy):
    """Closed form, which a compiler turns into one pass and a reduction."""
    a, v, g = alpha, x.float(), dy.float()
    inverse, phase = (a + 1e-9).reciprocal(), a * v
    sine, cosine = torch.sin(phase), torch.cos(phase)
    double = 2 * sine * cosine
    dx = g * (1 + a * inverse * double)
    dalpha = (g * inverse * (v * double - sine * sine * inverse)).sum((0, 2), keepdim=True)
    return dx.to(x.dtype), dalpha


@op("snake")
def snake_peers(case):
    per_channel = (1, case.channels, 1)

    def parameters(dtype):
        drawn = case.random(per_channel, per_channel, low=0.5, high=4.0, dtype=dtype)
        return drawn if case.get("beta") else drawn[:1]

    def forward(function, dtype):
        (x,), given = tensors(case, 1), parameters(dtype)
        return lambda: function(x, *given)

    def backward(dtype, with_float=True):
        x, dy = tensors(case, 2, None if with_float else torch.float32)
        given = [x, *parameters(dtype)]
        for tensor in given:
            tensor.requires_grad_()
        y = snake(*given)
        dy = dy.to(y.dtype)
        return lambda: torch.autograd.grad(y, given, dy, retain_graph=True)

    if case.direction == "forward":
        reference = lambda: snake(tensors(case, 1)[0].float(), *parameters(torch.float32))
        found = [
            Peer("eager", lambda: forward(snake, case.storage), case.type),
            Peer("eager_captured", lambda: forward(snake, case.storage), case.type, captured=True),
            Peer("scripted", lambda: forward(scripted_snake(), case.storage), case.type, captured=True,
                 note="torch.jit.script, as DAC has it; captured"),
            Peer("compile", lambda: forward(compiled(snake_in_float), torch.float32), captured=True, compiled=True),
        ]  # fmt: skip
        if case.type == "bf16":
            found.append(Peer("autocast_bf16", lambda: forward(snake, torch.float32), "fp32", captured=True,
                              note="float alpha, so the result is float, as under autocast; captured"))  # fmt: skip
        return Peers(found, reference, SNAKE_TOLERANCE)

    def reference():
        x, dy = tensors(case, 2)
        given = [x.float(), *parameters(torch.float32)]
        for tensor in given:
            tensor.requires_grad_()
        return torch.autograd.grad(snake(*given), given, dy.float())

    def closed():
        function, (x, dy), (alpha,) = compiled(snake_gradient), tensors(case, 2), parameters(torch.float32)
        return lambda: function(x, alpha, dy)

    note = "backward alone, of a graph that is kept"
    found = [Peer("eager", lambda: backward(case.storage), case.type, note=note),
             Peer("eager_captured", lambda: backward(case.storage), case.type, captured=True, note=note)]  # fmt: skip
    if not case.get("beta"):
        found.append(Peer("compile", closed, captured=True, compiled=True, note="the closed form"))
    return Peers(found, reference, SNAKE_TOLERANCE)


# ---- convolutions


class Convolution:
    """The convolution of the case, its gradients, and the same in two dimensions.

    x is the longer side [batch, in, time] and y the other one. `transposed` computes the same by the transposed layer.
    """

    lifts = {
        "1d": (lambda t: t, lambda t: t),
        "h1": (lambda t: t.unsqueeze(2).contiguous(memory_format=torch.channels_last), lambda t: t.squeeze(2)),
        "w1": (lambda t: t.unsqueeze(3).contiguous(memory_format=torch.channels_last), lambda t: t.squeeze(3)),
    }

    def __init__(self, case, layout="1d"):
        self.case, self.layout = case, layout
        self.lift, self.lower = self.lifts[layout]
        self.transposed = bool(case.get("transposed", 0))
        left, right = case.left, case.right
        self.pad = min(left, right)
        self.extra = (left - self.pad, right - self.pad)  # PyTorch pads both sides by the same amount
        if self.transposed and any(self.extra):
            raise ValueError("a transposed layer with unequal padding has no peer")
        if case.get("reflect", 0):
            raise ValueError("reflected padding has no peer")
        span = case.dilation * (case.taps - 1) + 1
        self.short = (case.time + left + right - span) // case.stride + 1
        rest = case.time - ((self.short - 1) * case.stride - 2 * self.pad + span)
        self.geometry = [self.two(case.stride, 1), self.two(self.pad, 0), self.two(case.dilation, 1), self.transposed,
                         self.two(rest if self.transposed else 0, 0), 1]  # fmt: skip

    def two(self, value, dummy):
        return {"1d": [value], "h1": [dummy, value], "w1": [value, dummy]}[self.layout]

    def data(self, dtype):
        """Returns x, weight, bias and dy."""
        c = self.case
        x, weight, bias, dy = c.random(
            (c.batch, c.get("in"), c.time), (c.out, c.get("in"), c.taps), (c.out,), (c.batch, c.out, self.short)
        )
        return [self.lift(x.to(dtype)), self.lift(weight.to(dtype)), bias.to(dtype), self.lift(dy.to(dtype))]

    def padded(self, x):
        if not any(self.extra):
            return x
        return F.pad(x, {"1d": self.extra, "h1": self.extra, "w1": (0, 0, *self.extra)}[self.layout])

    def forward(self, x, weight, bias=None):
        return torch.ops.aten.convolution(self.padded(x), weight, bias, *self.geometry)

    def backward(self, dy, x, weight, mask):
        """Gradients of input, weight and bias, as selected by `mask`."""
        bias = [weight.shape[1 if self.transposed else 0]]
        return torch.ops.aten.convolution_backward(dy, self.padded(x), weight, bias, *self.geometry, mask)

    def input_gradient(self, dy, x, weight):
        if self.transposed:
            return torch.ops.aten.convolution(dy, weight, None, *self.geometry)
        dx = self.backward(dy, x, weight, [True, False, False])[0]
        if any(self.extra):
            dx = dx.narrow(3 if self.layout == "h1" else 2, self.extra[0], self.case.time)
        return dx

    def runs(self, x, weight, bias, dy):
        """The function to time, by direction."""
        if self.transposed:  # its forward is the strided layer's input gradient
            return {
                "input_gradient": lambda: self.input_gradient(dy, x, weight),
                "forward": lambda: self.backward(x, dy, weight, [True, False, False])[0],
                "weight_gradient": lambda: self.backward(x, dy, weight, [False, True, False])[1],
            }
        return {
            "forward": lambda: self.forward(x, weight, bias),
            "input_gradient": lambda: self.input_gradient(dy, x, weight),
            "weight_gradient": lambda: self.backward(dy, x, weight, [False, True, True])[1:],
        }

    def canonical(self, output):
        lower = lambda t: t if t.dim() == 1 else self.lower(t)
        return [lower(t) for t in output] if isinstance(output, (tuple, list)) else lower(output)


def convolution_peers(case, make):
    """The ways to run the result of make(layout)."""
    layouts = [("conv2d_channels_last", "h1"), ("conv2d_channels_last_w1", "w1")]
    canonical = {layout: Convolution(case, layout).canonical for layout in ("1d", "h1", "w1")}

    def peer(name, layout="1d", **rest):
        return Peer(name, lambda: make(layout), canonical=canonical[layout], **rest)

    default = "bf16" if case.type == "bf16" else "tf32"
    note = "ConvTranspose1d" if case.get("transposed", 0) else ""
    behind = f"{note + '; ' if note else ''}captured"
    found = [peer("eager", arithmetic=default, note=note)]
    if case.type == "fp32":
        exact = Settings(benchmark=True, tf32=False)
        found[0].note += f"{'; ' if note else ''}PyTorch's default, TF32 in convolutions"
        found += [peer("eager_fp32", settings=Settings(tf32=False), note=note),
                  peer("cudnn_benchmark", settings=exact, captured=True, note=behind)]  # fmt: skip
        found += [peer(n, l, settings=exact, captured=True, note=behind) for n, l in layouts]
    else:
        fast = Settings(benchmark=True, tf32=True)
        name = "cudnn_benchmark" if case.type == "bf16" else "cudnn_benchmark_tf32"
        found.append(peer(name, arithmetic=default, settings=fast, captured=True, note=behind))
        found += [peer(n, l, arithmetic=default, settings=fast, captured=True, note=behind) for n, l in layouts]
    return found


def compiled_convolutions(case, make):
    """The compiler has its own convolution kernels. It measures them and cuDNN's."""
    settings = Settings(benchmark=True, tf32=case.type != "fp32")
    return [
        Peer(name, lambda layout=layout: compiled(make(layout)), case.type, settings, captured=True, compiled=True,
             canonical=Convolution(case, layout).canonical)
        for name, layout in (("compile", "1d"), ("compile_channels_last", "h1"))
    ]  # fmt: skip


def float_reference(case, make):
    """The result in float, from the case's own data rounded to its storage type, as for the peers."""
    return lambda: make("1d", torch.float32)()


@op("conv1d")
def conv1d(case):
    def make(layout, dtype=None):
        c = Convolution(case, layout)
        data = c.data(case.storage)
        return c.runs(*[t.to(dtype or case.storage) for t in data])[case.direction]

    found = convolution_peers(case, make) + compiled_convolutions(case, make)
    if case.type == "bf16" and case.direction == "forward" and not case.get("transposed", 0):

        def autocast():
            c = Convolution(case)
            x, weight, bias, _ = c.data(torch.float32)
            x, device = x.to(torch.bfloat16), case.device.type

            def run():
                with torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False):
                    return F.conv1d(c.padded(x), weight, bias, case.stride, c.pad, case.dilation)

            return run

        settings = Settings(benchmark=True, tf32=True)
        found.append(Peer("autocast_bf16", autocast, "bf16", settings, captured=True,
                          note="casts the weight; captured"))  # fmt: skip
    return Peers(found, float_reference(case, make))


@op("snake_conv1d")
def snake_conv1d(case):
    def alpha_for(c, dtype):
        alpha = case.random((1, case.get("in"), 1), low=0.5, high=4.0)
        return c.lift(alpha.to(dtype))

    def make(layout, dtype=None):
        dtype = dtype or case.storage
        c = Convolution(case, layout)
        if c.transposed:
            raise ValueError("Snake before a transposed convolution is not supported as one op")
        x, weight, bias, dy = [t.to(dtype) for t in c.data(case.storage)]
        alpha = alpha_for(c, dtype)
        if case.direction == "forward":
            return lambda: c.forward(snake(x, alpha), weight, bias)
        if case.direction == "weight_gradient":
            u = snake(x, alpha)
            return lambda: c.backward(dy, u, weight, [False, True, True])[1:]
        x.requires_grad_(), alpha.requires_grad_()
        y = c.forward(snake(x, alpha), weight)
        return lambda: torch.autograd.grad(y, (x, alpha), dy, retain_graph=True)

    found = convolution_peers(case, make)
    if case.direction == "weight_gradient":
        for p in found:
            p.note += f"{'; ' if p.note else ''}Snake's result was kept, nacre makes it anew"

    def fused():
        c = Convolution(case)
        x, weight, bias, dy = c.data(case.storage)
        alpha = alpha_for(c, torch.float32)

        def input_gradient(x, alpha, weight, dy):
            return snake_gradient(x, alpha, c.input_gradient(dy, x, weight))

        if case.direction == "forward":
            function = compiled(lambda x, alpha, weight, bias: c.forward(snake_in_float(x, alpha), weight, bias))
            return lambda: function(x, alpha, weight, bias)
        if case.direction == "weight_gradient":
            gradient = lambda x, alpha, dy, w: c.backward(dy, snake_in_float(x, alpha), w, [False, True, True])[1:]
            function = compiled(gradient)
            return lambda: function(x, alpha, dy, weight)
        function = compiled(input_gradient)
        return lambda: function(x, alpha, weight, dy)

    arithmetic = case.type
    settings = Settings(benchmark=True, tf32=case.type != "fp32")
    found.append(Peer("compile", fused, arithmetic, settings, captured=True, compiled=True))
    return Peers(found, float_reference(case, make), SNAKE_TOLERANCE)


# ---- weights and the optimizer


def layers_of(case):
    return [tuple(int(n) for n in layer.split("x")) for layer in case.layers.split(",")]


def directions(case):
    """v, g and dw of every layer."""
    made = []
    for i, (rows, length) in enumerate(layers_of(case)):
        v, g, dw = case.random((rows, length), (rows, 1), (rows, length), low=-1.0 - i * 1e-6)
        made.append((v, g, dw))
    return [list(part) for part in zip(*made)]


def weights(vs, gs, dtype):
    return [torch._weight_norm(v, g, 0).to(dtype) for v, g in zip(vs, gs)]


@op("weight_norm")
def weight_norm(case):
    def make(wrap=lambda f: f):
        vs, gs, dws = directions(case)
        if case.direction == "forward":
            function = wrap(functools.partial(weights, dtype=case.storage))
            return lambda: function(vs, gs)
        given = [t.requires_grad_() for t in vs + gs]
        made = wrap(functools.partial(weights, dtype=torch.float32))(vs, gs)
        return lambda: torch.autograd.grad(made, given, dws, retain_graph=True)

    note = "torch._weight_norm, a layer at a time"
    return Peers([Peer("eager", make, note=note), Peer("eager_captured", make, captured=True, note=note),
                  Peer("compile", lambda: make(compiled), captured=True, compiled=True)])  # fmt: skip


def optimizer(parameters, kind, device):
    how = {"fused": {"fused": True}, "foreach": {"foreach": True}}[kind]
    if device.type == "cuda":
        how["capturable"] = True
    return torch.optim.AdamW(parameters, lr=3e-4, betas=(0.5, 0.9), weight_decay=0.01, **how)


def adamw_peers(make):
    found = []
    for kind in ("fused", "foreach"):
        for captured in (False, True):
            name = f"adamw_{kind}" + ("_captured" if captured else "")
            found.append(Peer(name, functools.partial(make, kind), captured=captured))
    return found


@op("adamw")
def adamw(case):
    def make(kind, clip=False):
        value, grad = case.random((case.elements,), (case.elements,))
        value.requires_grad_().grad = grad
        step, averages = optimizer([value], kind, case.device), models.Averages([value] if case.get("ema") else [])

        def run():
            if clip:
                torch.nn.utils.clip_grad_norm_([value], 1.0)
            step.step()
            averages.update()

        return run

    found = adamw_peers(make)
    for p in found:
        p.note = "no norm of the gradient"
    found.append(Peer("adamw_fused_clip", lambda: make("fused", True), captured=True, note="clip_grad_norm_ before"))
    return Peers(found)


@op("weight_norm_adamw")
def weight_norm_adamw(case):
    def make(kind):
        vs, gs, dws = directions(case)
        given = [t.requires_grad_() for t in vs + gs]
        step, averages = optimizer(given, kind, case.device), models.Averages(given if case.get("ema") else [])
        plain = [(v.detach(), g.detach()) for v, g in zip(vs, gs)]
        norms = [torch._weight_norm_interface(v, g, 0)[1] for v, g in plain]  # of the initial weights, in every run

        def run():
            pairs = [torch.ops.aten._weight_norm_interface_backward(dw, v, g, n, 0)
                     for dw, (v, g), n in zip(dws, plain, norms)]  # fmt: skip
            for parameter, gradient in zip(given, [p[0] for p in pairs] + [p[1] for p in pairs]):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(given, 1.0)
            step.step()
            averages.update()
            with torch.no_grad():
                return weights(vs, gs, case.storage)

        return run

    found = adamw_peers(make)
    for p in found:
        p.note = "gradients of directions and gains, clip, AdamW, new weights"
    return Peers(found)
