"""Peers of whole codecs that encode or decode. All have the same weights, and each is compared with plain PyTorch.

  eager                     plain PyTorch
  cudnn_benchmark_captured, compile, bf16_captured, each also _two_d: as ops.py and ops_models.py say
  frozen_two_d[_bf16|_fp16] two-dimensional, channels last, weights constant, all compiled as one function
  epilogues_two_d[_bf16|..] the same, with cuDNN's graphs of convolution, bias, residual sum and Snake (fused.py)

A round trip is an encoding and a decoding. Its time is the sum of two cases, as in nacre. As one function it is a case
of the peers only (direction `round_trip`), which --round-trips of op_peers.py and jax_peers.py adds.
"""
import functools

import torch

import fused
import models
from ops import Peer, Peers, Skipped, compiled
from timing import Settings

# Limits of the root mean square of the difference over that of the result. A rounding is an error of u / sqrt(3),
# where u is 2^-9 in bf16, 2^-12 in fp16 (storage) and 2^-11 in tf32 (both factors). A stack of about 60 layers has 150
# consecutive roundings. Snake multiplies each by its slope, at most 2; residual sums carry the rest unchanged.
# Together: sqrt(150) 2 u / sqrt(3).
TOLERANCE = {"bf16": 28e-3, "tf32": 7e-3, "fp16": 7e-3, "fp32": 1e-4}
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
NEAR = 1e-4  # of squared distances between unit vectors, otherwise of 1 + the squared distance


