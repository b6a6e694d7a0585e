#!/usr/bin/env python3
"""Checks that two pages agree with the sources.

  scripts/check_adding.py [--self-test]

docs/adding.md quotes the examples of tests/adding. A region of an example lies between the comment lines "// [NAME]"
and "// [/NAME]". On the page, the line "<!-- FILE [NAME] -->" precedes the block of code, which has the
region's text without its common indentation. Every block of C++ is such a quotation, and every region is quoted once.
Every path of the page must exist, except those with a word in capitals, which stands for a name.

docs/headers.md lists the public headers: every header of include/nacre once, with the target that it belongs to as
CMakeLists.txt installs it.

--self-test plants differences and expects each to be found.

Exit codes: 0 all agree, 1 something differs, or the self-test failed.
"""
import fnmatch
import itertools
import pathlib
import re
import sys
import textwrap

PAGE, INDEX, EXAMPLES, BUILD = "docs/adding.md", "docs/headers.md", "tests/adding", "CMakeLists.txt"
OPEN = re.compile(r"\s*// \[(/?)([a-z ]+)\]$")
MARK = re.compile(r"<!-- (\S+) \[([a-z ]+)\] -->$")
TOPS = ["bench", "docs", "examples", "include", "kernels", "lib", "scripts", "tests"]
PATH = re.compile(rf"`((?:{'|'.join(TOPS)})/[^`\s]*|CMakeLists\.txt)`")
ROW = re.compile(r"\| `([^`]+\.h)` \| ([^|]*) \| ([^|]*) \|$")


def read_tree(root):
    """Path -> text of the pages, the build file and the examples, or None for all other paths in TOPS."""
    tree = {str(f.relative_to(root)): None for top in TOPS for f in [root / top, *sorted((root / top).rglob("*"))]}
    for name in (PAGE, INDEX, BUILD):
        tree[name] = (root / name).read_text(encoding="utf-8")
    for file in sorted((root / EXAMPLES).iterdir()):
        tree[str(file.relative_to(root))] = file.read_text(encoding="utf-8")
    return tree


def regions(tree):
    """(file, name) -> lines, of all examples, and what is wrong with their marks."""
    found, problems = {}, []
    for file in (f for f in tree if f.startswith(EXAMPLES + "/") and tree[f] is not None):
        name, begin = None, 0
        lines = tree[file].splitlines()
        for number, line in enumerate(lines, 1):
            match = OPEN.match(line)
            if not match:
                continue
            if bool(match[1]) != (name is not None) or (match[1] and match[2] != name) or (file, match[2]) in found:
                problems.append(f"{file}:{number}: {line} does not fit the marks before it")
            elif match[1]:
                found[file, name] = textwrap.dedent("\n".join(lines[begin:number - 1])).split("\n")
            name, begin = (None, 0) if match[1] else (match[2], number)
        if name is not None:
            problems.append(f"{file}: // [{name}] is not closed")
    return found, problems


def check_page(tree):
    """A line of text for everything that is wrong on the page of examples."""
    found, problems = regions(tree)
    lines, quoted, number = tree[PAGE].splitlines(), set(), 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if not line.startswith("```"):
            continue
        end = next((i for i in range(number, len(lines)) if lines[i].startswith("```")), len(lines))
        block, here = lines[number:end], f"{PAGE}:{number}"
        mark = MARK.match(lines[number - 2]) if number > 1 else None
        number = end + 1
        if mark is None:
            if line.strip("` ") == "cpp":
                problems.append(f"{here}: a block of code without a mark of its region")
            continue
        key = (mark[1], mark[2])
        if key not in found:
            problems.append(f"{here}: {mark[1]} has no region [{mark[2]}]")
        elif key in quoted:
            problems.append(f"{here}: {mark[1]} [{mark[2]}] is quoted twice")
        elif block != found[key]:
            pairs = list(itertools.zip_longest(block, found[key], fillvalue="(end)"))
            at = next(i for i, (a, b) in enumerate(pairs) if a != b)
            problems.append(f'{here}: line {at + 1} of the block is "{pairs[at][0]}", in {mark[1]} [{mark[2]}] it is '
                            f'"{pairs[at][1]}"')
        quoted.add(key)
    problems += [f"{file}: [{name}] is not quoted in {PAGE}" for file, name in found if (file, name) not in quoted]
    for path in sorted(set(PATH.findall(tree[PAGE]))):
        if not re.search(r"[A-Z]{2}", path.replace("CMakeLists", "")) and path.rstrip("/") not in tree:
            problems.append(f"{PAGE}: {path} does not exist")
    return problems


