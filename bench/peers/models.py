"""nacre's codecs, losses and training step in PyTorch, shared by the peers of this folder.

The layers are those that DAC publishes (Snake, weight norm, residual units of dilation 1, 3, 9). The quantizers,
losses, balancer and optimizer are those of nacre's trainer. Nothing here waits for the device, so that a whole step can
be captured as a CUDA graph.

  python3 bench/peers/models.py [CONFIG...]      counts the parameters of each
"""
import contextlib
import dataclasses
import math
import sys

import torch
import torch.nn.functional as F
from torch import nn

try:
    from torch.nn.utils.parametrizations import weight_norm
except ImportError:
    from torch.nn.utils import weight_norm


@dataclasses.dataclass(frozen=True)
class Config:
    """The part of nacre's CodecConfig that decides what is computed. Names and defaults are those of codec_config.h."""

    sample_rate: int = 16000
    encoder_dim: int = 64
    encoder_rates: tuple = (2, 4, 5, 8)
    decoder_dim: int = 1536
    latent_dim: int = 0
    dilations: tuple = (1, 3, 9)
    quantizer: str = "factorised"
    n_codebooks: int = 12
    codebook_size: int = 1024
    codebook_dim: int = 8

    @property
    def decoder_rates(self):
        return self.encoder_rates[::-1]

    @property
    def hop(self):
        return math.prod(self.encoder_rates)

    @property
    def latent(self):
        return self.latent_dim or self.encoder_dim << len(self.encoder_rates)


SPEECH = Config(encoder_dim=32, decoder_dim=512, encoder_rates=(2, 4, 5), latent_dim=64, n_codebooks=16, quantizer="ema")
CONFIGS = {  # the same as in lib/systems/speech.cpp and dac.cpp
    "speech-16k": SPEECH,
    "speech-16k-small": dataclasses.replace(SPEECH, encoder_dim=16, decoder_dim=256, n_codebooks=8),
    "dac-16k": Config(),
    "dac-24k": Config(sample_rate=24000, n_codebooks=32),
    "dac-44k": Config(sample_rate=44100, n_codebooks=9, encoder_rates=(2, 4, 8, 8)),
}


@dataclasses.dataclass(frozen=True)
class Style:
    """The way in which the same layers are written.

    two_d      two-dimensional convolutions of height 1, channels last. PyTorch would move one-dimensional activations
               to channels first before every convolution
    keep_type  under autocast Snake stays in 16 bits. As published, its float alpha makes all later activations float
    """

    two_d: bool = False
    keep_type: bool = False


class Snake(nn.Module):
    def __init__(self, channels, style=Style()):
        super().__init__()
        self.keep_type = style.keep_type
        self.alpha = nn.Parameter(torch.ones(1, channels, *[1] * (1 + style.two_d)))

    def forward(self, x):
        if self.keep_type:
            wave = torch.sin(self.alpha.to(x.dtype) * x)
            return x + (self.alpha + 1e-9).reciprocal().to(x.dtype) * (wave * wave)
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


class Lift(nn.Module):
    """Turns [batch, channels, time] into [batch, channels, 1, time], channels last."""

    def forward(self, x):
        return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


class Drop(nn.Module):
    def forward(self, x):
        return x.squeeze(2)


def flat(style, **geometry):
    """Stride, padding and so on, extended by a dummy dimension of height 1."""
    rest = {"padding": 0, "output_padding": 0, "stride": 1, "dilation": 1}
    return {k: (rest[k], v) for k, v in geometry.items()} if style.two_d else geometry


def conv(i, o, k, style=Style(), **geometry):
    kind = nn.Conv2d if style.two_d else nn.Conv1d
    layer = kind(i, o, (1, k) if style.two_d else k, **flat(style, **geometry))
    nn.init.zeros_(layer.bias)  # as in DAC
    return weight_norm(layer)


def transposed(i, o, rate, style=Style()):
    kind = nn.ConvTranspose2d if style.two_d else nn.ConvTranspose1d
    geometry = flat(style, stride=rate, padding=math.ceil(rate / 2), output_padding=rate % 2)
    return weight_norm(kind(i, o, (1, 2 * rate) if style.two_d else 2 * rate, **geometry))


class Unit(nn.Module):
    def __init__(self, c, d, style=Style()):
        super().__init__()
        self.block = nn.Sequential(
            Snake(c, style), conv(c, c, 7, style, dilation=d, padding=3 * d), Snake(c, style), conv(c, c, 1, style)
        )

    def forward(self, x):
        return x + self.block(x)


