"""The two fastest ways to run a whole codec's inference in PyTorch: constant weights, and cuDNN's own epilogues.

frozen   torch.compile with weights as constants of the graph, so that the compiler folds and reorders them once. It
         makes no CUDA graphs: timing.py captures the runs
fuse     convolutions that end in Snake or in a residual sum become single cuDNN graphs of convolution, bias, sum and
         Snake. cuDNN's runtime fusion makes one kernel of each. On the CPU the same op is plain PyTorch, which tests
         how the layers are put together, but not cuDNN
"""
import functools

import torch
import torch.nn.functional as F
from torch import nn

import models

EPSILON = 1e-9


def frozen(function, *example):
    """Compiles `function`, usually the call of a module, for inference. The first call compiles; it is made here."""
    mode = "max-autotune-no-cudagraphs" if torch.cuda.is_available() else "default"
    result = torch.compile(function, mode=mode, dynamic=False)
    # Tracing reads the option as well. The options of a single compilation do not apply there.
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        result(*example)
    return result


# ---- cuDNN's graphs


@functools.cache
def cudnn():
    """The module of cudnn-frontend and a handle, or the reason why there is none."""
    try:
        import cudnn as module

        return module, module.create_handle()
    except Exception as error:  # a missing or broken package raises anything
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]


def can_fuse(device):
    """None if cuDNN can be used, otherwise the reason why not."""
    if device.type != "cuda":
        return None
    module, handle = cudnn()
    return None if module else f"the package cudnn (nvidia-cudnn-frontend) does not serve: {handle}"


def describe(module, handle, x, weight, output, padding, dilation, with_residual, with_snake):
    """The graph of one call, and its tensors: x, weight, bias[, residual][, alpha, inverse], y."""
    kind = {torch.float32: module.data_type.FLOAT, torch.bfloat16: module.data_type.BFLOAT16, torch.float16: module.data_type.HALF}
    more = {} if handle is None else {"handle": handle}
    graph = module.pygraph(io_data_type=kind[x.dtype], intermediate_data_type=module.data_type.FLOAT,
                           compute_data_type=module.data_type.FLOAT, **more)  # fmt: skip

    def tensor(name, like):
        return graph.tensor(name=name, dim=list(like.shape), stride=list(like.stride()), data_type=kind[like.dtype])

    channels = weight.shape[0]

    def per_channel(name):
        return graph.tensor(name=name, dim=[1, channels, 1, 1], stride=[channels, 1, channels, channels], data_type=module.data_type.FLOAT)

    tensors = [tensor("x", x), tensor("weight", weight), per_channel("bias")]
    y = graph.conv_fprop(image=tensors[0], weight=tensors[1], padding=[0, padding], stride=[1, 1], dilation=[1, dilation],
                         compute_data_type=module.data_type.FLOAT)  # fmt: skip
    y = graph.add(a=y, b=tensors[2])
    if with_residual:
        tensors.append(tensor("residual", output))
        y = graph.add(a=y, b=tensors[-1])
    if with_snake:
        tensors += [per_channel("alpha"), per_channel("inverse")]
        sine = graph.sin(input=graph.mul(a=y, b=tensors[-2]))
        y = graph.add(a=y, b=graph.mul(a=graph.mul(a=sine, b=sine), b=tensors[-1]))
    y.set_output(True).set_dim(list(output.shape)).set_stride(list(output.stride())).set_data_type(kind[output.dtype])
    graph.validate()
    return graph, tensors + [y]


