#!/usr/bin/env python3
"""Measures JAX (XLA) on the codecs that nacre_bench encodes and decodes with.

  python3 bench/peers/jax_peers.py --cases cases.json --out peers-jax.json [--filter REGEX] [--peers REGEX]
                                   [--seconds S] [--budget SECONDS] [--resume] [--round-trips]

JAX runs in a process of its own, because JAX and PyTorch would share a GPU's memory, and the timing of one does not include
work of the other. PyTorch is needed on the CPU: it makes the weights, and the result that the result of XLA is compared with
before it is timed. The first and the last item are compared, without the end of a crop that a layer's padding reaches.

  xla        float32; products in tf32 where the case has them (JAX's default on a GPU), else in fp32
  xla_bf16   weights and activations in bf16, for cases that need not be exact

Times are taken with the host's clock. Warm: consecutive runs that take 20 ms together, with one wait at the end. Cold: 256 MiB
are written before each run, and each run is waited for, so that its time includes a launch and a wait. On the CPU all runs are
warm.

The file and the exit codes are those of op_peers.py. Without JAX every case is recorded as skipped, and the exit code is 77.
"""
import argparse
import os
import re
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

try:
    import torch
except ImportError as e:
    print(f"jax_peers: PyTorch, which makes the weights, cannot be imported ({e})", file=sys.stderr)
    sys.exit(77)

import models
import op_peers
import ops
import ops_codecs
import timing

MARGIN = 24  # frames; larger than the receptive field of any configuration on either side
CROP = 64


def jax_or_why():
    try:
        import jax

        jax.devices()
        return jax, ""
    except Exception as error:  # missing, without its plug-in, or of another driver
        return None, f"JAX does not serve: {op_peers.one_line(error)[:200]}"


def peers_of(case):
    if case.get("op") != "codec" or case.direction == "step" or case.config not in models.CONFIGS:
        return []
    return [("xla", case.type)] + ([] if case.type == "fp32" else [("xla_bf16", "bf16")])


def reference_of(codec, case, given, item):
    """PyTorch's result for one item, or for its beginning. Returns the number of frames that can be compared, and the
    result."""
    hop = codec.config.hop
    all_frames = given.shape[1] if case.direction == "decode" else given.shape[2] // hop
    frames = min(CROP, all_frames)
    cut = given[item : item + 1, :frames] if case.direction == "decode" else given[item : item + 1, :, : frames * hop]
    with torch.no_grad():
        output = codec.decode(cut) if case.direction == "decode" else codec.encoder(cut)
    kept = frames if frames == all_frames else frames - MARGIN
    return kept, output[:, :, : kept * hop if case.direction == "decode" else kept]


def check(case, codec, arithmetic, output, given):
    """Raises if the result of XLA is not PyTorch's."""
    import numpy as np

    to_torch = lambda a: torch.from_numpy(np.array(a, dtype=np.float32))
    tolerance = max(ops_codecs.TOLERANCE[t] for t in (arithmetic, case.type))
    worst = 0.0
    for item in {0, given.shape[0] - 1}:
        kept, reference = reference_of(codec, case, given, item)
        z = output if case.direction == "decode" else output[0]
        hop = codec.config.hop if case.direction == "decode" else 1
        mine = to_torch(z[item : item + 1, : kept * hop]).transpose(1, 2)
        if not bool(np.isfinite(np.asarray(z[item], dtype=np.float32)).all()):
            raise ValueError("gives values that are not finite")
        if case.direction != "decode":
            codes = torch.from_numpy(np.array(output[1][item : item + 1, :kept])).long()
            farther = ops_codecs.nearness(case, mine, codes)
            if not farther <= ops_codecs.NEAR:
                raise ValueError(f"a code is farther than the nearest by {farther:.3g}")
        if case.direction == "round_trip":  # decodes XLA's own codes: rounding may choose others than PyTorch's
            all_codes = torch.from_numpy(np.array(output[1])).long()
            decoding = ops.Case(case.name, {**case.parameters, "direction": "decode"}, case.device)
            check(decoding, codec, arithmetic, output[2], all_codes)
        size, difference = reference.pow(2).mean().sqrt().item(), mine - reference
        mean, most = difference.pow(2).mean().sqrt().item(), difference.abs().max().item()
        if not (mean <= tolerance * size and most <= 10 * tolerance * size):
            raise ValueError(f"differs from PyTorch by {mean:.3g} in the mean and {most:.3g} at most, where values are about {size:.3g}")
        worst = max(worst, mean / size)
    return worst


