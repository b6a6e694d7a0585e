#!/usr/bin/env python3
"""Merges the results of calls of scripts/gpu_suite.sh into one folder per GPU (for example nvidia-h200), to be committed.

  scripts/gpu_report.py [--out DIR] [--add] WORKDIR|ARCHIVE...

  --out DIR   parent of that folder (default bench/results)
  --add       update the result of this GPU in DIR: figures that the new calls do not have are kept

The folder gets report.md, suite.json (outcome of every part), bench.json, peers.json, probes.json and mission.json, each with
commit, device, driver, versions, clocks and ceilings. The page compares goal (bench/goals.json), floor, best peer and nacre, and
says "not measured" where there is no figure.

Each WORKDIR, or the .tar.gz that --bring made of it, may have: suite.json, cases.json, headline.json and bench.json,
baselines.json (cuDNN and cuBLAS, which count as peers), peers-*.json, probes.json, mission.json. Of several calls the last one
counts, for peers figure by figure. All bench results must be of one commit. Of a JSON file that a killed program left
incomplete, the complete results count, and the page says so.

A figure that was not measured is "-". So are all times if shapes were small or the device was emulated. A ratio is the best
peer's time divided by nacre's for the same case, cold by cold and warm by warm: above 1, nacre is faster. The best peer is the
fastest of all that ran, with any arithmetic.

Exit codes: 0 success, 2 usage, 3 invalid input, 4 reading or writing failed.
"""
import argparse
import json
import math
import os
import re
import sys
import tarfile
import tempfile

sys.dont_write_bytecode = True  # write no bytecode into the tree
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "gpu"))
from page import best_ratio, one_line, page  # noqa: E402

FIGURES = ("cold_us", "warm_us", "best_us", "p10_us", "p90_us", "runs", "launches", "GB/s", "GFLOP/s", "copy%", "peak%", "floor%",
           "p99_us", "warm_p10_us", "warm_p90_us", "warm_runs", "warm_copy%", "warm_floor%", "peak_MiB")
COUNTS = ("launches",)  # not times: kept where times are omitted
# Google Benchmark's own fields of a result; all other fields are counters.
STANDARD = ("family_index", "per_family_instance_index", "repetitions", "repetition_index", "threads", "iterations", "real_time",
            "cpu_time", "items_per_second", "bytes_per_second")
PEER_FIGURES = ("cold_us", "warm_us", "p10_us", "p90_us", "runs", "peak_MiB")
# Google Benchmark's description of the machine. The machine's names and load are private; the rest describes the host.
STANDARD_CONTEXT = ("date", "host_name", "executable", "num_cpus", "mhz_per_cpu", "cpu_scaling_enabled", "caches", "load_avg",
                    "library_version", "library_build_type", "json_schema_version")
KINDS = ("suite", "cases", "headline", "bench", "baselines", "probes", "mission")  # files of a folder
# Cases of nacre_bench that time another library on the shape of the case with the preceding name.
BASELINE = re.compile(r"(.+)/(cudnn_nhwc|cudnn_nchw|gemm)")
BASELINE_NOTES = {"cudnn_nhwc": "without the bias", "cudnn_nchw": "without the bias",
                  "gemm": "memory unfolded before, which is not timed; without the bias"}


class Bad(Exception):
    def __init__(self, text, code=3):
        super().__init__(text)
        self.code = code


# ---- reading -------------------------------------------------------------------------------------------------------------
def salvage(text, array):
    """The object of a truncated file: its members before `array`, and the complete elements of `array`."""
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
        raise Bad(f"{path}: is not UTF-8 text")
    try:
        found = json.loads(text)
    except ValueError as e:
        found = salvage(text, array) if array in ("benchmarks", "peers") else None
        if found is None:
            raise Bad(f"{path}: invalid JSON: {e}")
        notes.append(f"{os.path.basename(path)} is incomplete: {len(found[array])} of its results count")
    if not isinstance(found, dict) or not isinstance(found.get(array), list):
        raise Bad(f'{path}: expected an object with a list "{array}"')
    for element in found[array]:
        if not isinstance(element, dict):
            raise Bad(f'{path}: "{array}" contains something other than objects')
    return found


def figure(x):
    """A number above zero, or None. A time of zero was not measured."""
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x) or x <= 0:
        return None
    return x


def named(element, path):
    name = element.get("name")
    if not isinstance(name, str) or not name:
        raise Bad(f"{path}: a result has no name")
    return name


