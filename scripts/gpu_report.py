#!/usr/bin/env python3
"""Merges what scripts/gpu_suite.sh left in one or more folders into <gpu>.json and <gpu>.md (say nvidia-h200.md).

  scripts/gpu_report.py [--out DIR] [--add] WORKDIR...

  --out DIR   where both files go (default bench/results)
  --add       on top of the result that DIR has of this GPU: what the WORKDIRs lack stays (say, peers-compiled later)

Read from each WORKDIR, as far as it is there: suite.json (commit, device, outcome of every part), cases.json, bench.json,
baselines.json (cuDNN and cuBLAS, which count among the peers) and peers-*.json. Of several folders the last one wins, figure by figure for peers. Bench results are taken whole, of one commit. A
JSON file that a killed program left half written counts as far as it goes, and the result says so.

A figure that nobody measured is "-". So are all times where shapes were small or the device was emulated. A ratio is the best
peer's time over nacre's for the same case, cold against cold and warm against warm: above 1, nacre is faster. The best peer is
the fastest of all that ran, whatever its arithmetic.

Exit codes: 0 done, 2 usage, 3 bad input, 4 reading or writing failed.
"""
import argparse
import json
import math
import os
import re
import sys

FIGURES = ("cold_us", "warm_us", "best_us", "p10_us", "p90_us", "runs", "launches", "GB/s", "GFLOP/s", "copy%", "peak%", "floor%",
           "p99_us", "warm_p10_us", "warm_p90_us", "warm_runs", "warm_copy%", "warm_floor%", "peak_MiB")
COUNTS = ("launches",)  # not of time: these stay where times are left out
# What Google Benchmark says of a result beside its counters, which are everything else.
STANDARD = ("family_index", "per_family_instance_index", "repetitions", "repetition_index", "threads", "iterations", "real_time",
            "cpu_time", "items_per_second", "bytes_per_second")
PEER_FIGURES = ("cold_us", "warm_us", "p10_us", "p90_us", "runs", "peak_MiB")
# What Google Benchmark says of the machine: its names and its load are nobody's business here, the rest is the host's.
STANDARD_CONTEXT = ("date", "host_name", "executable", "num_cpus", "mhz_per_cpu", "cpu_scaling_enabled", "caches", "load_avg",
                    "library_version", "library_build_type", "json_schema_version")
SHOWN_CONTEXT = ("device", "description", "commit", "small")  # rows of their own, or said in words
# Cases of nacre_bench that time another library on the shape of the case whose name stands before theirs.
BASELINE = re.compile(r"(.+)/(cudnn_nhwc|cudnn_nchw|gemm)")
BASELINE_NOTES = {"cudnn_nhwc": "without the bias", "cudnn_nchw": "without the bias",
                  "gemm": "memory unfolded before, which is not timed; without the bias"}


class Bad(Exception):
    def __init__(self, text, code=3):
        super().__init__(text)
        self.code = code


# ---- reading -------------------------------------------------------------------------------------------------------------
def salvage(text, array):
    """The object of a file that ends too early: its members before `array`, and the whole elements of that."""
    decoder = json.JSONDecoder()
    found = {}
    at = text.find("{") + 1
    skip = re.compile(r"[\s,]*")
    while True:
        at = skip.match(text, at).end()
        try:
            key, at = decoder.raw_decode(text, at)
            at = re.compile(r"\s*:\s*").match(text, at).end()
            if key != array:
                found[key], at = decoder.raw_decode(text, at)
                continue
            if text[at] != "[":
                return None
            at += 1
            found[array] = []
            while True:
                at = skip.match(text, at).end()
                element, at = decoder.raw_decode(text, at)
                found[array].append(element)
        except (ValueError, AttributeError, IndexError):
            return found if found.get(array) else None


