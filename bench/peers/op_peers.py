#!/usr/bin/env python3
"""Measures PyTorch on the cases of nacre_bench.

  nacre_bench --device cuda --cases cases.json
  python3 bench/peers/op_peers.py --cases cases.json --out peers-eager.json [--device cuda|cuda:N|cpu] [--filter REGEX]
                                  [--peers REGEX] [--set eager|compiled] [--seconds S] [--budget SECONDS] [--limit SECONDS] [--resume]
                                  [--round-trips]

All shapes are those of the list. ops.py and ops_models.py describe the peers, timing.py the timing.

  --set      eager (default), or compiled: torch.compile, which takes minutes
  --peers    only peers whose whole name matches this expression
  --seconds  approximate time for each kind of sample (default 0.1)
  --budget   begin no peer after this many seconds
  --limit    a peer that takes longer than this many seconds, including its compilation, has failed (default 240)
  --resume   skip the results that the file already has of this PyTorch, including failures
  --round-trips
             add a case of encoding and decoding as one function for each codec, which nacre_bench does not list

The file is written completely after every peer. A peer that cannot be captured as a graph is measured without a graph, and
its note says so. A peer that fails, or whose result differs from the reference, has its error in one line. A peer for which
this machine lacks something (Triton, cudnn-frontend) has the error "skipped: " with the reason. Exit codes: 0 success, 1 no
peer gave a figure, 2 usage, 3 the budget was spent, 4 a file cannot be read or written, 6 no such device, 77 no PyTorch.
"""
import argparse
import gc
import json
import os
import re
import signal
import sys
import time

try:
    import torch
except ImportError as e:
    print(f"op_peers: PyTorch cannot be imported ({e})", file=sys.stderr)
    sys.exit(77)

import ops
import ops_codecs
import ops_models  # noqa: F401  registers its peers
import timing


class Stop(Exception):
    def __init__(self, what, code):
        super().__init__(what)
        self.code = code


class TookTooLong(BaseException):
    """Not an Exception, because autotuners catch those and continue."""


def ring(*_):
    raise TookTooLong


