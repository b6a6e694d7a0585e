#!/usr/bin/env python3
"""Times EncodecModel of transformers on the CPU: encoding and decoding of a whole clip, or, with --push, of a signal
that arrives piece by piece. The peer of nacre's EnCodec.

The configuration is that of facebook/encodec_24khz, which is EncodecConfig's default, or with --layout encodec_48khz that
of facebook/encodec_48khz; the weights are random, so nothing is downloaded. Each direction runs as published, with weight
norm computed in every call, and `folded`: the norm is folded into the weights once, as nacre does. The 48 kHz model has no
weight norm and runs as published alone. It codes a clip in segments of one second that begin every 0.99 s: --seconds 0.99
is one segment. Rounds alternate between all cases, and medians are printed, so that other
work on the machine affects all of them.

EncodecModel keeps no state from call to call. So with --push each new piece is coded together with a context: the last
--context seconds before it, from the first sample of a frame on, of which only the frames that the piece completes are
new. The convolutions of a direction reach back about 0.1 s. What the LSTM has seen before that is lost, so the result
differs from that of the whole signal. The folded model alone is timed.

Run by hand (needs torch and transformers); the tests never run it.

  python3 bench/peers/encodec.py [--seconds 10] [--threads 1 2] [--rounds 5] [--bandwidth 6] [--json FILE]
  python3 bench/peers/encodec.py --layout encodec_48khz --seconds 0.99
  python3 bench/peers/encodec.py --push 0.02 --context 0.1 1 --threads 1
"""
import argparse
import json
import math
import statistics
import time

import torch
import transformers
from torch.nn.utils import parametrize, remove_weight_norm


LAYOUTS = {
    "encodec_24khz": {},
    "encodec_48khz": dict(audio_channels=2, sampling_rate=48000, target_bandwidths=[3.0, 6.0, 12.0, 24.0],
                          norm_type="time_group_norm", use_causal_conv=False, normalize=True, chunk_length_s=1.0,
                          overlap=0.01),
}


def made(layout):
    return transformers.EncodecModel(transformers.EncodecConfig(**LAYOUTS[layout])).eval()


def folded(published, layout):
    """The same model without weight norm."""
    model = made(layout)
    model.load_state_dict(published.state_dict())
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        elif hasattr(module, "weight_g"):
            remove_weight_norm(module)
    return model


def check_folded(models, codes):
    """Both have the same weights up to rounding. A code may differ where two are equally near, so audio of the same codes
    is compared."""
    if "folded" not in models:
        return
    published, again = (models[name].decode(codes.audio_codes, codes.audio_scales)[0] for name in ("published", "folded"))
    worst = (again - published).abs().max() / published.abs().max()
    if not worst < 1e-4:
        raise SystemExit(f"the folded model decodes differently: {worst:.3g} of the largest sample")


def write(path, found):
    if path:
        with open(path, "w") as f:
            json.dump(found, f, indent=1)


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def streaming(model, a):
    """Times of every push, by direction, context and threads. Rounds alternate between all cases."""
    rate = model.config.sampling_rate
    hop = math.prod(model.config.upsampling_ratios)
    push, total = round(a.push * rate), round(a.seconds * rate)
    audio = 0.1 * torch.randn(1, 1, total)
    cases = [(d, c, t) for d in ("encode", "decode") for c in a.context for t in a.threads]
    times = {case: [] for case in cases}
    with torch.no_grad():
        whole = model.encode(audio, bandwidth=a.bandwidth)
        codes = whole.audio_codes
        for round_ in range(a.rounds + 1):
            for direction, context, threads in cases:
                torch.set_num_threads(threads)
                reach = -(-round(context * rate) // hop)  # frames of context
                for end in range(reach * hop + push, total, push):
                    done, now = (end - push) // hop, end // hop  # frames before and after this push
                    first = done - reach
                    if direction == "encode":
                        taken = timed(lambda: model.encode(audio[:, :, first * hop:end], bandwidth=a.bandwidth))
                    else:
                        taken = timed(lambda: model.decode(codes[..., first:now], whole.audio_scales))
                    if round_ > 0:  # the first round warms up
                        times[direction, context, threads].append(taken)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, pushes of {1e3 * a.push:g} ms, "
          f"{a.bandwidth:g} kbit/s, {a.rounds} rounds of {a.seconds:g} s")
    found = []
    for (direction, context, threads), taken in times.items():
        taken.sort()
        mean, median, p99 = statistics.fmean(taken), statistics.median(taken), taken[round(0.99 * (len(taken) - 1))]
        found.append({"direction": direction, "context": context, "threads": threads, "pushes": len(taken),
                      "median": median, "p99": p99, "times_real_time": a.push / mean})
        print(f"{direction}  {context:g} s of context  {threads} thread{'s' if threads > 1 else ' '}  {len(taken)} pushes  "
              f"median {1e3 * median:7.2f} ms  p99 {1e3 * p99:7.2f} ms  {a.push / mean:6.2f} x real time")
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--layout", choices=LAYOUTS, default="encodec_24khz")
    p.add_argument("--seconds", type=float, default=10)
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--bandwidth", type=float, default=6, help="kbit/s: 1.5 (24 kHz), 3, 6, 12 or 24")
    p.add_argument("--push", type=float, help="seconds of each piece of a signal that arrives")
    p.add_argument("--context", type=float, nargs="+", default=[0.1, 1], help="seconds before a piece, with --push")
    p.add_argument("--json", help="also write the figures to this file")
    a = p.parse_args()
    torch.manual_seed(0)
    if a.push and a.layout != "encodec_24khz":
        p.error("--push needs a causal model: --layout encodec_24khz")
    published = made(a.layout)
    for layer in published.quantizer.layers:
        layer.codebook.embed.normal_()  # zeros when made
    if a.push:
        write(a.json, streaming(folded(published, a.layout), a))
        return
    rate = published.config.sampling_rate
    audio = 0.1 * torch.randn(1, published.config.audio_channels, round(a.seconds * rate))
    models = {"published": published}
    if published.config.norm_type == "weight_norm":
        models["folded"] = folded(published, a.layout)
    with torch.no_grad():
        codes = {name: m.encode(audio, bandwidth=a.bandwidth) for name, m in models.items()}
        check_folded(models, codes["published"])

        def run(name, direction):
            model, given = models[name], codes[name]
            start = time.perf_counter()
            if direction == "encode":
                model.encode(audio, bandwidth=a.bandwidth)
            else:
                model.decode(given.audio_codes, given.audio_scales, last_frame_pad_length=given.last_frame_pad_length)
            return time.perf_counter() - start

        cases = [(d, n, t) for d in ("encode", "decode") for n in models for t in a.threads]
        times = {case: [] for case in cases}
        for round_ in range(a.rounds + 1):
            for direction, name, threads in cases:
                torch.set_num_threads(threads)
                taken = run(name, direction)
                if round_ > 0:  # the first round warms up
                    times[direction, name, threads].append(taken)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {a.seconds:g} s of audio, "
          f"{a.bandwidth:g} kbit/s, medians of {a.rounds} rounds")
    found = []
    for (direction, name, threads), taken in times.items():
        median = statistics.median(taken)
        found.append({"direction": direction, "model": name, "threads": threads, "seconds": median,
                      "times_real_time": a.seconds / median})
        print(f"{direction}  {name:9}  {threads} thread{'s' if threads > 1 else ' '}  {1e3 * median:8.1f} ms  "
              f"{a.seconds / median:6.1f} x real time")
    write(a.json, found)


if __name__ == "__main__":
    main()