def read(path, array, notes):
    try:
        with open(path, encoding="utf-8") as f:
            text = f.read()
    except OSError as e:
        raise Bad(f"{path}: {e.strerror}", 4)
    except UnicodeDecodeError:
        raise Bad(f"{path}: not text")
    try:
        found = json.loads(text)
    except ValueError as e:
        found = salvage(text, array) if array in ("benchmarks", "peers") else None
        if found is None:
            raise Bad(f"{path}: not JSON: {e}")
        notes.append(f"{os.path.basename(path)} ends in the middle: {len(found[array])} results of it count")
    if not isinstance(found, dict) or not isinstance(found.get(array), list):
        raise Bad(f'{path}: expected an object with a list "{array}"')
    for element in found[array]:
        if not isinstance(element, dict):
            raise Bad(f'{path}: "{array}" holds something other than objects')
    return found


def figure(x):
    """A number above zero, or None: a time of nothing was not measured."""
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x) or x <= 0:
        return None
    return x


def named(element, path):
    name = element.get("name")
    if not isinstance(name, str) or not name:
        raise Bad(f"{path}: a result has no name")
    return name


def bench_name(name):
    # What Google Benchmark adds to the name of a case.
    return re.sub(r"(/(real_time|manual_time|process_time|iterations:\d+|repeats:\d+|min_time:[^/]+))+$", "", name)


