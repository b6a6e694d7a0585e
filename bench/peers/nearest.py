"""Nearest codes in Triton without a matrix of distances: tiles of scores stay in registers.

A program takes ROWS rows, loops over the codes a tile at a time, and keeps per row the least score and its code. The
score of code c is |c|^2 / 2 - x c, as in nacre. Among equal scores the lowest code wins. With `sums`, the same program
adds each row to the sum and count of its code, so that a Lloyd step is this kernel and a division.

Products are in fp32 ("ieee") or, from 16 dimensions on, three tf32 products each ("tf32x3"). Single tf32 products would
give other codes. On the CPU Triton only interprets kernels: TRITON_INTERPRET=1 must be set before this module is
imported.
"""
import triton
import triton.language as tl


def _configs():
    return [
        triton.Config({"ROWS": rows, "CODES": codes}, num_warps=warps, num_stages=stages)
        for rows, codes, warps, stages in ((64, 64, 4, 2), (128, 64, 4, 2), (128, 128, 8, 2), (64, 128, 4, 3), (32, 64, 2, 2))
    ]


@triton.jit
def _assign(x, book, half, codes, sums, counts, rows, n_codes, DIM: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr,
            PRECISION: tl.constexpr, ROWS: tl.constexpr, CODES: tl.constexpr):  # fmt: skip
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    inside = (r[:, None] < rows) & (d[None, :] < DIM)
    mine = tl.load(x + r[:, None] * DIM + d[None, :], mask=inside, other=0.0)
    best = tl.full([ROWS], float("inf"), tl.float32)
    which = tl.zeros([ROWS], tl.int32)
    for first in range(0, n_codes, CODES):
        c = first + tl.arange(0, CODES)
        tile = tl.load(book + c[None, :] * DIM + d[:, None], mask=(c[None, :] < n_codes) & (d[:, None] < DIM), other=0.0)
        norms = tl.load(half + c, mask=c < n_codes, other=float("inf"))
        scores = norms[None, :] - tl.dot(mine, tile, input_precision=PRECISION)
        least, at = tl.min(scores, axis=1, return_indices=True, return_indices_tie_break_left=True)
        nearer = least < best  # strict: the code of an earlier tile wins a tie
        best = tl.where(nearer, least, best)
        which = tl.where(nearer, first + at, which)
    tl.store(codes + r, which, mask=r < rows)
    if SUM:
        tl.atomic_add(sums + which[:, None] * DIM + d[None, :], mine, mask=inside, sem="relaxed")
        tl.atomic_add(counts + which, tl.full([ROWS], 1.0, tl.float32), mask=r < rows, sem="relaxed")


@triton.jit
def _scatter(x, codes, sums, counts, rows, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    inside = (r[:, None] < rows) & (d[None, :] < DIM)
    mine = tl.load(x + r[:, None] * DIM + d[None, :], mask=inside, other=0.0)
    which = tl.load(codes + r, mask=r < rows, other=0)
    tl.atomic_add(sums + which[:, None] * DIM + d[None, :], mine, mask=inside, sem="relaxed")
    tl.atomic_add(counts + which, tl.full([ROWS], 1.0, tl.float32), mask=r < rows, sem="relaxed")


INTERPRETED = not isinstance(_assign, triton.runtime.JITFunction)
_alone = _with_sums = _assign
if not INTERPRETED:
    tuned = ["n_codes", "DIM", "PRECISION"]
    _alone = triton.autotune(_configs(), key=tuned)(_assign)
    # The kernel adds to sums and counts, so runs of the autotuner must reset them. Without sums, x is passed in their
    # place, and it must not be reset.
    _with_sums = triton.autotune(_configs(), key=tuned, reset_to_zero=["sums", "counts"])(_assign)


def can_run(device):
    return device.type == "cuda" or INTERPRETED


def power(n):
    return max(16, triton.next_power_of_2(n))  # the least size of a product of tiles


def assign(x, book, half, codes, sums=None, counts=None, precision="ieee"):
    """The codes [rows] int32 of x [rows, dim]. `sums` [codes, dim] and `counts` [codes], if given, must be zero
    before."""
    rows, dim = x.shape
    with_sums = sums is not None
    given = (x, book, half, codes, sums if with_sums else x, counts if with_sums else x, rows, book.shape[0])
    how = {"DIM": dim, "WIDTH": power(dim), "SUM": with_sums, "PRECISION": precision}
    if INTERPRETED:
        _assign[(triton.cdiv(rows, 64),)](*given, **how, ROWS=64, CODES=32)
    else:
        kernel = _with_sums if with_sums else _alone
        kernel[lambda meta: (triton.cdiv(rows, meta["ROWS"]),)](*given, **how)
    return codes


def scatter(x, codes, sums, counts):
    """Adds the rows to the sums and counts of their codes."""
    rows, dim = x.shape
    _scatter[(triton.cdiv(rows, 64),)](x, codes, sums, counts, rows, DIM=dim, WIDTH=power(dim), ROWS=64)


def half_norms(book):
    return 0.5 * (book * book).sum(1)
