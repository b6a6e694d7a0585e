#!/usr/bin/env python3
"""Runs the peers of codecs and codes on small shapes and compares each with plain PyTorch on the same weights.

  TRITON_INTERPRET=1 python3 bench/peers/check.py [--device cpu|cuda] [--filter REGEX] [--peers REGEX] [--small]

Nothing is timed. On the CPU there are no graphs, cuDNN's epilogues are plain PyTorch (their graphs are built and validated, but
not run, if the package cudnn is installed), and Triton runs in its interpreter if TRITON_INTERPRET=1 is set. JAX is checked if
it is installed. Faults are planted as well, and each must be found. --small is the only size and may be omitted. The check
takes minutes, because every compiled peer is compiled.

Exit codes: 0 all peers that ran agree, 1 a peer differs, or a planted fault was not found, 2 usage, 77 no PyTorch.
"""
import argparse
import dataclasses
import re
import sys

try:
    import torch
except ImportError as e:
    print(f"check: PyTorch cannot be imported ({e})", file=sys.stderr)
    sys.exit(77)

import fused
import models
import op_peers
import ops

SMALL = models.Config(encoder_dim=16, decoder_dim=64, encoder_rates=(2, 3), dilations=(1, 9), latent_dim=32, n_codebooks=3, codebook_size=40)
SIZES = {"small-factorised": SMALL, "small-latent": dataclasses.replace(SMALL, quantizer="ema")}


def cases(device):
    def case(**parameters):
        words = [str(v) for v in parameters.values()]
        return ops.Case("/".join(words), parameters, torch.device(device))

    found = []
    for config in SIZES:
        for direction in ("encode", "decode") if config.endswith("latent") else ("encode", "decode", "round_trip"):
            for kind in ("tf32", "fp32") if direction == "decode" else ("tf32",):
                found.append(case(op="codec", direction=direction, type=kind, config=config, batch=2, samples=6 * 60))
    for rows, codes, dim in ((70, 40, 8), (300, 100, 64), (130, 33, 20)):
        for op, direction in (("vq_nearest", "forward"), ("vq_ema", "step"), ("vq_kmeans", "step")):
            found.append(case(op=op, direction=direction, type="fp32", rows=rows, codes=codes, dim=dim))
    return found


def difference(peer, output, reference):
    """Root mean square of the difference over that of the reference. Returns the worst of all results."""
    worst = 0.0
    for a, b in zip(op_peers.tensors_of(peer.canonical(output)), reference):
        worst = max(worst, ((a.float() - b.float()).pow(2).mean().sqrt() / b.float().pow(2).mean().sqrt()).item())
    return worst


def outcome(peer, found, reference, kind):
    try:
        if peer.compiled:
            torch._dynamo.reset()
        with peer.settings.applied():
            output = peer.make()()
            op_peers.check(peer, output, reference, max(found.tolerance[t] for t in (peer.arithmetic, kind)), found.mean)
            return "ok", f"{difference(peer, output, reference):.2e}"
    except ops.Skipped as e:
        return "not run", str(e)
    except Exception as e:
        return "FAILED", op_peers.one_line(e)


def reference_of(found):
    with ops.Settings(tf32=False).applied():
        return [t.detach() for t in op_peers.tensors_of(found.reference())]


# ---- planted faults: what they change, and the peers that must then fail


def broken_snake(layer, behind=None):
    made = fused.FusedUnit(layer, behind)
    made.wide.alpha.mul_(0.5)
    return made


def broken_dilation(layer, behind=None):
    made = fused.FusedUnit(layer, behind)
    made.wide.padding, made.wide.dilation = 3, 1  # the result keeps its length
    return made


def broken_residual(layer, behind=None):
    made = fused.FusedUnit(layer, behind)
    made.forward = lambda x: made.narrow(made.wide(made.snake(x)))
    return made


def planted(device):
    """Names of the faults that no peer noticed."""
    case = next(c for c in cases(device) if c.op == "codec" and c.direction == "decode")
    reference = reference_of(ops.peers_of(case))
    whole, missed = fused.fuse, []
    for plant in (broken_snake, broken_dilation, broken_residual):

        def fuse(layers):  # changes the last unit only
            made = whole(layers)
            units = [i for i, layer in enumerate(layers) if isinstance(layer, models.Unit)]
            behind = layers[units[-1] + 1]
            at = max(i for i, layer in enumerate(made) if isinstance(layer, fused.FusedUnit))
            made[at] = plant(layers[units[-1]], behind)
            return made

        fused.fuse = fuse
        found = ops.peers_of(case)
        for peer in found.peers:
            if peer.name.startswith("epilogues"):
                result, why = outcome(peer, found, reference, case.type)
                print(f"{'planted ' + plant.__name__:48} {peer.name:26} {'found' if result == 'FAILED' else result:8} {why}")
                missed += [] if result == "FAILED" else [plant.__name__]
        fused.fuse = whole
    return missed


