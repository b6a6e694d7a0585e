#!/usr/bin/env python3
"""Prints the include graph of the folders and checks that every include goes to a lower floor.

  scripts/include_graph.py [--self-test]

A room is a folder below include/nacre, lib or kernels, with all its files, or examples. A folder of include/nacre and the
folder of lib with the same name are one room; "ground" is the files directly in include/nacre. FLOORS is the only place where
the order is written. A room may include itself and rooms of lower floors, so the rooms have no cycle.

It prints the floors from the top and, for each room, the rooms that it includes. --self-test plants includes to the same or a
higher floor and expects each to be found.

Exit codes: 0 every include goes to a lower floor, 1 some do not, or the self-test failed.
"""
import pathlib
import re
import sys

FLOORS = [  # from the lowest to the highest
    ["ground"],
    ["ops", "files"],
    ["kernels/runtime", "nn", "data"],
    ["kernels/norm", "kernels/pointwise", "kernels/quantizer", "kernels/spectral", "kernels/loss", "kernels/optimizer",
     "discriminators", "systems", "log"],
    ["kernels/conv", "losses", "formats"],
    ["codec", "kernels/recurrent"],
    ["training", "coding"],
    ["report"],
    ["examples"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ROOTS = ["include", "kernels", "lib", "examples"]  # folders that "..." in an include is resolved against
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"\s]+)"')  # cxx20.h has a message with spaces, which is not an include


def room_of(path):
    """The room of a file, by its path below the root of the tree."""
    parts = path.split("/")
    if parts[0] == "examples":
        return "examples"
    if parts[0] == "include":
        return parts[2] if len(parts) > 3 else "ground"
    folder = parts[1] if len(parts) > 2 else "."
    return folder if parts[0] == "lib" else "kernels/" + folder


def read_tree(root):
    """Path -> lines, of all sources."""
    return {
        str(file.relative_to(root)): file.read_text(encoding="utf-8").splitlines()
        for top in ROOTS
        for file in sorted((root / top).rglob("*"))
        if file.suffix in SUFFIXES
    }


def arrows(tree, files):
    """(file, line number, the text of the include, the file it names or None) of every include with quotes in `files`."""
    for file in files:
        for number, line in enumerate(tree[file], 1):
            match = INCLUDE.match(line)
            if match:
                places = [f"{top}/{match[1]}" for top in ROOTS]
                yield file, number, match[1], next((place for place in places if place in tree), None)


def check(tree, files=None):
    """Room -> rooms that it includes, and a line of text for everything that is wrong, of `files` or of all."""
    files = tree if files is None else files
    graph = {room_of(file): set() for file in files}
    problems = [f"{room}: has no floor; expected a place in FLOORS" for room in sorted(graph) if room not in FLOOR]
    for file, number, text, target in arrows(tree, files):
        here = f'{file}:{number}: includes "{text}"'
        if target is None:
            problems.append(f"{here}, but no file has this name; expected a path below {', '.join(ROOTS)}")
            continue
        a, b = room_of(file), room_of(target)
        if a == b or a not in FLOOR or b not in FLOOR:
            continue
        graph[a].add(b)
        if FLOOR[b] >= FLOOR[a]:
            where = "the same" if FLOOR[b] == FLOOR[a] else "a higher"
            problems.append(f"{here}: {a} is on floor {FLOOR[a]}, {b} on {where} one, {FLOOR[b]}")
    return graph, problems


def self_test(tree):
    """Plants one include for each pair of rooms between which none may be. Returns what was not found."""
    headers = {}
    for file in tree:
        if file.endswith((".h", ".cuh")):
            headers.setdefault(room_of(file), file)
    sources = {room_of(file): file for file in tree}
    missed, planted = [], 0
    for room, source in sources.items():
        for other, header in headers.items():
            if other == room or FLOOR[other] < FLOOR[room]:
                continue
            text = header.split("/", 1)[1]
            _, problems = check({**tree, source: [*tree[source], f'#include "{text}"']}, [source])
            planted += 1
            if len(problems) != 1 or not problems[0].startswith(f"{source}:{len(tree[source]) + 1}: "):
                missed.append(f'an include of "{text}" in {source} gives {problems}, expected one problem in its line')
    lost = {**tree, "lib/nowhere/new.cpp": ['#include "no/such.h"']}
    if len(check(lost)[1]) != 2:
        missed.append("a folder without a floor and an include of no file are not both found")
    if planted < 20:
        missed.append(f"{planted} includes were planted, expected at least 20")
    return missed


def main():
    tree = read_tree(pathlib.Path(__file__).resolve().parent.parent)
    graph, problems = check(tree)
    for floor, rooms in reversed(list(enumerate(FLOORS))):
        for room in rooms:
            print(f"{floor}  {room:18} -> {' '.join(sorted(graph.get(room, ()))) or '-'}")
    if not problems and "--self-test" in sys.argv[1:]:
        problems = self_test(tree)
    for problem in problems:
        print(f"include_graph: {problem}", file=sys.stderr)
    if problems:
        return 1
    print(f"{len(graph)} rooms on {len(FLOORS)} floors, {sum(map(len, graph.values()))} arrows, all of them down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