def prepared(jax, case, arithmetic):
    """Returns the function to time, PyTorch's codec, and the input of both."""
    import jax_models
    from jax import numpy as jnp

    codec = ops_codecs.codec_of(case, models.Style()).eval().fold()
    given = ops_codecs.given_to(case, torch.float32)
    dtype = jnp.bfloat16 if arithmetic == "bf16" else jnp.float32
    precision = jax.lax.Precision.HIGHEST if arithmetic == "fp32" else jax.lax.Precision.DEFAULT
    mine = jax_models.Codec(codec, dtype, precision)
    x = jnp.asarray(given.numpy(), jnp.int32) if case.direction == "decode" else jnp.asarray(given.numpy().swapaxes(1, 2), dtype)
    function = jax.jit(getattr(mine, case.direction))
    return lambda: function(mine.weights, x), codec, given


def measured(jax, run, seconds):
    wait = jax.block_until_ready

    def once(repeats=1):
        start = time.perf_counter()
        for _ in range(repeats):
            output = run()
        wait(output)
        return (time.perf_counter() - start) / repeats

    once(), once()
    one = min(once() for _ in range(3))
    repeats = max(1, min(100, int(0.02 / max(one, 1e-7))))
    warm = sorted(once(repeats) for _ in range(timing.count(one * repeats, seconds)))
    result = {"warm_us": 1e6 * timing.at(warm, 0.5), "best_us": 1e6 * warm[0], "runs_per_sample": repeats, "warm_samples": len(warm)}
    spread = warm
    if jax.devices()[0].platform != "cpu":
        memory, touch = jax.numpy.zeros(64 << 20), jax.jit(lambda m: m + 1.0)
        cold = []
        for _ in range(timing.count(one, seconds)):
            memory = wait(touch(memory))
            cold.append(once())
        spread = sorted(cold)
        result["cold_us"] = 1e6 * timing.at(spread, 0.5)
    return {**result, "p10_us": 1e6 * timing.at(spread, 0.1), "p90_us": 1e6 * timing.at(spread, 0.9), "runs": len(spread)}


def main(arguments):
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--filter", default="", type=re.compile)
    parser.add_argument("--peers", default=".*", type=re.compile)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--budget", type=float, default=float("inf"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--round-trips", action="store_true")
    o = parser.parse_args(arguments)
    listed = op_peers.read_json(o.cases, "a list of cases")
    if not isinstance(listed, dict) or not isinstance(listed.get("cases"), list):
        raise op_peers.Stop(f'{o.cases}: not a list of cases of nacre_bench --cases: it has no "cases"', 4)
    if o.round_trips:
        listed["cases"] = ops_codecs.with_round_trips(listed["cases"])
    jax, why = jax_or_why()
    context = {"sets": ["jax"]}
    if jax:
        first = jax.devices()[0]
        context = {"jax": jax.__version__, "device": "cpu" if first.platform == "cpu" else first.device_kind, "sets": ["jax"]}
    content, figures = {"context": context, "peers": []}, 0
    if o.resume and jax and os.path.exists(o.out):
        before = op_peers.read_json(o.out, "a file of peers")
        if before.get("context") == context:
            content["peers"] = before.get("peers", [])
    have = {(p.get("name"), p.get("peer")) for p in content["peers"]}
    for entry in listed["cases"]:
        case = ops.Case(entry.get("name", ""), entry.get("parameters", {}), torch.device("cpu"))
        for peer, arithmetic in peers_of(case) if o.filter.search(case.name) else []:
            if not o.peers.fullmatch(peer) or (case.name, peer) in have:
                continue
            if time.monotonic() - begun > o.budget:
                print(f"jax_peers: the budget of {o.budget:g} s is spent; --resume continues")
                op_peers.write(o.out, content)
                return 3
            result = {"name": case.name, "peer": peer, "arithmetic": arithmetic, "note": "host's clock"}
            try:
                if jax is None:
                    raise ops.Skipped(why)
                run, codec, given = prepared(jax, case, arithmetic)
                check(case, codec, arithmetic, run(), given)
                result.update(measured(jax, run, o.seconds))
                figures += 1
                print(f"{case.name}  {peer}  {result.get('cold_us', result['warm_us']):.1f} us", flush=True)
            except ops.Skipped as e:
                result["error"] = f"skipped: {e}"
            except Exception as e:  # the other peers run even if one fails
                result["error"] = op_peers.one_line(e)
            if "error" in result:
                print(f"{case.name}  {peer}  {result['error']}", flush=True)
            content["peers"].append(result)
            op_peers.write(o.out, content)
    op_peers.write(o.out, content)
    if jax is None:
        print(f"jax_peers: {why}", file=sys.stderr)
        return 77
    return 0 if figures or have or not content["peers"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except op_peers.Stop as stop:
        print(f"jax_peers: {stop}", file=sys.stderr)
        sys.exit(stop.code)