# ---- properties that no result shows


def constants(device):
    """Frozen weights are read once, and a second run compiles nothing."""
    layer, x = torch.nn.Conv2d(8, 8, (1, 3)).to(device), torch.rand(1, 8, 1, 20, device=device)
    function = fused.frozen(layer, x)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        before = function(x)
        layer.weight.zero_()
        if not torch.equal(function(x), before):
            return "FAILED", "a weight that changed later changed the result"
    return "ok", ""


def tuned(_):
    """Compiled peers measure the compiler's own convolution kernels as well as cuDNN's."""
    from torch._inductor import config, list_mode_options

    modes = [list_mode_options(mode).get("max_autotune") for mode in ("max-autotune", "max-autotune-no-cudagraphs")]
    return ("ok", "") if all(modes) and "TRITON" in config.max_autotune_conv_backends else ("FAILED", "no Triton convolutions")


def graphs(_):
    """cuDNN's front end accepts every kind of graph, and refuses one whose result has another length."""
    try:
        import cudnn
        from cudnn import _compiled_module as bindings
    except Exception as e:
        return "not run", op_peers.one_line(e)
    kind = getattr(bindings, "backend_graph", None) or getattr(bindings, "pygraph", None)
    if kind is None:
        return "not run", "this version has no bindings that need no GPU"
    module = type("module", (), {"data_type": cudnn.data_type, "pygraph": kind})
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x, weight = torch.empty(2, 64, 1, 500, dtype=dtype), torch.empty(64, 64, 1, 7, dtype=dtype)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        for residual, snake in ((0, 0), (0, 1), (1, 0), (1, 1)):
            _, tensors = fused.describe(module, None, x, weight, fused.like(x, weight), 9, 3, residual, snake)
            if len(tensors) != 4 + residual + 2 * snake:
                return "FAILED", f"{len(tensors)} tensors"
    try:
        fused.describe(module, None, x, weight, fused.like(x, weight), 9, 2, True, True)
        return "FAILED", "a result of another length was taken"
    except Exception:
        return "ok", ""


def of_jax(wanted, peers):
    import jax_peers

    jax, why = jax_peers.jax_or_why()
    if jax is None:
        yield "jax", "xla", "not run", why
        return
    for case in cases("cpu"):
        for peer, arithmetic in jax_peers.peers_of(case):
            if not re.search(wanted, case.name) or not re.fullmatch(peers, peer):
                continue
            try:
                run, codec, given = jax_peers.prepared(jax, case, arithmetic)
                yield case.name, peer, "ok", f"{jax_peers.check(case, codec, arithmetic, run(), given):.2e}"
            except Exception as e:
                yield case.name, peer, "FAILED", op_peers.one_line(e)


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--filter", default="")
    parser.add_argument("--peers", default=".*")
    parser.add_argument("--small", action="store_true")
    o = parser.parse_args(arguments)
    models.CONFIGS.update(SIZES)
    counts = {"ok": 0, "not run": 0, "FAILED": 0}
    for case in cases(o.device):
        if not re.search(o.filter, case.name):
            continue
        found = ops.peers_of(case)
        reference = reference_of(found)
        for peer in found.peers:
            if not re.fullmatch(o.peers, peer.name):
                continue
            result, why = outcome(peer, found, reference, case.type)
            counts[result] += 1
            print(f"{case.name:48} {peer.name:26} {result:8} {why}", flush=True)
    rows = [(check.__name__, "", *check(o.device)) for check in (constants, tuned, graphs)] if not o.filter else []
    for name, peer, result, why in [*rows, *of_jax(o.filter, o.peers)]:
        counts[result] += 1
        print(f"{name:48} {peer:26} {result:8} {why}", flush=True)
    missed = planted(o.device)
    print(f"{counts['ok']} agree, {counts['FAILED']} do not, {counts['not run']} were not run; planted faults missed: {' '.join(missed) or 'none'}")
    return 1 if counts["FAILED"] or missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