def encoder(config, style=Style()):
    c = config.encoder_dim
    layers = [conv(1, c, 7, style, padding=3)]
    for r in config.encoder_rates:
        layers += [Unit(c, d, style) for d in config.dilations]
        layers += [Snake(c, style), conv(c, 2 * c, 2 * r, style, stride=r, padding=math.ceil(r / 2))]
        c *= 2
    layers += [Snake(c, style), conv(c, config.latent, 3, style, padding=1)]
    return nn.Sequential(*([Lift()] + layers + [Drop()] if style.two_d else layers))


def decoder(config, style=Style()):
    c = config.decoder_dim
    layers = [conv(config.latent, c, 7, style, padding=3)]
    for r in config.decoder_rates:
        layers += [Snake(c, style), transposed(c, c // 2, r, style)]
        c //= 2
        layers += [Unit(c, d, style) for d in config.dilations]
    layers += [Snake(c, style), conv(c, 1, 7, style, padding=3), nn.Tanh()]
    return nn.Sequential(*([Lift()] + layers + [Drop()] if style.two_d else layers))


class EmaQuantizer(nn.Module):
    """Residual quantizer with moving-average codebooks in the latent space."""

    def __init__(self, stages, codes, dim, decay=0.99, dead=0.03):
        super().__init__()
        self.decay, self.dead = decay, dead
        self.register_buffer("embed", torch.zeros(stages, codes, dim))
        self.register_buffer("counts", torch.ones(stages, codes))
        self.register_buffer("sums", torch.zeros(stages, codes, dim))

    @torch.no_grad()
    def start(self, rows):
        r = rows.clone()
        for s in range(self.embed.shape[0]):
            c = r[torch.randperm(r.shape[0])[: self.embed.shape[1]]].clone()
            for _ in range(10):
                i = torch.cdist(r, c).argmin(1)
                n = torch.zeros(c.shape[0]).index_add_(0, i, torch.ones(r.shape[0]))
                m = torch.zeros_like(c).index_add_(0, i, r)
                c = torch.where(n[:, None] > 0, m / n[:, None].clamp_min(1), c)
            self.embed[s] = c
            self.sums[s] = c
            r = r - c[torch.cdist(r, c).argmin(1)]

    @torch.no_grad()
    def start_anywhere(self):
        """Fills the codebooks with random codes, for measurements only."""
        self.embed.uniform_(-1, 1)
        self.sums.copy_(self.embed)

    @torch.no_grad()
    def nearest(self, s, r):
        e = self.embed[s]
        return ((e * e).sum(1) - 2 * r @ e.t()).argmin(1)

    def forward(self, z):
        b, d, t = z.shape
        r = z.transpose(1, 2).reshape(-1, d)
        rows, total, loss = r, 0, 0
        for s in range(self.embed.shape[0]):
            index = self.nearest(s, r.detach())
            q = F.embedding(index, self.embed[s])
            loss = loss + F.mse_loss(r, q)
            if self.training:
                self.update(s, r.detach(), index)
            total = total + q
            r = r - q
        y = rows + (total - rows).detach()
        return y.reshape(b, t, d).transpose(1, 2), loss

    @torch.no_grad()
    def update(self, s, r, index):
        k = self.embed.shape[1]
        if r.is_cuda:  # bincount, any() and boolean indices would wait for the device
            n = torch.zeros_like(self.counts[s]).index_add_(0, index, torch.ones_like(r[:, 0]))
        else:
            n = torch.bincount(index, minlength=k).float()
        m = torch.zeros_like(self.embed[s]).index_add_(0, index, r)
        self.average(s, r, n, m)
        return n, m

    @torch.no_grad()
    def average(self, s, r, n, m):
        """Updates the averages from the counts and sums of this step."""
        k = self.embed.shape[1]
        self.counts[s].mul_(self.decay).add_(n, alpha=1 - self.decay)
        self.sums[s].mul_(self.decay).add_(m, alpha=1 - self.decay)
        dead = self.counts[s] < self.dead
        self.embed[s] = self.sums[s] / (self.counts[s][:, None] + 1e-5)
        if r.is_cuda:
            rows = r[torch.randint(0, r.shape[0], (k,), device=r.device)]
            self.embed[s] = torch.where(dead[:, None], rows, self.embed[s])
            self.sums[s] = torch.where(dead[:, None], rows, self.sums[s])
            self.counts[s].masked_fill_(dead, 1.0)
        elif dead.any():
            rows = r[torch.randint(0, r.shape[0], (int(dead.sum()),))]
            self.embed[s][dead] = rows
            self.sums[s][dead] = rows
            self.counts[s][dead] = 1.0

    @torch.no_grad()
    def encode(self, z):
        b, d, t = z.shape
        r, codes = z.transpose(1, 2).reshape(-1, d), []
        for s in range(self.embed.shape[0]):
            codes.append(self.nearest(s, r))
            r = r - F.embedding(codes[-1], self.embed[s])
        return torch.stack(codes, 1).reshape(b, t, -1)

    def decode(self, codes):
        return sum(F.embedding(codes[:, :, s], self.embed[s]) for s in range(self.embed.shape[0])).transpose(1, 2)


class FactorisedQuantizer(nn.Module):
    """DAC's residual quantizer. Each stage projects, searches among normalised codes and projects back."""

    commitment_weight = 1.0

    def __init__(self, stages, codes, dim, latent):
        super().__init__()
        self.into = nn.ModuleList(conv(latent, dim, 1) for _ in range(stages))
        self.out = nn.ModuleList(conv(dim, latent, 1) for _ in range(stages))
        self.books = nn.ModuleList(nn.Embedding(codes, dim) for _ in range(stages))

    def nearest(self, s, e):
        b, d, t = e.shape
        rows = F.normalize(e.detach().transpose(1, 2).reshape(-1, d))
        book = F.normalize(self.books[s].weight.detach())
        distance = rows.pow(2).sum(1, keepdim=True) - 2 * rows @ book.t() + book.pow(2).sum(1, keepdim=True).t()
        return (-distance).max(1)[1].reshape(b, t)

    def forward(self, z, used=None):
        """`used` is the number of codebooks per item (quantizer dropout), on the device."""
        y, r, loss = 0, z, 0
        used = torch.full((z.shape[0],), len(self.books), device=z.device) if used is None else used
        for s in range(len(self.books)):
            e = self.into[s](r)
            q = self.books[s](self.nearest(s, e)).transpose(1, 2)
            commitment = F.mse_loss(e, q.detach(), reduction="none").mean([1, 2])
            codebook = F.mse_loss(q, e.detach(), reduction="none").mean([1, 2])
            out = self.out[s](e + (q - e).detach())
            mask = (s < used).to(z.dtype)
            y = y + out * mask[:, None, None]
            r = r - out
            commitment = (commitment * mask).mean()
            if self.commitment_weight != 1:
                commitment = self.commitment_weight * commitment
            loss = loss + commitment + (codebook * mask).mean()
        return y, loss

    @torch.no_grad()
    def encode(self, z):
        r, codes = z, []
        for s in range(len(self.books)):
            codes.append(self.nearest(s, self.into[s](r)))
            r = r - self.out[s](self.books[s](codes[-1]).transpose(1, 2))
        return torch.stack(codes, 2)

    def decode(self, codes):
        return sum(self.out[s](self.books[s](codes[:, :, s]).transpose(1, 2)) for s in range(len(self.books)))


def quantizer(config):
    if config.quantizer == "ema":
        return EmaQuantizer(config.n_codebooks, config.codebook_size, config.latent)
    return FactorisedQuantizer(config.n_codebooks, config.codebook_size, config.codebook_dim, config.latent)


class Codec(nn.Module):
    def __init__(self, config, style=Style()):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = encoder(config, style), decoder(config, style)
        self.quantizer = quantizer(config)

    def encode(self, x):
        return self.quantizer.encode(self.encoder(x).float())

    def decode(self, codes):
        return self.decoder(self.quantizer.decode(codes))

    def fold(self):
        """Replaces directions and gains by weights, for inference."""
        for module in self.modules():
            if nn.utils.parametrize.is_parametrized(module):
                nn.utils.parametrize.remove_parametrizations(module, "weight")
        return self


def mel_bank(rate, n, bands):
    """Mel filters on Slaney's scale, normalised by area."""
    lin, log = 200.0 / 3, math.log(6.4) / 27
    to_mel = lambda f: f / lin if f < 1000 else 15 + math.log(f / 1000) / log
    to_hz = lambda m: m * lin if m < 15 else 1000 * math.exp(log * (m - 15))
    edges = [to_hz(to_mel(rate / 2) * i / (bands + 1)) for i in range(bands + 2)]
    f = torch.linspace(0, rate / 2, n // 2 + 1, dtype=torch.float64)
    rows = []
    for a, b, c in zip(edges, edges[1:], edges[2:]):
        rows.append(torch.minimum((f - a) / (b - a), (c - f) / (c - b)).clamp_min(0) * (2 / (c - a)))
    return torch.stack(rows).float()


class Spectral(nn.Module):
    """STFT and mel loss, with one torch.stft per window for both signals. `stft` selects the windows of the STFT
    loss."""

    def __init__(self, rate, windows=(64, 256, 1024), mels=(10, 40, 80), stft=None):
        super().__init__()
        self.scales = list(zip(windows, mels, stft or [True] * len(windows)))
        self.count = max(1, sum(bool(s) for _, _, s in self.scales)), max(1, sum(m > 0 for m in mels))
        for n, m, _ in self.scales:
            self.register_buffer(f"window{n}", torch.hann_window(n))
            if m:
                self.register_buffer(f"bank{n}", mel_bank(rate, n, m))

    def magnitudes(self, n, y, x):
        window = getattr(self, f"window{n}")
        return torch.stft(torch.cat([y, x]), n, n // 4, window=window, return_complex=True).abs()

    def forward(self, y, x):
        stft = mel = 0
        for n, bands, with_stft in self.scales:
            both = self.magnitudes(n, y, x)
            if with_stft:
                a, b = both.chunk(2)
                log = (a.clamp_min(1e-5).log10() - b.clamp_min(1e-5).log10()).abs().mean()
                stft = stft + (a - b).abs().mean() + log
            if bands:
                a, b = (getattr(self, f"bank{n}") @ both).clamp_min(1e-5).log10().chunk(2)
                mel = mel + (a - b).abs().mean()
        return stft / self.count[0], mel / self.count[1]


class Balancer:
    """EnCodec's balancer: every loss has the same share of the gradient at the waveform."""

    def __init__(self, count, device, decay=0.999):
        self.decay = decay
        self.means = torch.zeros(count, dtype=torch.float64, device=device)
        self.seen = torch.zeros((), dtype=torch.float64, device=device)

    def gradient(self, parts, y):
        each = [torch.autograd.grad(part, y, retain_graph=True)[0] for part in parts]
        norms = torch.stack([g.norm() for g in each])
        self.seen += 1
        self.means.mul_(self.decay).add_(norms, alpha=1 - self.decay)
        scale = (1 / (self.means / (1 - self.decay**self.seen) + 1e-12) / len(each)).float()
        return sum(g * s for g, s in zip(each, scale))


class Averages:
    """Exponential moving averages of parameters, as trainers keep them."""

    def __init__(self, parameters, decay=0.99):
        self.parameters, self.rate = [p.detach() for p in parameters], 1 - decay
        self.averages = [p.clone() for p in self.parameters]

    def update(self):
        if self.averages:
            torch._foreach_lerp_(self.averages, self.parameters, self.rate)


class Step:
    """Forward, losses, balancer, backward, clip, AdamW, averaged weights, codebook update.

    Parts can be replaced by compiled ones.
    """

    def __init__(self, codec, spectral, lr=3e-4, autocast=None, **adamw):
        self.codec, self.autocast = codec, autocast
        self.encode, self.quantize, self.decode = codec.encoder, codec.quantizer, codec.decoder
        self.losses = lambda y, x: ((y - x).abs().mean(), *spectral(y, x))
        self.parameters = list(codec.parameters())
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.5, 0.9), weight_decay=0.01, **adamw)
        self.balancer = Balancer(3, self.device)
        self.averages = Averages(self.parameters)

    def mixed(self):
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def run(self, x):
        with self.mixed():
            z = self.encode(x)
        q, vq_loss = self.quantize(z.float())
        with self.mixed():
            y = self.decode(q)
        y = y.float()
        parts = self.losses(y[:, 0], x[:, 0])
        gradient = self.balancer.gradient(parts, y)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([y, vq_loss], [gradient, None])
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.averages.update()
        return sum(p.detach() for p in parts) + vq_loss.detach()


def main():
    for name in sys.argv[1:] or CONFIGS:
        if name not in CONFIGS:
            sys.exit(f"{name} is not a configuration, expected one of {' '.join(CONFIGS)}")
        codec = Codec(CONFIGS[name])
        trained = sum(p.numel() for p in codec.parameters())
        state = sum(p.numel() for p in codec.buffers())
        used = sum(p.numel() for p in codec.fold().parameters())
        print(f"{name}: {trained} trained, {state} of codebook averages; without gains {used}")


if __name__ == "__main__":
    main()
