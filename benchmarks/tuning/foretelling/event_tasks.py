"""Sentences about what happened between people and things: held-out families of encoders' tasks that a prefix may do.

Who has it now, who did not come, which day holds after all, who chased whom, who sits on the left, which thing costs
more. As in relation_tasks.py every word occurs under every label; an encoder that has read much text knows these bonds,
and what it lacks is only which of them is asked for. They were drawn up because too few of the pairs before were a
prefix's to tell whether such pairs are found.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping

from sentence_tasks import NAMES, THINGS, Row

FOUR, OTHERS = NAMES[:4], NAMES[4:]
DAYS = ("Monday", "Tuesday", "Thursday", "Friday")
MEETINGS = ("meeting", "lesson", "concert", "dinner", "exam", "visit")
ANIMALS = ("dog", "cat", "goat", "horse")


def given() -> list[Row]:
    """One gives another a thing: who has it now, of four?"""
    rng, found = random.Random(41), []
    for giver, taker in itertools.permutations(FOUR, 2):
        for thing, start in itertools.product(THINGS, ("", "Yesterday ", "In the end ")):
            told = rng.choice(
                (
                    f"{giver} gave the {thing} to {taker}",
                    f"{giver} handed {taker} the {thing}",
                    f"{taker} got the {thing} from {giver}",
                    f"{taker} was given the {thing} by {giver}",
                )
            )
            found.append((start + told, taker))
    return found


def missing() -> list[Row]:
    """Of three people one did not come: who, of four?"""
    rng, found = random.Random(42), []
    for first, second, absent in itertools.permutations(FOUR, 3):
        for meeting, friend in itertools.product(MEETINGS, OTHERS[:5]):
            told = rng.choice(
                (
                    f"{first} and {second} came to the {meeting} of {friend}, but {absent} did not",
                    f"{absent} missed the {meeting} of {friend}, where {first} met {second}",
                    f"at the {meeting} of {friend} were {first} and {second}, without {absent}",
                    f"all but {absent} were there, {first} with {second}, at the {meeting} of {friend}",
                )
            )
            found.append((told, absent))
    return found


def corrected() -> list[Row]:
    """A day is named and then changed for another: on which is it now, of four?"""
    rng, found = random.Random(43), []
    for before, now in itertools.permutations(DAYS, 2):
        for meeting, friend in itertools.product(MEETINGS, OTHERS):
            told = rng.choice(
                (
                    f"the {meeting} with {friend} was moved from {before} to {now}",
                    f"not on {before} but on {now} is the {meeting} with {friend}",
                    f"the {meeting} with {friend} is on {now} instead of {before}",
                    f"the {meeting} with {friend} is on {before}, no, I mean on {now}",
                )
            )
            found.append((told, now))
    return found


def chased() -> list[Row]:
    """One animal chases another, told in active or passive voice: which one runs behind, of four?"""
    rng, found = random.Random(44), []
    for hunter, prey in itertools.permutations(ANIMALS, 2):
        for owner, place in itertools.product(NAMES, ("garden", "street", "yard", "field", "wood")):
            told = rng.choice(
                (
                    f"the {hunter} of {owner} chased the {prey} through the {place}",
                    f"the {prey} of {owner} was chased through the {place} by the {hunter}",
                    f"through the {place} the {prey} fled from the {hunter} of {owner}",
                    f"{owner} saw the {hunter} run after the {prey} in the {place}",
                )
            )
            found.append((told, hunter))
    return found


def beside() -> list[Row]:
    """Two people sit side by side: who is on the left, of four?"""
    rng, found = random.Random(45), []
    for left, right in itertools.permutations(FOUR, 2):
        for thing, friend in itertools.product(THINGS[:6], OTHERS):
            told = rng.choice(
                (
                    f"{left} sits to the left of {right}",
                    f"{right} sits to the right of {left}",
                    f"on the right of {left} sits {right}",
                    f"on the left of {right} sits {left}",
                )
            )
            found.append((f"{told}, who holds the {thing} of {friend}", left))
    return found


def dearer() -> list[Row]:
    """Two things and what they cost: which costs more, of four?"""
    rng, found = random.Random(46), []
    for more, less in itertools.permutations(THINGS[:4], 2):
        for owner in NAMES * 5:
            low, high = sorted(rng.sample(range(2, 100), 2))
            told = [f"the {more} for {high} euros", f"the {less} for {low} euros"]
            rng.shuffle(told)
            found.append((f"{owner} bought {' and '.join(told)}", more))
    return found


EVENTS: Mapping[str, Callable[[], list[Row]]] = {
    "given": given,
    "missing": missing,
    "corrected": corrected,
    "chased": chased,
    "beside": beside,
    "dearer": dearer,
}