class Plan:
    """The graph of one shape, run by the fastest of cuDNN's plans that work."""

    most = 12

    def __init__(self, given, padding, dilation, with_residual, with_snake):
        self.module, self.handle = cudnn()
        x, weight, output = given[0], given[1], given[-1]
        self.graph, self.tensors = describe(self.module, self.handle, x, weight, output, padding, dilation, with_residual, with_snake)
        self.graph.build_operation_graph()
        self.graph.create_execution_plans([self.module.heur_mode.A, self.module.heur_mode.FALLBACK])
        self.graph.check_support()
        self.graph.build_plans(self.module.build_plan_policy.ALL)
        pack, best = dict(zip(self.tensors, given)), None
        for index in range(min(self.most, self.graph.get_execution_plan_count())):
            try:
                workspace = self.space(self.graph.get_workspace_size_plan_at_index(index), x.device)
                took = self.time(lambda: self.graph.execute_plan_at_index(pack, workspace, index, handle=self.handle))
            except Exception:  # cuDNN proposed the plan, but it does not run
                continue
            if best is None or took < best[0]:
                best = took, index, workspace
        if best is None:
            raise RuntimeError("cuDNN has no plan for a convolution with this epilogue")
        _, self.index, self.workspace = best

    @staticmethod
    def space(size, device):
        return torch.empty(max(1, size), dtype=torch.uint8, device=device)

    def time(self, run):
        self.module.set_stream(handle=self.handle, stream=torch.cuda.current_stream().cuda_stream)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        run()
        start.record()
        for _ in range(3):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def __call__(self, given):
        self.module.set_stream(handle=self.handle, stream=torch.cuda.current_stream().cuda_stream)
        self.graph.execute_plan_at_index(dict(zip(self.tensors, given)), self.workspace, self.index, handle=self.handle)


PLANS = {}


def like(x, weight):
    """An empty result of the length of x, channels last."""
    shape = (x.shape[0], weight.shape[0], 1, x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("nacre_peers::convolution", mutates_args=())
def convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None,
                alpha: torch.Tensor | None, inverse: torch.Tensor | None, padding: int, dilation: int) -> torch.Tensor:  # fmt: skip
    """x, weight and residual are channels last; bias, alpha and inverse are [channels] in float."""
    if x.device.type != "cuda":
        y = F.conv2d(x, weight, None, 1, (0, padding), (1, dilation)).float() + bias[:, None, None]
        if residual is not None:
            y = y + residual
        if alpha is not None:
            y = y + torch.sin(y * alpha[:, None, None]) ** 2 * inverse[:, None, None]
        return y.to(x.dtype).contiguous(memory_format=torch.channels_last)
    last = lambda t: t.contiguous(memory_format=torch.channels_last)
    given = [last(x), last(weight), bias]
    given += [] if residual is None else [last(residual)]
    given += [] if alpha is None else [alpha, inverse]
    given.append(like(x, weight))
    key = (x.device, x.dtype, tuple(x.shape), tuple(weight.shape), padding, dilation, residual is not None, alpha is not None)
    if key not in PLANS:
        PLANS[key] = Plan(given, padding, dilation, residual is not None, alpha is not None)
    PLANS[key](given)
    return given[-1]


@convolution.register_fake
def _(x, weight, bias, residual, alpha, inverse, padding, dilation):
    return like(x, weight)


# ---- the layers


class Fused(nn.Module):
    """A convolution of stride 1, an optional residual that is added, and the Snake behind it."""

    def __init__(self, conv, snake=None):
        super().__init__()
        self.register_buffer("weight", conv.weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", conv.bias.detach().float())
        alpha = None if snake is None else snake.alpha.detach().float().reshape(-1)
        self.register_buffer("alpha", alpha)
        self.register_buffer("inverse", None if alpha is None else (alpha + EPSILON).reciprocal())
        self.padding, self.dilation = conv.padding[1], conv.dilation[1]

    def forward(self, x, residual=None):
        return convolution(x, self.weight, self.bias, residual, self.alpha, self.inverse, self.padding, self.dilation)


class FusedUnit(nn.Module):
    """A residual unit. The Snake behind it is included if nothing else reads the unit's result."""

    def __init__(self, unit, behind=None):
        super().__init__()
        snake, wide, inner, narrow = unit.block
        self.snake, self.wide, self.narrow = snake, Fused(wide, inner), Fused(narrow, behind)

    def forward(self, x):
        return self.narrow(self.wide(self.snake(x)), x)


def fuse(layers):
    """Replaces layers of a two-dimensional encoder or decoder, which is folded and has its final type, by fused
    ones."""
    made, at = [], 0
    while at < len(layers):
        layer, behind = layers[at], layers[at + 1] if at + 1 < len(layers) else None
        snake = behind if isinstance(behind, models.Snake) else None
        one = isinstance(layer, nn.Conv2d) and layer.stride == (1, 1) and min(layer.weight.shape[:2]) >= 8
        if isinstance(layer, models.Unit):
            made.append(FusedUnit(layer, snake))
        elif one and snake is not None:
            made.append(Fused(layer, snake))
        else:
            made.append(layer)
            snake = None
        at += 1 if snake is None else 2
    return nn.Sequential(*made)
