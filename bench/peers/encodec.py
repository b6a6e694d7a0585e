#!/usr/bin/env python3
"""Times EncodecModel of transformers on the CPU: encoding and decoding of a whole clip. The peer of nacre's EnCodec.

The configuration is that of facebook/encodec_24khz, which is EncodecConfig's default; the weights are random, so nothing
is downloaded. Each direction runs as published, with weight norm computed in every call, and `folded`: the norm is
folded into the weights once, as nacre does. Rounds alternate between all cases, and medians are printed, so that other
work on the machine affects all of them. Run by hand (needs torch and transformers); the tests never run it.

  python3 bench/peers/encodec.py [--seconds 10] [--threads 1 2] [--rounds 5] [--bandwidth 6] [--json FILE]
"""
import argparse
import json
import statistics
import time

import torch
import transformers
from torch.nn.utils import parametrize, remove_weight_norm


def made():
    return transformers.EncodecModel(transformers.EncodecConfig()).eval()


def folded(published):
    """The same model without weight norm."""
    model = made()
    model.load_state_dict(published.state_dict())
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        elif hasattr(module, "weight_g"):
            remove_weight_norm(module)
    return model


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=10)
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--bandwidth", type=float, default=6, help="kbit/s: 1.5, 3, 6, 12 or 24")
    p.add_argument("--json", help="also write the figures to this file")
    a = p.parse_args()
    torch.manual_seed(0)
    published = made()
    for layer in published.quantizer.layers:
        layer.codebook.embed.normal_()  # zeros when made
    rate = published.config.sampling_rate
    audio = 0.1 * torch.randn(1, 1, round(a.seconds * rate))
    models = {"published": published, "folded": folded(published)}
    with torch.no_grad():
        codes = {name: m.encode(audio, bandwidth=a.bandwidth) for name, m in models.items()}
        outputs = {name: m.decode(c.audio_codes, c.audio_scales)[0] for (name, m), c in zip(models.items(), codes.values())}
        # The same weights up to rounding. A code may differ where two are equally near, so audio of the same codes is
        # compared.
        again = models["folded"].decode(codes["published"].audio_codes, codes["published"].audio_scales)[0]
        worst = (again - outputs["published"]).abs().max() / outputs["published"].abs().max()
        if not worst < 1e-4:
            raise SystemExit(f"the folded model decodes differently: {worst:.3g} of the largest sample")

        def run(name, direction):
            model, given = models[name], codes[name]
            start = time.perf_counter()
            if direction == "encode":
                model.encode(audio, bandwidth=a.bandwidth)
            else:
                model.decode(given.audio_codes, given.audio_scales)
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
    if a.json:
        with open(a.json, "w") as f:
            json.dump(found, f, indent=1)


if __name__ == "__main__":
    main()