def target_of(build, header):
    """nacre::nacre if CMakeLists.txt installs the header, else nacre::training, whose headers are not installed."""
    single = re.findall(r"include/nacre/(\S+\.h)\b", build)
    excluded = re.findall(r"PATTERN (\S+) EXCLUDE", build)
    parts = header.split("/")
    paths = ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]
    out = any(fnmatch.fnmatch(path, pattern) for path in paths for pattern in excluded)
    return "nacre::nacre" if header in single or not out else "nacre::training"


def check_index(tree):
    """A line of text for everything that is wrong in the index of headers."""
    headers = {f[len("include/nacre/"):] for f in tree if f.startswith("include/nacre/") and f.endswith(".h")}
    listed, problems = set(), []
    for number, line in enumerate(tree[INDEX].splitlines(), 1):
        row = ROW.match(line)
        if not row:
            if line.startswith("| `"):
                problems.append(f"{INDEX}:{number}: a row of another form than | `HEADER.h` | TARGET | TEXT |")
            continue
        header, target, text = row[1], row[2].strip(" `"), row[3].strip()
        here = f"{INDEX}:{number}: {header}"
        if header in listed:
            problems.append(f"{here} is listed twice")
        elif header not in headers:
            problems.append(f"{here} does not exist in include/nacre")
        elif target != target_of(tree[BUILD], header):
            problems.append(f"{here} has the target {target}, expected {target_of(tree[BUILD], header)}")
        elif not text:
            problems.append(f"{here} has no text")
        listed.add(header)
    return problems + [f"{INDEX}: {header} is missing" for header in sorted(headers - listed)]


def check(tree):
    return check_page(tree) + check_index(tree)


def self_test(tree):
    """Plants one difference at a time. Returns what was not found."""
    missed, planted = [], 0

    def expect(what, changes, words):
        nonlocal planted
        planted += 1
        problems = check({**tree, **changes})
        if not any(words in p for p in problems):
            missed.append(f"{what} gives {problems}, expected \"{words}\"")

    for (file, name), lines in regions(tree)[0].items():
        text, end = tree[file], f"// [/{name}]"
        at = text.index("\n", text.index(f"// [{name}]")) + 1
        for place, what in ((at, "first"), (text.index("\n", at), "end of the first"), (text.index(end), "last")):
            changed = text[:place] + " int x; " + ("\n" if what == "last" else "") + text[place:]
            expect(f"another {what} line of {name}", {file: changed}, f"{file} [{name}]")
        mark = f"<!-- {file} [{name}] -->\n"
        expect(f"no mark of {name}", {PAGE: tree[PAGE].replace(mark, "")}, "without a mark")
        expect(f"no region {name}", {file: tree[file].replace(f"// [{name}]", "").replace(f"// [/{name}]", "")},
               f"no region [{name}]")
    expect("a region that is not quoted", {EXAMPLES + "/new.cpp": "// [new]\n// [/new]\n"}, "is not quoted")
    expect("a region that is not closed", {EXAMPLES + "/new.cpp": "// [new]\n"}, "is not closed")
    expect("a region in a region", {EXAMPLES + "/new.cpp": "// [new]\n// [other]\n// [/new]\n"}, "does not fit")
    expect("a path that does not exist", {PAGE: tree[PAGE] + "\n`lib/no.cpp`\n"}, "lib/no.cpp does not")
    rows = [line for line in tree[INDEX].splitlines() if ROW.match(line)]
    for row in rows:
        header = ROW.match(row)[1]
        expect(f"no row of {header}", {INDEX: tree[INDEX].replace(row + "\n", "")}, f"{header} is missing")
    one = rows[0]
    expect("a row twice", {INDEX: tree[INDEX] + one + "\n"}, "is listed twice")
    expect("a header that does not exist", {INDEX: tree[INDEX] + "| `no.h` | `nacre::nacre` | x |\n"}, "no.h does not")
    expect("a row without text", {INDEX: tree[INDEX].replace(one, one.rsplit("|", 2)[0] + "|  |")}, "has no text")
    expect("a new header", {"include/nacre/nn/new.h": None}, "nn/new.h is missing")
    one = next(row for row in rows if "`nacre::training`" in row)
    expect("another target", {INDEX: tree[INDEX].replace(one, one.replace("::training", "::nacre"))}, "has the target")
    expect("another installed header", {BUILD: tree[BUILD].replace("PATTERN log EXCLUDE", "")}, "has the target")
    if planted < 60:
        missed.append(f"{planted} differences were planted, expected at least 60")
    return missed


def main():
    tree = read_tree(pathlib.Path(__file__).resolve().parent.parent)
    problems = check(tree)
    if not problems and "--self-test" in sys.argv[1:]:
        problems = self_test(tree)
    for problem in problems:
        print(f"check_adding: {problem}", file=sys.stderr)
    if problems:
        return 1
    print(f"{len(regions(tree)[0])} regions are quoted as they are, and the index has all headers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