def codec_of(case, style):
    """The same weights in every style. Gains, biases and Snake's parameters are random, too, so that an exchange is
    noticed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        codec = models.Codec(models.CONFIGS[case.config], style)
        with torch.no_grad():
            for name, parameter in codec.named_parameters():
                if name.endswith("alpha"):
                    parameter.uniform_(0.5, 2.0)
                elif name.endswith("bias"):
                    parameter.uniform_(-0.05, 0.05)
        if isinstance(codec.quantizer, models.EmaQuantizer):
            codec.quantizer.start_anywhere()
    return codec.to(case.device)


class Inference(torch.nn.Module):
    """One direction of a folded codec: audio to (latent, codes), codes to audio, or audio to audio."""

    def __init__(self, codec, direction, dtype):
        super().__init__()
        self.encoder, self.decoder, self.quantizer = codec.encoder, codec.decoder, codec.quantizer
        self.direction, self.dtype = direction, dtype

    def encode(self, x):
        z = self.encoder(x).float()
        return z, self.quantizer.encode(z)

    def decode(self, codes):
        return self.decoder(self.quantizer.decode(codes).to(self.dtype))

    def forward(self, given):
        if self.direction == "round_trip":
            z, codes = self.encode(given)
            return z, codes, self.decode(codes)
        return self.encode(given) if self.direction == "encode" else self.decode(given)


def given_to(case, dtype):
    """The input: audio or codes."""
    config = models.CONFIGS[case.config]
    frames = -(-case.samples // config.hop)  # whole frames; only --small has less
    if case.direction != "decode":
        return case.random((case.batch, 1, frames * config.hop), dtype=dtype)
    draw = torch.Generator(case.device).manual_seed(1)
    shape = (case.batch, frames, config.n_codebooks)
    return torch.randint(config.codebook_size, shape, generator=draw, device=case.device)


def with_round_trips(listed):
    """A list of cases, each encoding followed by its round trip."""
    made = []
    for entry in listed:
        made.append(entry)
        parameters = entry.get("parameters", {})
        if parameters.get("op") == "codec" and parameters.get("direction") == "encode":
            name = entry["name"].replace("codec_encode", "codec_round_trip", 1)
            made.append({"name": name, "parameters": {**parameters, "direction": "round_trip"}})
    return made


def inference_maker(case, style, dtype=torch.float32, wrap=None, freeze=False, epilogues=False):
    def make():
        if epilogues and fused.can_fuse(case.device):
            raise Skipped(fused.can_fuse(case.device))
        codec = codec_of(case, style).eval().fold()
        codec.encoder.to(dtype), codec.decoder.to(dtype)
        if epilogues:
            fused.PLANS.clear()  # plans of another case hold memory
            codec.encoder, codec.decoder = fused.fuse(codec.encoder), fused.fuse(codec.decoder)
        if wrap is not None:
            codec.encoder, codec.decoder = wrap(codec.encoder), wrap(codec.decoder)
        given = given_to(case, dtype)
        function = Inference(codec, case.direction, dtype).eval()
        if freeze:
            function = fused.frozen(function, given)

        def run():
            with torch.no_grad():
                return function(given)

        return run

    return make


def nearness(case, z, codes):
    """The largest excess of a code's distance over that of the nearest code of its stage. The residual of every stage
    is that of the given earlier codes, so a decision by rounding in one stage does not count again in later stages."""
    quantizer = codec_of(case, models.Style()).eval().fold().quantizer
    worst, r = 0.0, z.float()
    for s in range(codes.shape[2]):
        chosen = codes[:, :, s].long()
        if isinstance(quantizer, models.EmaQuantizer):
            book, rows = quantizer.embed[s], r.transpose(1, 2)
        else:
            book = torch.nn.functional.normalize(quantizer.books[s].weight)
            rows = torch.nn.functional.normalize(quantizer.into[s](r).transpose(1, 2), dim=-1)
        for a, c in zip(rows, chosen):
            distances = torch.cdist(a.double(), book.double()) ** 2
            mine = distances.gather(1, c[:, None])[:, 0]
            worst = max(worst, ((mine - distances.amin(1)) / (1 + distances.amin(1))).max().item())
        if isinstance(quantizer, models.EmaQuantizer):
            r = r - book[chosen].transpose(1, 2)
        else:
            r = r - quantizer.out[s](quantizer.books[s](chosen).transpose(1, 2))
    return worst


def comparable(case, arithmetic, output):
    """Compares the results that the reference has. Codes are checked by their distances, since rounding may choose
    another one."""
    if case.direction == "decode":
        return output
    near = NEAR if arithmetic in ("fp32", "fp16", "bf16") else 20 * NEAR  # the search itself is in tf32
    with torch.no_grad():
        worst = nearness(case, output[0], output[1])
    if not worst <= near:
        raise ValueError(f"a code is farther than the nearest by {worst:.3g}")
    return output[0]


def inference_peers(case):
    one_d, two_d = models.Style(), models.Style(two_d=True)
    exact = case.type == "fp32"
    arithmetic = "fp32" if exact else "tf32"
    chosen = Settings(benchmark=True, tf32=not exact)
    found = []

    def add(name, make, settings=chosen, arithmetic=arithmetic, **rest):
        canonical = functools.partial(comparable, case, arithmetic)
        found.append(Peer(name, make, arithmetic, settings, canonical=canonical, **rest))

    reduced = "16-bit storage, which nacre's inference does not have"
    for name, style in (("", one_d), ("_two_d", two_d)):
        make = functools.partial(inference_maker, case, style)
        if not name:
            add("eager", make(), Settings(tf32=not exact))
        add("cudnn_benchmark" + name + "_captured", make(), captured=True)
        add("compile" + name, make(wrap=compiled), captured=True, compiled=True)
        if not exact:
            add("bf16" + name + "_captured", make(torch.bfloat16), arithmetic="bf16", captured=True, note=reduced)
    types = [(arithmetic, "")] if exact else [(arithmetic, ""), ("bf16", reduced), ("fp16", reduced)]
    for epilogues, name in ((False, "frozen_two_d"), (True, "epilogues_two_d")):
        if exact and epilogues:
            continue  # runtime fusion needs tensor cores
        for kind, note in types:
            make = inference_maker(case, two_d, TYPES[kind], freeze=True, epilogues=epilogues)
            add(name + ("" if kind == arithmetic else "_" + kind), make, arithmetic=kind, note=note, captured=True, compiled=True)

    def reference():
        output = inference_maker(case, one_d)()()
        return output if case.direction == "decode" else output[0]

    return Peers(found, reference, TOLERANCE, mean=True)