class Found:
    """All that the folders hold, the last one's word standing."""

    def __init__(self):
        self.suite, self.bench_context, self.peer_context = {}, {}, {}
        self.parts, self.cases, self.bench, self.peers = {}, {}, {}, {}
        self.notes, self.gpus, self.has_bench, self.small, self.emulated = [], {}, False, False, False

    def add_folder(self, folder):
        if not os.path.isdir(folder):
            raise Bad(f"{folder}: no such folder", 4)
        paths = {name: os.path.join(folder, name + ".json") for name in ("suite", "cases", "bench", "baselines")}
        there = [name for name in paths if os.path.isfile(paths[name])]
        peers = sorted(os.path.join(folder, f) for f in os.listdir(folder) if re.fullmatch(r"peers-.*\.json", f))
        if not there and not peers:
            raise Bad(f"{folder}: has none of suite.json, cases.json, bench.json, baselines.json, peers-*.json")
        self.folder_commit = None
        if "suite" in there:
            self.add_suite(paths["suite"])
        if "cases" in there:
            self.add_cases(paths["cases"])
        if "bench" in there:
            self.add_bench(paths["bench"], True)
        if "baselines" in there:
            self.add_bench(paths["baselines"], False)
        for path in peers:
            self.add_peers(path)

    def add_suite(self, path):
        suite = read(path, "parts", self.notes)
        self.folder_commit = suite.get("commit")
        self.small |= suite.get("small") is True
        self.emulated |= suite.get("emulated") is True
        for part in suite.pop("parts"):
            name, outcome = part.get("part"), part.get("outcome")
            if not isinstance(name, str) or outcome not in ("ok", "FAILED", "incomplete", "skipped"):
                raise Bad(f"{path}: a part has no name, or an outcome other than ok, FAILED, incomplete and skipped")
            # "Skipped" says less than an earlier folder's outcome.
            if outcome != "skipped" or name not in self.parts:
                self.parts[name] = {**part, "commit": suite.get("commit")}
        self.suite.update({k: v for k, v in suite.items() if v not in ("", None)})

    def add_cases(self, path):
        found = read(path, "cases", self.notes)
        self.small |= found.get("small") is True
        cases = {}
        for case in found["cases"]:
            if BASELINE.fullmatch(named(case, path)):
                continue
            cases[named(case, path)] = {k: case[k] for k in ("bytes", "flops", "arithmetic", "parameters") if k in case}
        # Names of a list without results, beside another folder's bench, add nothing: peers find their case by name.
        self.cases.update(cases)

    def see_gpu(self, name, path):
        if name:
            self.gpus[re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")] = (name, path)

    def add_bench(self, path, ours):
        found = read(path, "benchmarks", self.notes)
        context = found.get("context")
        if not isinstance(context, dict):
            raise Bad(f'{path}: has no "context"')
        commit = context.setdefault("commit", self.folder_commit)
        before = self.bench_context.get("commit")
        if ours and self.has_bench and commit != before:
            raise Bad(f"{path}: bench results of commit {commit}, after those of {before}: give folders of one commit")
        description = str(context.get("description", ""))
        self.emulated |= "emulated" in description
        self.small |= context.get("small") in (True, "true", "1", 1)
        self.see_gpu(description.split(",")[0].strip(), path)
        if ours:
            self.has_bench = True
            self.bench_context.update({k: v for k, v in context.items() if k not in STANDARD_CONTEXT})
        for result in found["benchmarks"]:
            if result.get("run_type", "iteration") != "iteration":
                continue
            name = bench_name(named(result, path))
            baseline = BASELINE.fullmatch(name)
            if baseline:
                of, library = baseline.groups()
                error = result.get("error_message", "failed") if result.get("error_occurred") else None
                self.add_peer(of, library, {**result, "error": error, "note": BASELINE_NOTES[library]})
            elif result.get("error_occurred"):
                self.bench[name] = {"error": one_line(result.get("error_message", "failed"))}
            else:
                self.bench[name] = {k: figure(result.get(k)) for k in FIGURES}
                more = {k: figure(v) for k, v in result.items() if k not in FIGURES and k not in STANDARD and figure(v)}
                if more:
                    self.bench[name]["more"] = more

    def add_peers(self, path):
        found = read(path, "peers", self.notes)
        context = found.get("context") if isinstance(found.get("context"), dict) else {}
        self.see_gpu(context.get("device") if isinstance(context.get("device"), str) else "", path)
        for k, v in context.items():
            if k in self.peer_context and self.peer_context[k] != v:
                self.notes.append(f"peers: {k} is {v} in {os.path.basename(path)}, {self.peer_context[k]} before")
            self.peer_context[k] = v
        for result in found["peers"]:
            name, peer = named(result, path), result.get("peer")
            if not isinstance(peer, str) or not peer:
                raise Bad(f"{path}: a result of {name} names no peer")
            self.add_peer(name, peer, result)

    def add_peer(self, name, peer, result):
        kept = {k: figure(result.get(k)) for k in PEER_FIGURES}
        for k in ("arithmetic", "note"):
            if result.get(k):
                kept[k] = one_line(result[k])
        measured = kept["cold_us"] or kept["warm_us"]
        if not measured:
            kept = {"error": one_line(result.get("error") or "no figure")}
        mine = self.peers.setdefault(name, {})
        # A failure says less than a figure.
        if measured or peer not in mine or "error" in mine[peer]:
            mine[peer] = kept

    def add_result(self, path):
        """An earlier result, below everything of the folders."""
        result = read(path, "cases", self.notes)
        if result.get("timings") is not True:
            raise Bad(f"{path}: has no times; make the result anew, without --add")
        for part in result.get("parts", []):
            self.parts.setdefault(part.get("part"), part)
        self.suite = {**result.get("suite", {}), **self.suite}
        self.peer_context = {**result.get("peer_context", {}), **self.peer_context}
        old = {case["name"]: case for case in result["cases"] if isinstance(case.get("name"), str)}
        if not self.has_bench:
            self.has_bench = True
            self.bench_context = {**result.get("context", {}), **result.get("ceilings", {})}
            self.bench = {name: case["nacre"] for name, case in old.items() if case.get("nacre")}
            facts = ("bytes", "flops", "arithmetic", "parameters")
            self.cases = {name: {k: case[k] for k in facts if k in case} for name, case in old.items()}
        for name, case in old.items():
            for peer in case.get("peers", []):
                mine, which = self.peers.setdefault(name, {}), peer.get("peer")
                kept = {k: v for k, v in peer.items() if k != "peer"}
                if which not in mine or ("error" in mine[which] and "error" not in kept):
                    mine[which] = kept
        self.notes = result.get("notes", []) + [n for n in self.notes if n not in result.get("notes", [])]


def one_line(x):
    return re.sub(r"\s+", " ", str(x)).strip()[:300]


# ---- the result ------------------------------------------------------------------------------------------------------------
# Shown, but no rival: nobody can run a product without unfolding first, and those codes are not exact.
NOT_COMPARED = ("gemm", "addmm_tf32_captured")


def compare(nacre, peers, kind):
    """The fastest peer, cold or warm, and its time over nacre's; None where no peer has such a time."""
    times = [(p[kind], peer) for peer, p in peers.items() if p.get(kind) and peer not in NOT_COMPARED]
    if not times:
        return None
    best, who = min(times)
    return {"peer": who, "us": best, "ratio": round(best / nacre[kind], 4) if nacre.get(kind) else None}


def make_result(found):
    if not found.gpus:
        found.see_gpu(found.suite.get("gpu"), "suite.json")
    if len(found.gpus) > 1:
        (a, b) = list(found.gpus.values())[:2]
        raise Bad(f"results of two devices: {a[0]} in {a[1]}, {b[0]} in {b[1]}")
    timings = not (found.small or found.emulated)
    if found.emulated:
        slug, gpu = "emulated", "Emulated on the CPU"
    elif found.gpus:
        slug, (gpu, _) = list(found.gpus.items())[0]
    else:
        slug, gpu = "unknown-gpu", None
    why = None
    if not timings:
        why = "the device is emulated" if found.emulated else "shapes were shrunk by --small"

    names = list(found.cases)
    names += [n for n in found.bench if n not in found.cases]
    names += [n for n in found.peers if n not in found.cases and n not in found.bench]
    cases = []
    for name in names:
        facts = found.cases.get(name, {})
        nacre, peers = dict(found.bench.get(name, {})), {p: dict(r) for p, r in found.peers.get(name, {}).items()}
        if not timings:
            nacre = {k: (v if k in COUNTS or k == "error" else None) for k, v in nacre.items()}
            peers = {p: {k: (v if k in ("note", "arithmetic", "error") else None) for k, v in r.items()} for p, r in peers.items()}
        cold, warm = compare(nacre, peers, "cold_us"), compare(nacre, peers, "warm_us")
        parameters = facts.get("parameters") if isinstance(facts.get("parameters"), dict) else {}
        cases.append({
            "name": name, "op": str(parameters.get("op") or name.split("/")[0]), **facts, "nacre": nacre,
            "best_cold_peer": cold, "best_warm_peer": warm,
            "peers": [{"peer": p, **r} for p, r in sorted(peers.items())]})
    commit = found.bench_context.get("commit") or found.suite.get("commit")
    notes = list(dict.fromkeys(found.notes))
    suite_commit = found.suite.get("commit")
    if found.bench_context.get("commit") and suite_commit and not suite_commit.startswith(re.split(r"\+|-dirty", found.bench_context["commit"])[0]):
        notes.append(f"the bench was built at {found.bench_context['commit']}, the suite ran at {suite_commit}")
    parts = list(found.parts.values())
    ceilings = {k: v for k, v in found.bench_context.items() if re.search(r"/s\b|^us ", k)}
    context = {k: v for k, v in found.bench_context.items() if k not in ceilings}
    if not timings:
        parts = [{k: v for k, v in p.items() if k != "seconds"} for p in parts]
        ceilings = {}
    return slug, {
        "device": gpu, "commit": commit, "timings": timings, "why_no_timings": why, "ceilings": ceilings,
        "context": context,
        "peer_context": found.peer_context, "suite": found.suite, "parts": parts, "notes": notes, "cases": cases}


# ---- the page --------------------------------------------------------------------------------------------------------------
def us(x):
    if x is None:
        return "-"
    return f"{x:.2f}" if x < 10 else f"{x:.1f}" if x < 1000 else f"{x:.0f}"


def percent(x):
    return "-" if x is None else f"{x:.0f}"


def cell(x):
    return one_line(x).replace("|", "\\|")


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "|".join("---" for _ in head) + "|"] + \
           ["| " + " | ".join(row) + " |" for row in rows] + [""]


