"""Labelled examples written out as a text that stands before a prompt, as many as there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foreword.engine.host import Host
from foreword.engine.rendering import Template, tokens
from foreword.tuning.examples import Example

# Demonstrations may fill at most this share of what the model reads, so that room is left for the input.
PROMPT_SHARE = 0.5


@dataclass(frozen=True)
class Demonstrations:
    """The text, and how many of the given examples are in it: the first ones."""

    text: str
    used: int
    given: int


def demonstrations(host: Host, template: Template, examples: Sequence[Example]) -> Demonstrations:
    """The first examples in `template`, each with its answer and an empty line behind it, while they have room."""
    space = "" if not template.after or template.after[-1].isspace() else " "
    room = int(PROMPT_SHARE * host.max_positions)
    text, used = "", 0
    for example in examples:
        longer = f"{text}{template.before}{example.input}{template.after}{space}{example.target}\n\n"
        if len(tokens(host, longer, special=False)) > room:
            break
        text, used = longer, used + 1
    return Demonstrations(text, used, len(examples))


def first_examples(examples: Sequence[Example], labels: Sequence[str], count: int | None) -> list[Example]:
    """The first `count` examples of each label in the split's order, label by label in turn; all for None."""
    if not labels:
        return list(examples[:count])
    by_label = [[x for x in examples if x.target == label][:count] for label in labels]
    longest = max(map(len, by_label))
    return [found[turn] for turn in range(longest) for found in by_label if turn < len(found)]
