"""Peers of the larger cases: nearest code, residual quantizer, transforms and spectral losses, whole codecs.

Importing this module registers them in ops.REGISTRY. ops.py explains the names of peers. In addition:

  cdist            torch.cdist and argmin; rows are split so that the distances fit in a gigabyte
  addmm[_tf32]     |c|^2 - 2 x c by addmm, then argmin; rows are split likewise
  apart            the losses as codec recipes write them: a transform per term and signal
  torchaudio       the same with torchaudio's mel spectrograms, if it is installed
  *_two_d          every convolution as a two-dimensional one, channels last
  *_keep_type      under autocast Snake stays in 16 bits; as published, its float alpha makes all later activations
                   float
"""
import dataclasses
import functools
import math

import torch
import torch.nn.functional as F

import models
import ops_codecs
import ops_codes
from ops import Peer, Peers, compiled, op, simple
from timing import Settings

FAST = Settings(benchmark=True, tf32=True)
DISTANCES = 1 << 28  # floats at a time

# ---- codes


def in_pieces(search, x, codes):
    rows = max(1, DISTANCES // codes)
    return torch.cat([search(x[i : i + rows]) for i in range(0, x.shape[0], rows)])


@op("vq_nearest")
def vq_nearest(case):
    def data():
        return case.random((case.rows, case.dim), (case.codes, case.dim))

    def by_cdist():
        x, book = data()
        return lambda: in_pieces(lambda part: torch.cdist(part, book).argmin(1), x, case.codes)

    def scores(part, book, half):
        return torch.addmm(half, part, book.t(), alpha=-1.0).argmin(1)

    def by_addmm(wrap=lambda f: f):
        (x, book), search = data(), wrap(scores)
        half = 0.5 * (book * book).sum(1)
        return lambda: in_pieces(lambda part: search(part, book, half), x, case.codes)

    # Ties and rounding may select another code, so `distance` compares how near the codes are.
    def distance(codes):
        x, book = data()
        return ((x - book[codes]) ** 2).sum(1)

    def reference():
        x, book = data()
        return torch.cat([torch.cdist(p.double(), book.double()).amin(1) ** 2 for p in x.split(1 << 14)]).float()

    exact = Settings(tf32=False)
    found = [
        Peer("eager", by_addmm, settings=exact, canonical=distance, note="addmm and argmin"),
        Peer("cdist", by_cdist, settings=exact, canonical=distance),
        Peer("addmm_captured", by_addmm, settings=exact, captured=True, canonical=distance),
        Peer("addmm_tf32_captured", by_addmm, "tf32", FAST, captured=True, canonical=distance,
             note="codes are not exact"),
        Peer("compile", lambda: by_addmm(compiled), settings=exact, captured=True, compiled=True, canonical=distance),
    ]  # fmt: skip
    return Peers(found + ops_codes.nearest_peers(case, data, distance), reference)


@op("rvq")
def rvq(case):
    if int(case.get("beam", 1)) > 1:
        return Peers([])  # the peers take nearest codes: less work for worse codes
    def quantizer():
        if case.dim:
            q = models.FactorisedQuantizer(case.stages, case.codes, case.dim, case.channels)
        else:
            q = models.EmaQuantizer(case.stages, case.codes, case.channels)
            q.start_anywhere()
        for module in q.modules():  # nacre's op takes weights, not directions and gains
            if torch.nn.utils.parametrize.is_parametrized(module):
                torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
        return q.to(case.device)

    def make(wrap=lambda f: f):
        q = quantizer().eval()  # nacre updates codebooks in another op
        z = case.random((case.batch, case.channels, case.time))
        if case.direction == "forward":
            run = wrap(lambda z: q(z))

            def forward():
                with torch.no_grad():
                    return run(z)

            return forward
        if case.direction == "decode":
            q.eval()
            codes = (case.random((case.batch, case.time, case.stages), low=0.0) * case.codes).long()
            codes, run = codes.clamp_max(case.codes - 1), wrap(q.decode)

            def decode():
                with torch.no_grad():
                    return run(codes)

            return decode
        dy = case.random((case.batch, case.channels, case.time), low=-0.5)
        z.requires_grad_()
        given = [z, *q.parameters()]
        y, loss = wrap(lambda z: q(z))(z)
        return lambda: torch.autograd.grad([y, loss], given, [dy, None], retain_graph=True, allow_unused=True)

    note = "a stage at a time, as DAC's loop" + ("; backward alone" if case.direction == "backward" else "")
    found = [Peer("eager", make, note=note), Peer("eager_captured", make, captured=True, note=note)]
    found.append(Peer("compile", lambda: make(compiled), captured=True, compiled=True, note=note))
    return Peers(found)


@op("vq_ema")
def vq_ema(case):
    def make():
        quantizer, x, index = ops_codes.averaged(case)
        return lambda: quantizer.update(0, x, index)

    def reference():  # of one step: averages change from run to run
        _, x, index = ops_codes.averaged(case)
        sums = torch.zeros((case.codes, case.dim), dtype=torch.float64, device=case.device).index_add_(0, index, x.double())
        return torch.bincount(index, minlength=case.codes).float(), sums.float()

    found = [Peer("eager", make), Peer("eager_captured", make, captured=True), *ops_codes.average_peers(case)]
    return Peers(found, reference)


@op("vq_gather")
def vq_gather(case):
    def data():
        book = case.random((case.codes, case.dim))
        return book, (case.random((case.rows,), low=0.0) * case.codes).long().clamp_max(case.codes - 1)

    return simple(lambda book, codes: F.embedding(codes, book), data, lambda: (lambda b, c: b[c])(*data()))


# ---- transforms and losses


@op("stft")
def stft(case):
    window = torch.hann_window(case.window, device=case.device)
    inside = bool(case.get("inside", 0))  # frames within the signal, and a normalised window
    if inside:
        window = window / window.norm()

    lead = (case.window - case.hop) // 2
    trail = -case.time % case.hop + lead  # of aligned frames: a whole number of hops

    def transform(x):
        aligned = bool(case.get("aligned", 0))
        if aligned:
            x = F.pad(x[None], (lead, trail), mode="reflect")[0]
        spectrum = torch.stft(x, case.window, case.hop, window=window, center=not (aligned or inside), return_complex=True)
        return torch.view_as_real(spectrum)

    def signal():
        return case.random((case.batch, case.time))

    if case.direction == "forward":
        return simple(transform, lambda: (signal(),), lambda: transform(signal()), compiles=False)

    def adjoint():
        x = signal().requires_grad_()
        y = transform(x)
        dy = case.random(tuple(y.shape))
        return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)

    note = "backward alone"
    return Peers([Peer("eager", adjoint, note=note), Peer("eager_captured", adjoint, captured=True, note=note)])