def times(x):
    return "-" if x is None else f"{x:.2f}"


def spread(r):
    return f"{us(r['p10_us'])} to {us(r['p90_us'])}" if r.get("p10_us") and r.get("p90_us") else "-"


def of_gemm(case):
    """How fast, as a percentage of the product alone."""
    gemm = next((p.get("cold_us") for p in case["peers"] if p["peer"] == "gemm"), None)
    ours = case["nacre"].get("cold_us")
    return percent(100 * gemm / ours if gemm and ours else None)


def case_row(case):
    n, launches = case["nacre"], case["nacre"].get("launches")
    row = [cell(case["name"]), us(n.get("cold_us")), us(n.get("warm_us")), spread(n), percent(n.get("copy%")),
           percent(n.get("peak%")), percent(n.get("floor%")), percent(n.get("warm_floor%")), of_gemm(case),
           "-" if launches is None else f"{launches:g}", percent(n.get("peak_MiB"))]
    for best in (case["best_cold_peer"], case["best_warm_peer"]):
        row += [cell(best["peer"]), us(best["us"]), times(best["ratio"])] if best else ["-", "-", "-"]
    return row


def peer_row(case, peer):
    if "error" in peer:
        error = peer["error"] if peer["error"].startswith("skipped") else "failed: " + peer["error"]
        return [cell(case["name"]), cell(peer["peer"]), "-", "-", "-", "-", "-", "-", cell(error)]
    ratios = [times(peer[k] / case["nacre"][k] if peer.get(k) and case["nacre"].get(k) else None) for k in ("cold_us", "warm_us")]
    return [cell(case["name"]), cell(peer["peer"]), us(peer.get("cold_us")), us(peer.get("warm_us")), spread(peer), *ratios,
            percent(peer.get("peak_MiB")), cell(", ".join(peer[k] for k in ("arithmetic", "note") if peer.get(k)))]