def bench_name(name):
    # Remove the suffixes that Google Benchmark adds to the name of a case.
    return re.sub(r"(/(real_time|manual_time|process_time|iterations:\d+|repeats:\d+|min_time:[^/]+))+$", "", name)


class Found:
    """The results of all folders. Later folders replace results of earlier ones."""

    def __init__(self):
        self.suite, self.bench_context, self.peer_context = {}, {}, {}
        self.parts, self.cases, self.bench, self.peers = {}, {}, {}, {}
        self.probes, self.mission = None, None
        self.notes, self.gpus, self.has_bench, self.small, self.emulated = [], {}, False, False, False

    def add_folder(self, folder):
        if not os.path.isdir(folder):
            raise Bad(f"{folder}: no such folder", 4)
        paths = {name: os.path.join(folder, name + ".json") for name in KINDS}
        there = [name for name in paths if os.path.isfile(paths[name])]
        peers = sorted(os.path.join(folder, f) for f in os.listdir(folder) if re.fullmatch(r"peers-.*\.json", f))
        if not there and not peers:
            raise Bad(f"{folder}: has none of {', '.join(n + '.json' for n in KINDS)}, peers-*.json")
        self.folder_commit = None
        if "suite" in there:
            self.add_suite(paths["suite"])
        if "cases" in there:
            self.add_cases(paths["cases"])
        for name in ("headline", "bench"):
            if name in there:
                self.add_bench(paths[name], True)
        if "baselines" in there:
            self.add_bench(paths["baselines"], False)
        for path in peers:
            self.add_peers(path)
        if "probes" in there:
            self.probes = self.facts(paths["probes"], "probes")
        if "mission" in there:
            self.mission = self.facts(paths["mission"], "runs")

    def facts(self, path, array):
        found = read(path, array, self.notes)
        self.small |= found.get("small") is True
        self.emulated |= found.get("emulated") is True
        return {k: v for k, v in found.items() if k not in ("small", "emulated")}

    def add_suite(self, path):
        suite = read(path, "parts", self.notes)
        self.folder_commit = suite.get("commit")
        self.small |= suite.get("small") is True
        self.emulated |= suite.get("emulated") is True
        for part in suite.pop("parts"):
            name, outcome = part.get("part"), part.get("outcome")
            if not isinstance(name, str) or outcome not in ("ok", "FAILED", "incomplete", "skipped"):
                raise Bad(f"{path}: a part has no name, or an outcome other than ok, FAILED, incomplete and skipped")
            # "Skipped" never replaces the outcome of an earlier folder.
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
        # Names of a list without results add nothing to another folder's bench: peers find their case by name.
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
            raise Bad(f"{path}: bench results of commit {commit}, after those of {before}; expected folders of one commit")
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
                raise Bad(f'{path}: a result of {name} has no "peer"')
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
        # A failure never replaces a measurement.
        if measured or peer not in mine or "error" in mine[peer]:
            mine[peer] = kept

    def add_result(self, folder):
        """Adds an earlier result where the folders have none."""
        result = read_result(folder, self.notes)
        if result.get("timings") is not True:
            raise Bad(f"{folder}: has no times; make the result again without --add")
        self.probes = self.probes or result.get("probes")
        self.mission = self.mission or result.get("mission")
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


# ---- the result ------------------------------------------------------------------------------------------------------------
# Shown, but not used as rivals: a product requires unfolding first, and the codes of tf32 are not exact.
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
        "peer_context": found.peer_context, "suite": found.suite, "parts": parts, "notes": notes, "cases": cases,
        "probes": facts_shown(found.probes, timings, "probes", ("probe", "outcome", "answered", "asks")),
        "mission": facts_shown(found.mission, timings, "runs", ("precision", "ended", "exit"))}


def facts_shown(facts, timings, array, without_times):
    """Removes times of small shapes and emulated devices."""
    if facts is None or timings:
        return facts
    return {**facts, array: [{k: e[k] for k in without_times if k in e} for e in facts[array]]}