class Apart(models.Spectral):
    """A transform per term and signal."""

    def forward(self, y, x):
        stft = mel = 0
        for n, bands, with_stft in self.scales:
            if with_stft:
                a, b = self.magnitudes(n, y, x[:0]), self.magnitudes(n, x, x[:0])
                log = (a.clamp_min(1e-5).log10() - b.clamp_min(1e-5).log10()).abs().mean()
                stft = stft + (a - b).abs().mean() + log
            if bands:
                bank = getattr(self, f"bank{n}")
                a, b = ((bank @ self.magnitudes(n, s, s[:0])).clamp_min(1e-5).log10() for s in (y, x))
                mel = mel + (a - b).abs().mean()
        return stft / self.count[0], mel / self.count[1]


class Powers(models.nn.Module):
    """EnCodec's mel loss: powers and their logarithms, of frames that divide the signal."""

    def __init__(self, rate, windows, mels, stft):
        super().__init__()
        self.scales = list(zip(windows, mels))
        for n, m in self.scales:
            window = torch.hann_window(n)
            self.register_buffer(f"window{n}", window / window.square().sum().sqrt())
            self.register_buffer(f"bank{n}", htk_bank(rate, n, m, 64))

    def forward(self, y, x):
        mel = 0
        for n, _ in self.scales:
            hop = n // 4
            both = F.pad(torch.cat([y, x]), ((n - hop) // 2,) * 2, mode="reflect")
            both = F.pad(both, (0, -(both.shape[-1] - n) % hop))
            window = getattr(self, f"window{n}")
            spectra = torch.stft(both, n, hop, window=window, center=False, return_complex=True)
            bands = getattr(self, f"bank{n}") @ spectra.abs().square()
            (a, b), (log_a, log_b) = bands.chunk(2), (1e-5 + bands).log10().chunk(2)
            mel = mel + (a - b).abs().mean() + (log_a - log_b).square().mean()
        return 0, mel


def htk_bank(rate, n, bands, low):
    """Triangles of height 1 on the HTK scale."""
    low, high = (math.log10(1 + f / 700) for f in (low, rate / 2))
    edges = [700 * (10 ** (low + (high - low) * i / (bands + 1)) - 1) for i in range(bands + 2)]
    f = torch.linspace(0, rate / 2, n // 2 + 1, dtype=torch.float64)
    rows = [torch.minimum((f - a) / (b - a), (c - f) / (c - b)) for a, b, c in zip(edges, edges[1:], edges[2:])]
    return torch.stack(rows).clamp_min(0).float()


class Torchaudio(Apart):
    """The mel terms by torchaudio."""

    def __init__(self, rate, windows, mels, stft):
        from torchaudio.transforms import MelSpectrogram

        super().__init__(rate, windows, [0] * len(mels), stft)
        how = {"power": 1.0, "norm": "slaney", "mel_scale": "slaney"}
        scales = [(n, m) for n, m in zip(windows, mels) if m]
        self.bands = torch.nn.ModuleList(MelSpectrogram(rate, n_fft=n, hop_length=n // 4, n_mels=m, **how) for n, m in scales)

    def forward(self, y, x):
        stft, mel = super().forward(y, x)[0], 0
        for transform in self.bands:
            mel = mel + (transform(y).clamp_min(1e-5).log10() - transform(x).clamp_min(1e-5).log10()).abs().mean()
        return stft, mel / max(1, len(self.bands))


@functools.cache
def has_torchaudio():
    try:
        import torchaudio.transforms  # noqa: F401

        return True
    except Exception as error:  # a broken one counts as missing
        print(f"torchaudio is not measured: {' '.join(str(error).split())[:200]}", flush=True)
        return False


@op("spectral_loss")
def spectral_loss(case):
    def make(kind, wrap=lambda f: f):
        windows, mels, stft = case.numbers("windows"), case.numbers("mels"), case.numbers("stft")
        losses = wrap(kind(case.rate, windows, mels, [bool(s) for s in stft]).to(case.device))
        y, x = case.random((case.batch, case.time), (case.batch, case.time))
        if case.direction == "loss":
            return lambda: losses(y, x)
        y.requires_grad_()

        def run():  # one gradient for each of the two, as the balancer needs them
            parts = [p for p in losses(y, x) if torch.is_tensor(p)]
            return [torch.autograd.grad(p, y, retain_graph=True)[0] for p in parts]

        return run

    if case.get("mel_kind") == "power":
        # The gradient alone is measured, which has no reference: it jumps where both signals are alike.
        kind = functools.partial(make, Powers)
        return Peers([Peer("eager", kind), Peer("eager_captured", kind, captured=True)])
    if case.get("mel_kind") not in (None, "log"):
        return Peers([])
    one, note = models.Spectral, "one transform per window for both signals and terms"
    found = [
        Peer("eager", lambda: make(one), note=note),
        Peer("eager_captured", lambda: make(one), captured=True, note=note),
        Peer("apart", lambda: make(Apart), note="a transform per term and signal"),
        Peer("apart_captured", lambda: make(Apart), captured=True, note="a transform per term and signal"),
        Peer("compile", lambda: make(one, compiled), compiled=True, captured=True, note=note),
    ]
    if has_torchaudio():
        found.append(Peer("torchaudio_captured", lambda: make(Torchaudio), captured=True))
    if case.direction != "loss":
        return Peers(found)  # gradients of logarithms jump where both signals are alike
    losses = lambda output: [torch.as_tensor(v, dtype=torch.float32, device=case.device).reshape(()) for v in output]
    for p in found:
        p.canonical = losses
    return Peers(found, lambda: losses(make(one)()))


@op("balancer")
def balancer(case):
    by_item = case.get("norm", "batch") == "item"

    def make(wrap=lambda f: f):
        given = case.random(*[(case.batch, case.time)] * case.count)
        means = torch.ones(case.count, device=case.device)

        def balanced(given):
            norms = torch.stack([g.norm(dim=1).mean() if by_item else g.norm() for g in given])
            means.mul_(0.999).add_(norms, alpha=1e-3)
            return sum(g * s for g, s in zip(given, (1 / (means + 1e-12) / len(given)).unbind()))

        run = wrap(balanced)
        return lambda: run(given)

    return Peers([Peer("eager", make), Peer("eager_captured", make, captured=True),
                  Peer("compile", lambda: make(compiled), captured=True, compiled=True)])  # fmt: skip


@op("waveform_loss")
def waveform_loss(case):
    distance = {"l1": F.l1_loss, "l2": F.mse_loss}[case.direction]

    def make(wrap=lambda f: f):
        y, x = case.random((case.batch, case.time), (case.batch, case.time))
        y.requires_grad_()
        loss = wrap(distance)

        def run():
            value = loss(y, x)
            return value, torch.autograd.grad(value, y)[0]

        return run

    found = [Peer("eager", make), Peer("eager_captured", make, captured=True)]
    found.append(Peer("compile", lambda: make(compiled), captured=True, compiled=True))
    return Peers(found)


# ---- whole codecs


def step_maker(case, style, autocast=None, wrap=None):
    def make():
        codec = ops_codecs.codec_of(case, style).train()
        samples = -(-case.samples // codec.config.hop) * codec.config.hop  # rounded as in the trainer
        # A window reflects half its length at the ends, so the audio must be longer than that. Only --small is
        # shorter.
        windows = [(n, m) for n, m in ((64, 10), (256, 40), (1024, 80)) if n // 2 < samples]
        spectral = models.Spectral(codec.config.sample_rate, *zip(*windows)).to(case.device)
        adamw = {"fused": True}
        if case.cuda:
            adamw["capturable"] = True
        step = models.Step(codec, spectral, autocast=autocast, **adamw)
        if wrap is not None:
            step.encode, step.decode, step.losses = wrap(step.encode), wrap(step.decode), wrap(step.losses)
        x = case.random((case.batch, 1, samples))
        return lambda: step.run(x)

    return make


@op("codec")
def codec(case):
    if case.config not in models.CONFIGS:  # the configurations of --small have no name
        return Peers([])
    one_d, two_d = models.Style(), models.Style(two_d=True)
    exact = case.type == "fp32"
    found = []

    def add(name, make, settings, arithmetic, **rest):
        found.append(Peer(name, make, arithmetic, settings, **rest))

    arithmetic = "bf16" if case.type == "bf16" else "fp32" if exact else "tf32"
    chosen = Settings(benchmark=True, tf32=not exact)
    if case.direction == "step":
        cast = torch.bfloat16 if case.type == "bf16" else None
        add("eager", step_maker(case, one_d, cast), Settings(tf32=False) if exact else Settings(), arithmetic,
            note="under autocast" if cast else "")  # fmt: skip
        add("cudnn_benchmark", step_maker(case, one_d, cast), chosen, arithmetic)
        add("cudnn_benchmark_captured", step_maker(case, one_d, cast), chosen, arithmetic, captured=True)
        styles = [("_two_d", two_d)]
        if cast:
            kept = dataclasses.replace(one_d, keep_type=True)
            styles += [("_keep_type", kept), ("_two_d_keep_type", dataclasses.replace(kept, two_d=True))]
        for name, style in styles:
            add("cudnn_benchmark" + name + "_captured", step_maker(case, style, cast), chosen, arithmetic, captured=True)
            add("compile" + name, step_maker(case, style, cast, compiled), chosen, arithmetic, captured=True, compiled=True)
        add("compile", step_maker(case, one_d, cast, compiled), chosen, arithmetic, captured=True, compiled=True)
        return Peers(found)
    return ops_codecs.inference_peers(case)
