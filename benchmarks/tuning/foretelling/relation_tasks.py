"""Sentences about people and things, to classify by a relation that they state: held-out families of encoders' tasks.

Who is the tallest, who owns it, where it is now, which stands in the middle, what was thought of it, is one named
twice: the words alone do not tell, since every word occurs under every label, but their order or their bond does.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping

from sentence_tasks import NAMES, THINGS, Row

PLACES = ("kitchen", "garden", "office", "cellar")
MEALS = ("soup", "bread", "fish", "salad", "rice", "cake", "cheese", "tea")
PRAISE = ("wonderful", "great", "lovely", "excellent", "delicious", "fresh")
BLAME = ("awful", "terrible", "dreadful", "horrible", "stale", "cold")


def tallest() -> list[Row]:
    """Three people in two comparisons, told in any order: who is the tallest, of the first four of the names?"""
    rng, found = random.Random(21), []
    for first, second, third in itertools.permutations(NAMES[:4], 3):
        for _ in range(14):
            told = [_compared(first, second, rng), _compared(second, third, rng)]
            rng.shuffle(told)
            found.append((f"{rng.choice(('I know that ', 'In fact ', ''))}{', and '.join(told)}", first))
    return found


def _compared(taller: str, shorter: str, rng: random.Random) -> str:
    return rng.choice((f"{taller} is taller than {shorter}", f"{shorter} is shorter than {taller}"))


def owners() -> list[Row]:
    """Two people own a thing each: who owns the thing that is named first in the text, of four?"""
    rng, found = random.Random(22), []
    for first, second in itertools.permutations(NAMES[:4], 2):
        for asked, other in itertools.permutations(THINGS, 2):
            told = [f"the {asked} belongs to {first}", f"the {other} belongs to {second}"]
            rng.shuffle(told)
            found.append((f"whose is the {asked}? {' and '.join(told)}", first))
    return found


def moved() -> list[Row]:
    """A thing is moved from one place to another: where is it now, of four?"""
    rng, found = random.Random(23), []
    for before, now in itertools.permutations(PLACES, 2):
        for thing, owner in itertools.product(THINGS, NAMES[:6]):
            told = rng.choice(
                (
                    f"{owner} took the {thing} out of the {before} and left it in the {now}",
                    f"the {thing} is in the {now}, where {owner} brought it from the {before}",
                    f"to the {now} {owner} carried the {thing} that had been in the {before}",
                )
            )
            found.append((told, now))
    return found


def repeated() -> list[Row]:
    """Five things in a row: is one of them named twice?"""
    rng, found = random.Random(24), []
    for _ in range(900):
        kept = rng.sample(THINGS, 5)
        is_repeated = rng.random() < 0.5
        if is_repeated:
            kept[rng.randrange(5)] = rng.choice([thing for thing in kept if kept.count(thing) == 1])
        found.append((" ".join(kept), "twice" if len(set(kept)) < len(kept) else "once"))
    return found


def middle() -> list[Row]:
    """Three things on a shelf, told from the left or from the right: which stands in the middle, of four?"""
    rng, found = random.Random(25), []
    for left, between, right in itertools.permutations(THINGS[:4], 3):
        for owner in NAMES:
            told = rng.choice(
                (
                    f"the {left}, the {between} and the {right} of {owner} stand side by side",
                    f"{owner} put the {between} between the {left} and the {right}",
                    f"left of the {between} of {owner} is the {left}, right of it the {right}",
                )
            )
            found.append((told, between))
    return found


def opinions() -> list[Row]:
    """One dish is praised and another blamed: what was said of the dish that is asked for?"""
    rng, found = random.Random(26), []
    for asked, other in itertools.permutations(MEALS, 2):
        for _ in range(12):
            is_praised = rng.random() < 0.5
            own, others = (PRAISE, BLAME) if is_praised else (BLAME, PRAISE)
            told = [f"the {asked} was {rng.choice(own)}", f"the {other} was {rng.choice(others)}"]
            rng.shuffle(told)
            found.append((f"how was the {asked}? {' but '.join(told)}", "good" if is_praised else "bad"))
    return found


RELATIONS: Mapping[str, Callable[[], list[Row]]] = {
    "tallest": tallest,
    "owners": owners,
    "moved": moved,
    "repeated": repeated,
    "middle": middle,
    "opinions": opinions,
}
