"""Peers of the code ops that need no matrix of distances: the kernels of nearest.py, if Triton is installed.

  triton, triton_tf32x3   nearest codes; products in fp32, or three in tf32
  triton (vq_ema)         counts and sums by one kernel, the averages by PyTorch
  fused, fused_tf32x3     an iteration of k-means: the search adds rows to sums and counts itself
"""
import functools

import torch

import models
from ops import Peer, Peers, Skipped, compiled, op
from timing import Settings

EXACT = Settings(tf32=False)
PRECISIONS = (("", "ieee"), ("_tf32x3", "tf32x3"))


@functools.cache
def kernels(kind):
    try:
        import nearest
    except Exception as error:  # missing, or of another PyTorch
        raise Skipped(f"Triton cannot be used: {' '.join(str(error).split())[:200]}") from None
    if not nearest.can_run(torch.device(kind)):
        raise Skipped("Triton needs a GPU, or TRITON_INTERPRET=1")
    return nearest


def nearest_peers(case, data, distance):
    def make(precision):
        kernel, (x, book) = kernels(case.device.type), data()
        half, codes = kernel.half_norms(book), torch.empty(case.rows, dtype=torch.int32, device=case.device)
        return lambda: kernel.assign(x, book, half, codes, precision=precision)

    note = "no matrix of distances; captured"
    return [Peer("triton" + name, functools.partial(make, precision), settings=EXACT, captured=True, compiled=True,
                 canonical=distance, note=note) for name, precision in PRECISIONS]  # fmt: skip


def averaged(case):
    """A quantizer of one stage, rows, and their codes, shared by all peers of the case."""
    quantizer = models.EmaQuantizer(1, case.codes, case.dim)
    quantizer.to(case.device)
    quantizer.embed.copy_(case.random(tuple(quantizer.embed.shape)))
    quantizer.sums.copy_(quantizer.embed)
    x = case.random((case.rows, case.dim))
    index = (case.random((case.rows,), low=0.0) * case.codes).long().clamp_max(case.codes - 1)
    return quantizer, x, index


def average_peers(case):
    def make():
        kernel, (quantizer, x, index) = kernels(case.device.type), averaged(case)
        index = index.int()
        sums, counts = torch.zeros_like(quantizer.embed[0]), torch.zeros_like(quantizer.counts[0])

        def run():
            sums.zero_(), counts.zero_()
            kernel.scatter(x, index, sums, counts)
            quantizer.average(0, x, counts, sums)
            return counts, sums

        return run

    return [Peer("triton", make, captured=True, compiled=True, note="sums by atomics; captured")]


@op("vq_kmeans")
def kmeans(case):
    """One Lloyd iteration of rows and a codebook. A code without rows keeps its value. nacre's case also draws the
    first codes."""

    def data():
        return case.random((case.rows, case.dim), (case.codes, case.dim))

    def moved(book, sums, counts):
        return torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), book)

    def plain(x, book):
        codes = torch.addmm(0.5 * (book * book).sum(1), x, book.t(), alpha=-1.0).argmin(1)
        sums = torch.zeros_like(book).index_add_(0, codes, x)
        counts = torch.zeros_like(book[:, 0]).index_add_(0, codes, torch.ones_like(x[:, 0]))
        return codes, moved(book, sums, counts)

    def by_torch(wrap=lambda f: f):
        (x, book), step = data(), wrap(plain)
        return lambda: step(x, book)

    def by_triton(precision):
        kernel, (x, book) = kernels(case.device.type), data()
        sums, counts = torch.empty_like(book), torch.empty_like(book[:, 0])
        codes = torch.empty(case.rows, dtype=torch.int32, device=case.device)

        def run():
            sums.zero_(), counts.zero_()
            kernel.assign(x, book, kernel.half_norms(book), codes, sums, counts, precision)
            return codes, moved(book, sums, counts)

        return run

    def comparable(output):
        """The squared distances. Also checks that each code of the codebook is the mean of its rows."""
        codes, found = output[0].long(), output[1]
        x, book = data()
        sums = torch.zeros_like(book, dtype=torch.float64).index_add_(0, codes, x.double())
        expected = moved(book.double(), sums, torch.bincount(codes, minlength=case.codes).double())
        worst = (found - expected).abs().max().item()
        if not worst <= 1e-5:  # rows are below 1; sums of thousands of terms in any order
            raise ValueError(f"a code differs from the mean of its rows by {worst:.3g}")
        return ((x - book[codes]) ** 2).sum(1)

    def reference():
        x, book = data()
        return torch.cat([torch.cdist(p.double(), book.double()).amin(1) ** 2 for p in x.split(1 << 14)]).float()

    given = "from given codes"
    found = [
        Peer("eager", by_torch, settings=EXACT, canonical=comparable, note=given),
        Peer("eager_captured", by_torch, settings=EXACT, captured=True, canonical=comparable, note=given),
        Peer("compile", lambda: by_torch(compiled), settings=EXACT, captured=True, compiled=True, canonical=comparable, note=given),
    ]
    found += [Peer("fused" + name, functools.partial(by_triton, precision), settings=EXACT, captured=True, compiled=True,
                   canonical=comparable, note=f"{given}; the search adds to sums and counts; captured")
              for name, precision in PRECISIONS]  # fmt: skip
    return Peers(found, reference)