def best_ratio(case):
    for best in (case["best_cold_peer"], case["best_warm_peer"]):
        if best and best["ratio"]:
            return best["ratio"]
    return None


def page(result):
    suite, context = result["suite"], result["context"]
    lines = [f"# {result['device'] or 'GPU of unknown name'}", ""]
    if result["timings"]:
        lines += ["Times are in microseconds: cold with the caches flushed before each run, warm run after run; the spread is from "
                  "the 10th to the 90th percentile. Percentages are of the copy and arithmetic rates measured in the same process; "
                  "floor is the larger of both least times over the measured one. The best peer is the fastest of all listed "
                  "below, whatever its arithmetic, but for gemm, whose unfolding is not timed, and products whose codes are not exact; a ratio is its time over nacre's: above 1, nacre is faster. \"-\" was not "
                  "measured.", ""]
    else:
        lines += [f"No times: {result['why_no_timings']}. What follows shows that the suite ran, not how fast.", ""]
    rows = [["commit", cell(result["commit"] or "-")], ["description", cell(context.get("description") or "-")],
            ["driver", cell(suite.get("driver") or "-")]]
    host = suite.get("host") if isinstance(suite.get("host"), dict) else {}
    if host:
        rows.append(["host", cell(f"{host.get('cores', '-')} cores, {host.get('cpu') or '-'}, {host.get('system') or '-'}")])
    rows.append(["made", cell(suite.get("made") or "-")])
    if suite.get("warning"):
        rows.append(["WARNING", cell(suite["warning"])])
    for key in ("torch", "cuda", "cudnn"):
        rows.append([{"torch": "peers' PyTorch", "cuda": "peers' CUDA", "cudnn": "peers' cuDNN"}[key],
                     cell(result["peer_context"].get(key) or "-")])
    rows += [[cell(k), cell(v)] for k, v in context.items() if k not in SHOWN_CONTEXT]
    rows += [[cell(k), cell(v)] for k, v in result["ceilings"].items()]
    lines += table(["", ""], rows)
    lines += [f"- {one_line(n)}" for n in result["notes"]] + ([""] if result["notes"] else [])

    if result["parts"]:
        lines += ["## Parts", ""]
        rows = []
        for p in result["parts"]:
            outcome = {"skipped": "not run"}.get(p["outcome"], p["outcome"]) + (f" (exit {p.get('exit')})" if p["outcome"] == "FAILED" else "")
            seconds = "-" if p.get("seconds") is None else f"{p['seconds']}"
            rows.append([cell(p["part"]), outcome, seconds, cell(p.get("why") or "")])
        lines += table(["part", "outcome", "s", ""], rows)
        for p in result["parts"]:
            for name in p.get("failed") or []:
                lines.append(f"- {p['part']}: FAILED {one_line(name)}")
        lines += [""] if lines[-1] else []

    ops = list(dict.fromkeys(c["op"] for c in result["cases"]))
    if ops:
        lines += ["## Ops", ""]
        rows = []
        for op in ops:
            of = [c for c in result["cases"] if c["op"] == op]
            ratios = [best_ratio(c) for c in of if best_ratio(c)]
            floors = [c["nacre"]["floor%"] for c in of if c["nacre"].get("floor%")]
            rows.append([
                cell(op), str(len(of)), str(len([c for c in of if c["nacre"].get("cold_us") or c["nacre"].get("warm_us")])),
                f"{percent(min(floors))} to {percent(max(floors))}" if floors else "-",
                f"{len([r for r in ratios if r >= 1])} of {len(ratios)}" if ratios else "-",
                f"{min(ratios):.2f}" if ratios else "-",
                f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}" if ratios else "-"])
        lines += table(["op", "cases", "measured", "% of floor", "not slower than the best peer", "worst ratio", "mean ratio"], rows)
        if result["timings"]:
            lines += ["Ratios are to the best peer, cold, or warm where one of the two has no cold time; the mean is geometric.", ""]
    for op in ops:
        of = [c for c in result["cases"] if c["op"] == op]
        lines += [f"## {op}", ""]
        lines += table(["case", "cold", "warm", "spread", "% copy", "% peak", "% floor", "% floor, warm", "% gemm", "launches", "MiB", "best peer, cold", "us", "ratio",
                        "best peer, warm", "us", "ratio"], [case_row(c) for c in of])
        lines += [f"- {c['name']}: " + ", ".join(f"{k} {v:.4g}" for k, v in c["nacre"]["more"].items())
                  for c in of if c["nacre"].get("more")]
        lines += [f"- {c['name']}: " + ("" if c["nacre"]["error"].startswith("skipped") else "FAILED ") + c["nacre"]["error"]
                  for c in of if c["nacre"].get("error")]
        lines += [""] if lines[-1] else []
        peers = [peer_row(c, p) for c in of for p in c["peers"]]
        if peers:
            lines += ["All peers:", ""] + table(["case", "peer", "cold", "warm", "spread", "ratio, cold", "ratio, warm", "MiB", ""],
                                                 peers)
    return "\n".join(lines).rstrip("\n") + "\n"


def write(path, text):
    try:
        with open(path + ".part", "w", encoding="utf-8") as f:
            f.write(text)
        os.replace(path + ".part", path)
    except OSError as e:
        raise Bad(f"{path}: {e.strerror}", 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bench", "results"))
    parser.add_argument("--add", action="store_true")
    parser.add_argument("folders", nargs="*", metavar="WORKDIR")
    parser.error = lambda message: (_ for _ in ()).throw(Bad(message + "; see --help", 2))
    o = parser.parse_args()
    if not o.folders:
        raise Bad("expected a folder of results; see --help", 2)
    found = Found()
    for folder in o.folders:
        found.add_folder(folder)
    slug, result = make_result(found)
    path = os.path.join(o.out, slug + ".json")
    if o.add and not os.path.isfile(path):
        raise Bad(f"--add: {path} is not there", 4)
    if o.add:
        if not result["timings"]:
            raise Bad(f"--add: {result['why_no_timings']}: nothing of that goes into a result with times")
        found.add_result(path)
        slug, result = make_result(found)
    try:
        os.makedirs(o.out, exist_ok=True)
    except OSError as e:
        raise Bad(f"{o.out}: {e.strerror}", 4)
    write(path, json.dumps(result, indent=1) + "\n")
    write(os.path.join(o.out, slug + ".md"), page(result))
    with_time = sum(1 for c in result["cases"] if c["nacre"].get("cold_us") or c["nacre"].get("warm_us"))
    with_peer = sum(1 for c in result["cases"] if best_ratio(c))
    print(f"gpu_report: {os.path.join(o.out, slug + '.md')}: {len(result['cases'])} cases, {with_time} with times, "
          f"{with_peer} beside a peer" + ("" if result["timings"] else f"; no times: {result['why_no_timings']}"))


if __name__ == "__main__":
    try:
        main()
    except Bad as e:
        print(f"gpu_report: {e}", file=sys.stderr)
        sys.exit(e.code)
