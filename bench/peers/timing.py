"""Timing of the peers, by the method of bench/timing.h.

CUDA   Warm: consecutive runs, as many between two events as take 100 microseconds; median over the samples. A captured
       peer has them in one graph.
       Cold: 256 MiB, more than the second-level cache holds, are written before every run; two events enclose each run.
       Runs are queued without waiting, so a slow host is part of the time, as in a real program. A captured peer is
       replayed as a CUDA graph, as nacre's own cases are.
CPU    consecutive runs, each timed by the clock: median and best.

There are at least 50 and at most 200 samples of each kind. If a run takes 50 ms or more, there are as many as fit into
the time, but at least five.
"""
import contextlib
import dataclasses
import time
import warnings

import torch

DEPTH = 32  # runs that are queued before the host waits


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sets cudnn.benchmark, and TF32 in convolutions and matrix products. None keeps PyTorch's defaults, which are on
    and off."""

    benchmark: bool = False
    tf32: bool | None = None

    @contextlib.contextmanager
    def applied(self):
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer PyTorch has other names for these options
            cudnn.benchmark = self.benchmark
            cudnn.allow_tf32 = True if self.tf32 is None else self.tf32
            matmul.allow_tf32 = bool(self.tf32)
            try:
                yield
            finally:
                cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = False, True, False


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Captured:
    """Captures the result of `make` as a CUDA graph. Everything, an earlier forward pass included, runs on one
    stream."""

    def __init__(self, make):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run = make()
            for _ in range(3):  # libraries choose and allocate, compilers compile
                self.output = run()
            self.output = None
            stream.synchronize()
            self.run, self.graph = run, torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self.output = run()
        self.stream = stream
        torch.cuda.current_stream().wait_stream(stream)

    def several(self, repeats):
        """Captures that many runs in one graph."""
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), torch.cuda.graph(graph, stream=self.stream):
            for _ in range(repeats):
                self.output = self.run()
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph.replay

    def __call__(self):
        self.graph.replay()
        return self.output


def at(ordered, part):
    return ordered[int(part * (len(ordered) - 1) + 0.5)]


def count(one, seconds):
    return max(5, min(200, max(int(seconds / max(one, 1e-9)), 50 if one < 0.05 else 0)))


def cpu(run, seconds):
    def once():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    run()
    times = sorted(once() for _ in range(count(once(), seconds)))
    return {"warm_us": 1e6 * at(times, 0.5), "best_us": 1e6 * times[0], "p10_us": 1e6 * at(times, 0.1),
            "p90_us": 1e6 * at(times, 0.9), "runs": len(times)}  # fmt: skip


def cuda(run, seconds, device):
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(DEPTH)]

    def take(n, step, repeats, before=None):
        """Takes n samples of `step`, which is `repeats` runs."""
        times = []
        while len(times) < n:
            some = events[: n - len(times)]
            for start, end in some:
                if before is not None:
                    before()
                start.record()
                step()
                end.record()
            some[-1][1].synchronize()
            times += [start.elapsed_time(end) * 1e-3 / repeats for start, end in some]
        return sorted(times)

    def one_by_one(repeats):
        for _ in range(repeats):
            run()

    take(2, run, 1)
    one = at(take(3, run, 1), 0.5)
    repeats = max(1, min(100, int(1e-4 / max(one, 1e-7))))
    several = run.several(repeats) if isinstance(run, Captured) else lambda: one_by_one(repeats)
    warm = take(count(one * repeats, seconds), several, repeats)
    flush = torch.empty(64 << 20, device=device)
    cold = take(count(one, seconds), run, 1, lambda: flush.fill_(1.0))
    return {"warm_us": 1e6 * at(warm, 0.5), "best_us": 1e6 * warm[0], "cold_us": 1e6 * at(cold, 0.5),
            "p10_us": 1e6 * at(cold, 0.1), "p90_us": 1e6 * at(cold, 0.9), "runs": len(cold),
            "warm_samples": len(warm), "runs_per_sample": repeats}  # fmt: skip


def measure(run, device, seconds):
    """Times in microseconds. p10, p90 and runs are those of the cold runs on CUDA and of the warm ones on the CPU."""
    return cuda(run, seconds, device) if device.type == "cuda" else cpu(run, seconds)