def one_line(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def read_json(path, what):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as e:
        raise Stop(f"{path}: {e.strerror}", 4) from None
    except ValueError as e:
        raise Stop(f"{path}: not {what}: {e}", 4) from None


def write(path, content):
    """Writes the whole file or nothing."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=0)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise Stop(f"{path}: {e.strerror}", 4) from None


def context_of(device, which):
    cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "threads": None if cuda else torch.get_num_threads(),
        "sets": [which],
    }


def tensors_of(output):
    if torch.is_tensor(output):
        return [output]
    return [t for o in output if o is not None for t in tensors_of(o)]


def check(peer, output, reference, tolerance, mean=False):
    found = tensors_of(peer.canonical(output))
    if len(found) != len(reference):
        raise ValueError(f"gives {len(found)} tensors, the reference {len(reference)}")
    for a, b in zip(found, reference):
        if a.shape != b.shape:
            raise ValueError(f"gives {tuple(a.shape)}, the reference {tuple(b.shape)}")
        size = b.float().pow(2).mean().sqrt().item()
        difference = a.float() - b.float()
        worst = difference.abs().max().item()
        if not worst <= tolerance * size * (10 if mean else 1):
            raise ValueError(f"differs from the reference by {worst:.3g} where its values are about {size:.3g}")
        if mean and not difference.pow(2).mean().sqrt().item() <= tolerance * size:
            raise ValueError(f"differs from the reference by {difference.pow(2).mean().sqrt().item():.3g} in the mean, where "
                             f"its values are about {size:.3g}")  # fmt: skip


def prepared(peer, result):
    if not peer.captured:
        return peer.make()
    try:
        return timing.Captured(peer.make)
    except (torch.cuda.OutOfMemoryError, ops.Skipped):
        raise
    except Exception as e:  # the peer may still run without a capture
        why = one_line(e)
    torch.cuda.synchronize()
    result["note"] = "; ".join(filter(None, [ops.uncaptured(peer.note), f"not captured: {why}"]))
    return peer.make()


def measure(peer, reference, tolerance, device, seconds, result, mean=False):
    if peer.compiled:
        torch._dynamo.reset()  # earlier compilations count towards its limits
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with peer.settings.applied():
        run = prepared(peer, result)
        output = run()
        timing.synchronize(device)
        if device.type == "cuda":
            result["peak_MiB"] = torch.cuda.max_memory_allocated(device) / (1 << 20)
        if reference is not None:
            check(peer, output, reference, tolerance, mean)
        del output
        return timing.measure(run, device, seconds)


def asked(parameters, peer):
    """Cases that differ only in nacre's implementation ask the same of a peer, so they share its result."""
    return json.dumps({**parameters, "captured": None, "peer": peer}, sort_keys=True)


def clean(device, thorough):
    """Frees the memory of large peers. After every small one, this would take longer than the peer."""
    if thorough:
        gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        if thorough:
            torch.cuda.empty_cache()


def options_from(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def fail(message):
        raise Stop(f"{message}; see --help", 2)

    parser.error = fail
    parser.add_argument("--cases", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--filter", default="")
    parser.add_argument("--peers", default=".*")
    parser.add_argument("--set", default="eager", choices=["eager", "compiled"])
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--budget", type=float, default=float("inf"))
    parser.add_argument("--limit", type=float, default=240)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--round-trips", action="store_true")
    o = parser.parse_args(arguments)
    try:
        o.filter = re.compile(o.filter)
        o.peers = re.compile(o.peers)
    except re.error as e:
        fail(f"--filter or --peers: {e}")
    if not o.seconds > 0 or not o.budget > 0 or not o.limit > 0:
        fail("--seconds, --budget and --limit expect positive numbers")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", o.device):
        fail(f'--device is "{o.device}"; expected cpu, cuda or cuda:N')
    return o


def main(arguments):
    begun = time.monotonic()
    o = options_from(arguments)
    device = torch.device(o.device)
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise Stop(f"device {o.device}: PyTorch finds no such GPU", 6)
        device = torch.device("cuda", device.index or 0)  # set_device needs an index
        torch.cuda.set_device(device)
    listed = read_json(o.cases, "a list of cases")
    if not isinstance(listed, dict) or not isinstance(listed.get("cases"), list):
        raise Stop(f'{o.cases}: not a list of cases of nacre_bench --cases: it has no "cases"', 4)
    if o.round_trips:
        listed["cases"] = ops_codecs.with_round_trips(listed["cases"])
    content = {"context": context_of(device, o.set), "peers": []}
    if o.resume and os.path.exists(o.out):
        before = read_json(o.out, "a file of peers")
        same = all(before.get("context", {}).get(k) == content["context"][k] for k in ("torch", "device"))
        content["peers"] = before.get("peers", []) if same else []
    have = {(p.get("name"), p.get("peer")) for p in content["peers"]}

    todo, without = [], 0
    for listed_case in listed["cases"]:
        name, parameters = listed_case.get("name", ""), listed_case.get("parameters", {})
        if not o.filter.search(name):
            continue
        case = ops.Case(name, parameters, device)
        try:
            found = ops.peers_of(case)
        except (ValueError, KeyError) as e:
            print(f"{name}: no peers: {one_line(e)}")
            without += 1
            continue
        peers = [p for p in found.peers if p.compiled == (o.set == "compiled") and o.peers.fullmatch(p.name)]
        without += not peers
        peers = [p for p in peers if (name, p.name) not in have]
        if peers:
            todo.append((case, found, peers))
    todo.sort(key=lambda entry: entry[0].op == "codec")  # whole models last: each takes as long as many ops
    left = sum(len(peers) for _, _, peers in todo)
    print(f"{left} peers of {len(todo)} cases; {len(have)} measured before; {without} cases have none in this set", flush=True)

    parameters_of = {c.get("name"): c.get("parameters", {}) for c in listed["cases"]}
    answered = {asked(parameters_of.get(p.get("name"), {}), p.get("peer")): p for p in content["peers"] if "error" not in p}
    figures = skipped = 0
    signal.signal(signal.SIGALRM, ring)
    for case, found, peers in todo:
        reference = failed = None
        for peer in peers:
            if time.monotonic() - begun > o.budget:
                print(f"op_peers: the budget of {o.budget:g} s is spent; {left} peers are left; --resume continues")
                write(o.out, content)
                return 3
            result = {"name": case.name, "peer": peer.name, "arithmetic": peer.arithmetic}
            if peer.note:
                result["note"] = peer.note
            before = answered.get(asked(case.parameters, peer.name))
            if before is not None:
                content["peers"].append({**before, "name": case.name})
                left -= 1
                figures += 1
                write(o.out, content)
                continue
            try:
                signal.setitimer(signal.ITIMER_REAL, o.limit)
                if found.reference is not None and reference is None and failed is None:
                    try:
                        with timing.Settings(tf32=False).applied():
                            reference = [t.detach() for t in tensors_of(found.reference())]
                    except torch.OutOfMemoryError as e:
                        failed = e
                        result["note"] = "; ".join(filter(None, [peer.note, "no room for a reference"]))
                tolerance = max(found.tolerance[t] for t in (peer.arithmetic, case.type))
                result.update(measure(peer, reference, tolerance, device, o.seconds, result, found.mean))
                signal.setitimer(signal.ITIMER_REAL, 0)
                figures += 1
                answered[asked(case.parameters, peer.name)] = result
                print(f"{case.name}  {peer.name}  {result.get('cold_us', result['warm_us']):.1f} us", flush=True)
            except (Exception, TookTooLong) as e:  # the other peers run even if one fails
                took = isinstance(e, TookTooLong)
                result["error"] = f"took longer than {o.limit:g} s" if took else one_line(e)
                if isinstance(e, ops.Skipped):  # the report's word for a peer that did not run, which is no failure
                    result["error"] = f"skipped: {e}"
                    skipped += 1
                print(f"{case.name}  {peer.name}  {result['error']}", flush=True)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                clean(device, "error" in result or peer.compiled or case.op == "codec")
            except RuntimeError as e:
                content["peers"].append(result)
                write(o.out, content)
                raise Stop(f"the device is lost after {case.name} {peer.name}: {one_line(e)}", 1) from None
            content["peers"].append(result)
            left -= 1
            write(o.out, content)
        del reference
    write(o.out, content)
    return 0 if figures or skipped or have or not todo else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Stop as stop:
        print(f"op_peers: {stop}", file=sys.stderr)
        sys.exit(stop.code)
