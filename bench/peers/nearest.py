"""Nearest codes without a matrix of distances, in Triton: tiles of scores live and die in registers.

A program takes ROWS rows, walks over the codes a tile at a time, and keeps per row the least score and its code. The score
of code c is |c|^2 / 2 - x c, as in nacre; among equal ones the lowest code wins. With `sums`, a row is added to its code's
sum and count by the same program, so that a Lloyd step is this kernel and a division.

Products are made in fp32 ("ieee") or, from 16 dimensions on, as three tf32 ones ("tf32x3"): single tf32 products would give
other codes. On the CPU Triton runs only as its interpreter: TRITON_INTERPRET=1 before this is imported.
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
        nearer = least < best  # an earlier tile's code stays where both are equal
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
    # Sums are added to: runs that tune must not count. Without them their place is taken by x, which nothing may reset.
    _with_sums = triton.autotune(_configs(), key=tuned, reset_to_zero=["sums", "counts"])(_assign)


def can_run(device):
    return device.type == "cuda" or INTERPRETED


def power(n):
    return max(16, triton.next_power_of_2(n))  # what a product of tiles takes at least


def assign(x, book, half, codes, sums=None, counts=None, precision="ieee"):
    """codes [rows] int32 of x [rows, dim]; `sums` [codes, dim] and `counts` [codes], where given, must be zero before."""
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
    """Adds the rows to their codes' sums and counts."""
    rows, dim = x.shape
    _scatter[(triton.cdiv(rows, 64),)](x, codes, sums, counts, rows, DIM=dim, WIDTH=power(dim), ROWS=64)


def half_norms(book):
    return 0.5 * (book * book).sum(1)
