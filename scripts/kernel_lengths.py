#!/usr/bin/env python3
"""Checks that no function of a CUDA kernel is too long to be read at once.

  scripts/kernel_lengths.py [--self-test | --list N]

A __global__ or __device__ function of kernels/**/*.cu and *.cuh has at most 120 lines, from the line with that word to
its closing brace. A longer one becomes named device parts. --list N prints all functions of more than N lines, the
longest first. --self-test also plants functions of the limit and above, and expects just the latter to be found.

Exit codes: 0 none is longer, 1 one is, or the self-test failed.
"""
import pathlib
import re
import sys

LIMIT = 120
# A comment, a string or a character; digits keep the apostrophes of 1'000.
HIDDEN = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])'", re.S)
MACRO = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", re.M)
WORD = re.compile(r"\b__(?:global|device)__\b")


def blanked(text):
    """The text without comments, strings and lines of the preprocessor, with all its line ends."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match[0])
    return MACRO.sub(blank, HIDDEN.sub(blank, text))


def closing(text, at):
    """The index of the brace or bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] in "({") - (text[i] in ")}")
        if depth == 0:
            return i
    return len(text) - 1


def body(text, at):
    """(begin, end) of the body of the function declared at `at`, or None if it has none or is no function."""
    initialises = False
    while at < len(text):
        c = text[at]
        before = text[:at].rstrip()[-1:] if c in "{:" else ""
        if c in ";}":
            return None
        if c == "(":
            at = closing(text, at)
        elif c == "{" and before == "=":
            return None
        elif c == "{" and initialises and (before.isalnum() or before in "_>"):
            at = closing(text, at)  # a member of a constructor
        elif c == "{":
            return at, closing(text, at)
        elif c == ":" and text[at + 1:at + 2] != ":" and before != ":":
            initialises = True
        at += 1
    return None


def functions(text):
    """(line, length, name) of every __global__ and __device__ function with a body."""
    text, at, found = blanked(text), 0, []
    while match := WORD.search(text, at):
        at = match.end()
        span = body(text, at)
        if span is None:
            continue
        head = text[at:span[0]]
        bounds = head.find("__launch_bounds__")
        if bounds >= 0:
            head = head[closing(head, head.index("(", bounds)) + 1:]
        name = re.search(r"(operator\s*\S+?|~?\w+)\s*\(", head)
        line = text.count("\n", 0, match.start()) + 1
        found.append((line, text.count("\n", 0, span[1]) + 2 - line, name[1] if name else "?"))
        at = span[1] if match[0] == "__global__" else span[0]
    return found


def sources(root):
    """Path -> text of all files with device code."""
    files = sorted(f for f in (root / "kernels").rglob("*") if f.suffix in (".cu", ".cuh"))
    return {str(f.relative_to(root)): f.read_text(encoding="utf-8") for f in files}


def too_long(tree):
    return [f"{file}:{line}: {name} has {length} lines; a device function has at most {LIMIT}"
            for file, text in tree.items() for line, length, name in functions(text) if length > LIMIT]


def planted(length, head):
    """A function of `length` lines that begins with the lines `head`."""
    return head + "\n" * (length - head.count("\n") - 1) + "}\n"


def self_test(tree):
    """What the check misses, or reports without reason."""
    heads = {
        "plain": "__global__ void a(int n) {  // {\n",
        "bounds": "__global__ void __launch_bounds__(threads, Plan<K>::blocks(true))\n    a(const float* x) {\n",
        "method": "struct S {\n__device__ __forceinline__ int a() const { return 0; }\n};\n"
                  "__device__ __forceinline__ auto a(T (&v)[2]) -> decltype(f(v)) {\n",
        "constructor": "__device__ explicit A(int n) : first{n}, second(n), third<2>{n} {\n",
        "text": "__device__ void a() {\n  fail(\"}\"); put('}'); /* } */ const int n = 1'000;\n",
        "lambda": "__device__ void a() {\n  const auto f = [&] { return 1; };\n",
        "declared": "__device__ const int table[] = {1, 2};\n__device__ void b(int);\n__device__ void a(int n) {\n",
    }
    wrong = []
    for what, head in heads.items():
        lead = head[:head.rindex("__global__" if "__global__" in head else "__device__")].count("\n")
        for length in (LIMIT, LIMIT + 1):
            reported = too_long({"f.cu": "#define b() { __device__ \\\n  {\n" + planted(length + lead, head)})
            if len(reported) != (length > LIMIT) or not all(f" has {length} lines" in line for line in reported):
                wrong.append(f"self-test: a function of {length} lines ({what}) gives {reported}")
    # Every file with kernels: its first kernel, lengthened.
    for file, text in tree.items():
        kernel = re.search(r"^.*__global__[^;{]*\{", blanked(text), re.M)
        if kernel is None:
            continue
        where = f"{file}:{text.count(chr(10), 0, kernel.start()) + 1}:"
        if not any(line.startswith(where) for line in too_long({file: text[:kernel.end()] + "\n" * LIMIT +
                                                               text[kernel.end():]})):
            wrong.append(f"self-test: a longer kernel at {where} is not found")
    return wrong


def main(arguments):
    tree = sources(pathlib.Path(__file__).resolve().parent.parent)
    if len(arguments) == 2 and arguments[0] == "--list":
        rows = [(length, f"{file}:{line}", name) for file, text in tree.items() for line, length, name in functions(text)]
        for length, where, name in sorted(rows, reverse=True):
            if length > int(arguments[1]):
                print(f"{length:4} {where} {name}")
        return 0
    if arguments not in ([], ["--self-test"]):
        print(__doc__)
        return 1
    problems = too_long(tree) + (self_test(tree) if arguments else [])
    print("\n".join(problems) if problems else
          f"{sum(len(functions(text)) for text in tree.values())} device functions have at most {LIMIT} lines each")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
