"""Build a labelled text data set from documentation that is already on this machine.

"Which standard-library module does this documentation belong to?" Each text is the beginning of a docstring of the
standard library that runs this script, each label one of 16 modules. `--package NAME` asks the same question about
the subpackages of an installed package.

The source files are read and parsed, never imported or executed: the result depends on the files alone, so the same
Python gives the same bytes. What makes the answer worth something:

- a text that names its own module is left out (see `Topic.is_named_in`); so is one that several classes share;
- of texts that differ only in case, spacing or punctuation one is kept;
- test packages and vendored code are skipped;
- a class has at least 60 texts and keeps at most 200, chosen by content hash.

It knows nothing of Foreword, tasks or splits: it ends at a JSONL file with `text`, `label` and `source`.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import inspect
import json
import os
import re
import sys
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SHORTEST_TEXT, LONGEST_TEXT = 40, 400  # characters
FEWEST_TEXTS, MOST_TEXTS = 60, 200  # per class
MOST_CLASSES = 16

# Each class and the files that implement it: a pure-Python twin of an accelerated module carries its documentation.
STANDARD_LIBRARY: Mapping[str, tuple[str, ...]] = {
    "asyncio": ("asyncio",),
    "collections": ("collections", "_collections_abc"),
    "decimal": ("decimal", "_pydecimal"),
    "email": ("email",),
    "http": ("http",),
    "importlib": ("importlib",),
    "inspect": ("inspect",),
    "logging": ("logging",),
    "mailbox": ("mailbox",),
    "multiprocessing": ("multiprocessing",),
    "pathlib": ("pathlib",),
    "pdb": ("pdb", "bdb"),
    "tarfile": ("tarfile",),
    "unittest": ("unittest",),
    "urllib": ("urllib",),
    "xml": ("xml",),
}

SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "idle_test", "_vendor", "externals", "site-packages"})
UNDERLINES = "-=~^"
END_OF_PROSE = re.compile(
    r"^\s*(>>>|[-=~^]{3,}\s*$|:(param|type|returns?|rtype|raises)\b|\.\. |"
    r"(args|arguments|parameters|returns|return|examples?|usage|notes?|see also|shape|inputs?|outputs?)\s*:{1,2}\s*$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Topic:
    """A class of the data set: its label and the modules, relative to the folder, whose documentation belongs to it."""

    label: str
    modules: tuple[str, ...]

    def is_named_in(self, text: str) -> bool:
        """Whether the text gives the answer away: a name of the topic as a word, in any case, singular or plural.

        A name is the last part of the label or of a module, without leading underscores. An underscore ends a word,
        so `http_proxy` names `http`; `HTTPServer` does not.

        >>> topic = Topic("http", ("http",))
        >>> topic.is_named_in("An HTTP request."), topic.is_named_in("Base of HTTPServer.")
        (True, False)
        """
        names = {name.rpartition(".")[2].lstrip("_") for name in (self.label, *self.modules)}
        stems = "|".join(re.escape(name.removesuffix("s")) for name in sorted(names))
        return re.search(rf"(?<![^\W_])({stems})s?(?![^\W_])", text, re.IGNORECASE) is not None


@dataclass(frozen=True, order=True)
class Example:
    """One labelled text; `source` is the dotted name of what it documents."""

    label: str
    source: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The examples, in the order of label, source and text, and the files that could not be parsed."""

    examples: tuple[Example, ...]
    unreadable: tuple[Path, ...]

    def count_by_label(self) -> dict[str, int]:
        """How many texts each label has, in the order of the labels."""
        return dict(Counter(example.label for example in self.examples))


class BuildError(Exception):
    """The data set cannot be built; the message says what was expected, what was found and what to do."""


def prose(docstring: str) -> str:
    """The beginning of a docstring as one line of at most 400 characters, cut after a sentence where one ends late.

    It stops at the first interactive example, underlined heading, directive or list of parameters.

    >>> prose('''Stop the
    ...    clock.
    ...
    ...    >>> stop()''')
    'Stop the clock.'
    """
    kept: list[str] = []
    for line in inspect.cleandoc(docstring).splitlines():
        if END_OF_PROSE.match(line):
            if line.strip()[0] in UNDERLINES and kept:
                kept.pop()  # the heading itself
            break
        kept.append(line)
    text = " ".join(" ".join(kept).split())
    if len(text) <= LONGEST_TEXT:
        return text
    head = text[: LONGEST_TEXT + 1]
    end_of_sentence = head.rfind(". ")
    return head[: end_of_sentence + 1] if end_of_sentence >= LONGEST_TEXT // 2 else head.rpartition(" ")[0]


def documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Every docstring at or below a module, class or function: the dotted name it documents, and the raw docstring."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=False)
        if docstring is not None:
            yield name, docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from documented(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from documented(child, name)


def source_files(folder: Path, module: str) -> Iterator[Path]:
    """The Python files of a module or package below the folder, tests left out, in the order of their paths."""
    path = folder.joinpath(*module.split("."))
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
        within = file.relative_to(folder)
        is_test = file.name.startswith("test_") or file.name == "conftest.py"
        if file.is_file() and not is_test and SKIPPED_FOLDERS.isdisjoint(within.parts):
            yield file


def collect(folder: Path, topics: Iterable[Topic], *, root: str = "") -> Corpus:
    """All usable texts of the topics: distinct, within one class only, long enough, and without their class's name.

    `root` is put before the dotted names in `source`: the name of the package that the folder holds.
    """
    distinct: dict[str, Example] = {}
    labels_of: defaultdict[str, set[str]] = defaultdict(set)
    unreadable: list[Path] = []
    for topic in topics:
        for file in (file for module in topic.modules for file in source_files(folder, module)):
            try:
                with warnings.catch_warnings(action="ignore"):  # about the escape sequences of other people's code
                    tree = ast.parse(file.read_bytes())
            except (SyntaxError, ValueError):
                unreadable.append(file)
                continue
            parts = [part for part in file.relative_to(folder).with_suffix("").parts if part != "__init__"]
            for source, docstring in documented(tree, ".".join([root, *parts] if root else parts)):
                text = prose(docstring)
                same_text = re.sub(r"\W", "", text).casefold()
                labels_of[same_text].add(topic.label)
                if len(text) >= SHORTEST_TEXT and not topic.is_named_in(text):
                    found = Example(topic.label, source, text)
                    distinct[same_text] = min(found, distinct.get(same_text, found))
    kept = [example for same_text, example in distinct.items() if len(labels_of[same_text]) == 1]
    return Corpus(tuple(sorted(kept)), tuple(unreadable))


def capped(corpus: Corpus) -> Corpus:
    """The corpus with at most 200 texts a class: those whose SHA-256 comes first, a draw that no order can sway."""
    by_hash = sorted(corpus.examples, key=lambda example: hashlib.sha256(example.text.encode()).digest())
    taken: Counter[str] = Counter()
    kept: list[Example] = []
    for example in by_hash:
        taken[example.label] += 1
        if taken[example.label] <= MOST_TEXTS:
            kept.append(example)
    return Corpus(tuple(sorted(kept)), corpus.unreadable)


def from_standard_library() -> Corpus:
    """The 16 classes of the standard library that runs this script; `BuildError` where its sources are not there."""
    folder = Path(sysconfig.get_path("stdlib"))
    topics = [Topic(label, modules) for label, modules in STANDARD_LIBRARY.items()]
    return capped(_demand_enough(collect(folder, topics), list(STANDARD_LIBRARY), where=str(folder)))


def from_package(name: str, classes: Sequence[str] = ()) -> Corpus:
    """The same kind of data set from an installed package: its subpackages and modules are the classes.

    Without `classes` these are the 16 with most texts, among the public ones with at least 60. A class may be dotted
    (`models.bert`); its label is the full dotted name.
    """
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"expected: the name of an installed package\nfound:    {name}\nto do:    pip install {name}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    chosen = list(classes) or sorted(
        path.stem
        for path in folder.iterdir()
        if not path.name.startswith((".", "_")) and (path.is_dir() or path.suffix == ".py")
    )
    topics = [Topic(f"{name}.{module}", (module,)) for module in dict.fromkeys(chosen)]
    corpus = collect(folder, topics, root=name)
    counts = corpus.count_by_label()
    labels = [topic.label for topic in topics]
    if not classes:
        enough = (label for label in labels if counts.get(label, 0) >= FEWEST_TEXTS)
        labels = sorted(enough, key=lambda label: (-counts[label], label))[:MOST_CLASSES]
    kept = tuple(example for example in corpus.examples if example.label in labels)
    return capped(_demand_enough(Corpus(kept, corpus.unreadable), labels, where=str(folder)))


def _demand_enough(corpus: Corpus, labels: Sequence[str], *, where: str) -> Corpus:
    counts = corpus.count_by_label()
    scarce = {label: counts.get(label, 0) for label in labels if counts.get(label, 0) < FEWEST_TEXTS}
    if len(labels) < 2 or scarce:
        found = ", ".join(f"{label} with {count}" for label, count in scarce.items()) or f"{len(labels)} classes"
        raise BuildError(
            f"expected: at least 2 classes, each with at least {FEWEST_TEXTS} usable texts\n"
            f"found:    {found} (read from {where})\n"
            "to do:    use a Python or package that is installed with its .py sources, or name other --classes"
        )
    return corpus


def write(corpus: Corpus, folder: Path) -> Path:
    """Write `data.jsonl` into the folder, all or nothing: an earlier file stays whole until the new one is."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "data.jsonl"
    partial = folder / f".data-{os.getpid()}.jsonl"
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            for example in corpus.examples:
                row = {"text": example.text, "label": example.label, "source": example.source}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, write, and print how many texts each class has; exit code 2 says that nothing was written, and why."""
    parser = argparse.ArgumentParser(description="Build a labelled text data set from documentation on this machine.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder for data.jsonl")
    parser.add_argument("--package", help="use the subpackages of this installed package instead")
    parser.add_argument("--classes", default="", help="subpackages, separated by commas (default: the best documented)")
    options = parser.parse_args(arguments)
    if options.classes and not options.package:
        parser.error("--classes names subpackages: give their --package")
    classes = [part.strip() for part in options.classes.split(",") if part.strip()]
    try:
        corpus = from_package(options.package, classes) if options.package else from_standard_library()
        target = write(corpus, options.out)
    except (BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    counts = corpus.count_by_label()
    for label, count in counts.items():
        print(f"{count:6}  {label}")
    print(f"{len(corpus.examples):6}  texts in {len(counts)} classes: {target}")
    if corpus.unreadable:
        print(f"{len(corpus.unreadable):6}  files could not be parsed, for example {corpus.unreadable[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
