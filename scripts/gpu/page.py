"""The page that scripts/gpu_report.py writes of a result."""
import math
import re

SHOWN_CONTEXT = ("device", "description", "commit", "small")  # shown in separate rows or in words


def one_line(x):
    return re.sub(r"\s+", " ", str(x)).strip()[:300]


# ---- cells ---------------------------------------------------------------------------------------------------------------
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


# ---- goals ----------------------------------------------------------------------------------------------------------------
NOT_MEASURED = "not measured"


def goal_text(goal):
    words = {"us": "{} us", "of_floor": "{:.0%} of the floor", "x_realtime": "{} x real time", "x_eager": "{} x PyTorch eager",
             "x_best": "{} x the best peer"}
    return " and ".join(words[k].format(v) for k, v in goal.items() if k in words)


def reached(goal, case, mine, floor):
    """Whether each condition of a goal holds; None where something for it was not measured."""
    eager = next((p for p in case["peers"] if p["peer"] == "eager" and "error" not in p), {})
    kind = "cold_us" if case["nacre"].get("cold_us") else "warm_us"
    told = []
    for k, v in goal.items():
        if k == "us":
            told.append(mine <= v)
        elif k == "of_floor":
            told.append(floor / mine >= v if floor else None)
        elif k == "x_realtime":
            x = case["nacre"].get("more", {}).get("x_realtime")
            told.append(x >= v if x else None)
        elif k == "x_eager":
            told.append(eager[kind] / mine >= v if eager.get(kind) else None)
        elif k == "x_best":
            best = best_ratio(case)
            told.append(best >= v if best else None)
    return False if False in told else None if None in told or not told else True


def goal_row(goal, case, same_device):
    row = [cell(goal["what"]), cell(goal["case"]), goal_text(goal["goal"])]
    nacre = case["nacre"] if case else {}
    mine = nacre.get("cold_us") or nacre.get("warm_us")
    percentage = nacre.get("floor%") if nacre.get("cold_us") else nacre.get("warm_floor%") or nacre.get("floor%")
    floor = mine * percentage / 100 if mine and percentage else None
    row.append(us(floor) if floor else f"{us(goal['floor_us'])}, counted" if goal.get("floor_us") else NOT_MEASURED)
    best = case and (case["best_cold_peer"] or case["best_warm_peer"])
    row.append(f"{us(best['us'])} ({cell(best['peer'])})" if best else NOT_MEASURED)
    row.append(us(mine) if mine else NOT_MEASURED)
    told = reached(goal["goal"], case, mine, floor) if mine and same_device else None
    return row + [{True: "yes", False: "no", None: "-" if mine else NOT_MEASURED}[told]]


def goals_section(result, goals):
    if not goals:
        return []
    cases = {c["name"]: c for c in result["cases"]}
    device = goals.get("device", "")
    same = bool(result["device"]) and device in result["device"]
    lines = ["## Goals", "", f"For one {device}, of bench/goals.json. Times in microseconds, cold where there is a cold time. A floor is "
             "that of the ceilings measured in the same process, or, where nothing is measured, the one counted with "
             + goals.get("counted_with", "assumed ceilings") + ".", ""]
    if not same and result["timings"]:
        lines += ["This is another device, so its results are not compared with the goals.", ""]
    rows = [goal_row(g, cases.get(g["case"]), same) for g in goals["goals"]]
    return lines + table(["what", "case", "goal", "floor", "best peer", "ours", "reached"], rows)


# ---- probes, the mission ----------------------------------------------------------------------------------------------------
def found(probe):
    if probe.get("outcome") == "failed":
        return "DOES NOT HOLD" if probe.get("answered") is True else "no answer"
    return {"ok": "ok", "skipped": "cannot run here"}.get(probe.get("outcome"), "-")


def probes_section(result):
    probes = (result.get("probes") or {}).get("probes")
    if not probes:
        return []
    rows = [[cell(p.get("probe") or "-"), found(p), cell(p.get("asks") or "-"), cell(p.get("says") or "-")] for p in probes]
    return ["## Probes", ""] + table(["probe", "", "question", "finding"], rows)


def number(x, form):
    return form.format(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else "-"


def mission_section(result):
    mission = result.get("mission")
    if not mission:
        return []
    lines = ["## Training by the command of docs/training.md", "", f"`{one_line(mission.get('command', '-'))}`", ""]
    for run in mission.get("runs", []):
        best = run.get("best_model") or {}
        lines += [f"### {one_line(run.get('precision', '-'))}", "",
                  f"Ended: {one_line(run.get('ended', '-'))}." +
                  (f" Best model: {best['bytes']} bytes, SHA-256 {best.get('sha256', '-')}." if best.get("bytes") else ""), ""]
        rows = [[number(e.get("epoch"), "{:g}"), number(e.get("step"), "{:g}"), number(e.get("valid/loss"), "{:.3f}"),
                 number(e.get("valid/snr"), "{:+.2f}"), number(e.get("valid/si_sdr"), "{:+.2f}"),
                 number(e.get("valid/output_mean"), "{:+.4f}"), number(e.get("valid/output_std"), "{:.3f}"),
                 number(e.get("valid/input_std"), "{:.3f}"), number(e.get("valid/audio_seconds_per_second"), "{:.0f}")]
                for e in run.get("epochs", [])]
        if rows:
            lines += table(["epoch", "step", "loss", "SNR, dB", "SI-SDR, dB", "output mean", "output std", "input std",
                            "x real time"], rows)
    return lines


# ---- the page --------------------------------------------------------------------------------------------------------------
def page(result, goals):
    suite, context = result["suite"], result["context"]
    lines = [f"# {result['device'] or 'GPU of unknown name'}", ""]
    if result["timings"]:
        lines += ["Times are in microseconds: cold with the caches flushed before each run, warm run after run; the spread is from "
                  "the 10th to the 90th percentile. Percentages are of the copy and arithmetic rates measured in the same process; "
                  "floor is the larger of the two minimum times, divided by the measured time. The best peer is the fastest peer "
                  "listed below, with any arithmetic, except gemm, whose unfolding is not timed, and products whose codes are not "
                  "exact. A ratio is the time of the peer divided by that of nacre: above 1, nacre is faster. \"-\" was not measured.", ""]
    else:
        lines += [f"No times: {result['why_no_timings']}. The page shows that the suite ran, but not how fast.", ""]
    rows = [["commit", cell(result["commit"] or "-")], ["description", cell(context.get("description") or "-")],
            ["driver", cell(suite.get("driver") or "-")]]
    rows += [[words, cell(suite[k])] for k, words in (("cuda", "CUDA of the driver"), ("clocks", "clocks at most, power limit"),
                                                      ("compiler", "built by")) if suite.get(k)]
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
    if suite.get("devices"):
        lines += ["```"] + [str(line).replace("`", "'").rstrip() for line in suite["devices"]] + ["```", ""]
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

    lines += goals_section(result, goals) + probes_section(result) + mission_section(result)
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