# ---- files of the result ---------------------------------------------------------------------------------------------
def files_of(result):
    suite = result["suite"]
    versions = {"compiler": suite.get("compiler"), "cuda": suite.get("cuda"),
                **{k: result["context"][k] for k in ("cuFFT", "cuBLAS", "cuDNN") if k in result["context"]},
                **{"peers " + k: v for k, v in result["peer_context"].items() if k in ("torch", "cuda", "cudnn")}}
    head = {"device": result["device"], "commit": result["commit"], "driver": suite.get("driver"),
            "versions": {k: v for k, v in versions.items() if v}, "clocks": suite.get("clocks"), "timings": result["timings"],
            "why_no_timings": result["why_no_timings"], "ceilings": result["ceilings"]}
    files = {"suite.json": {k: result[k] for k in ("context", "peer_context", "suite", "parts", "notes")}}
    if result["cases"]:
        files["bench.json"] = {"cases": [{k: v for k, v in c.items() if k != "peers"} for c in result["cases"]]}
    if any(c["peers"] for c in result["cases"]):
        files["peers.json"] = {"cases": [{"name": c["name"], "peers": c["peers"]} for c in result["cases"] if c["peers"]]}
    for kind in ("probes", "mission"):
        if result[kind]:
            files[kind + ".json"] = result[kind]
    return {name: {**head, **content, "commit": content.get("commit", head["commit"])} for name, content in files.items()}


def read_result(folder, notes):
    """Reads the files that files_of returned, as one result."""
    result = read(os.path.join(folder, "suite.json"), "parts", notes)
    for kind, array in (("bench", "cases"), ("peers", "cases"), ("probes", "probes"), ("mission", "runs")):
        path = os.path.join(folder, kind + ".json")
        if not os.path.isfile(path):
            continue
        found = read(path, array, notes)
        if kind == "bench":
            result["cases"] = found["cases"]
        elif kind == "peers":
            peers = {c.get("name"): c.get("peers", []) for c in found["cases"]}
            result["cases"] = [{**c, "peers": peers.get(c.get("name"), [])} for c in result.get("cases", [])]
        else:
            head = ("device", "driver", "versions", "clocks", "timings", "why_no_timings", "ceilings")
            result[kind] = {k: v for k, v in found.items() if k not in head}
    result.setdefault("cases", [])
    return result


def read_goals():
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bench", "goals.json")
    return read(path, "goals", []) if os.path.isfile(path) else None


def unpacked(path, to):
    """The folder of an archive that --bring made: only the files that are read here."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if member.isfile() and os.path.dirname(member.name) in ("", ".") and name.endswith(".json"):
                    with open(os.path.join(to, name), "wb") as file:
                        file.write(archive.extractfile(member).read())
    except (OSError, tarfile.TarError, EOFError) as e:
        raise Bad(f"{path}: not an archive of --bring: {one_line(e)}")
    return to


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
    parser.add_argument("folders", nargs="*", metavar="WORKDIR|ARCHIVE")
    parser.error = lambda message: (_ for _ in ()).throw(Bad(message + "; see --help", 2))
    o = parser.parse_args()
    if not o.folders:
        raise Bad("expected a folder of results; see --help", 2)
    found = Found()
    with tempfile.TemporaryDirectory() as work:
        for i, folder in enumerate(o.folders):
            if os.path.isfile(folder):
                os.mkdir(os.path.join(work, str(i)))
                folder = unpacked(folder, os.path.join(work, str(i)))
            found.add_folder(folder)
    slug, result = make_result(found)
    folder = os.path.join(o.out, slug)
    if o.add and not os.path.isfile(os.path.join(folder, "suite.json")):
        raise Bad(f"--add: {folder} has no suite.json", 4)
    if o.add:
        if not result["timings"]:
            raise Bad(f"--add: {result['why_no_timings']}: cannot be added to a result with times")
        found.add_result(folder)
        slug, result = make_result(found)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise Bad(f"{folder}: {e.strerror}", 4)
    for name, content in files_of(result).items():
        write(os.path.join(folder, name), json.dumps(content, indent=1) + "\n")
    write(os.path.join(folder, "report.md"), page(result, read_goals()))
    with_time = sum(1 for c in result["cases"] if c["nacre"].get("cold_us") or c["nacre"].get("warm_us"))
    with_peer = sum(1 for c in result["cases"] if best_ratio(c))
    print(f"gpu_report: {os.path.join(folder, 'report.md')}: {len(result['cases'])} cases, {with_time} with times, "
          f"{with_peer} beside a peer" + ("" if result["timings"] else f"; no times: {result['why_no_timings']}"))


if __name__ == "__main__":
    try:
        main()
    except Bad as e:
        print(f"gpu_report: {e}", file=sys.stderr)
        sys.exit(e.code)
