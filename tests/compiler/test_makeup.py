"""A function's digest changes with what it computes from, and with nothing else."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import CubicSpline, RegularGridInterpolator

from foreword.compiler.makeup import makeup_of

SCALE = 2.0


def by_closure(number: float) -> Callable[[Any], Any]:
    return lambda x: number * x


def by_table(number: float) -> Callable[[Any], Any]:
    table = np.zeros(1000)
    table[500] = number
    return lambda x: table[x]


def by_default(number: float) -> Callable[[Any], Any]:
    def function(x: Any, factor: float = number) -> Any:
        return factor * x

    return function


def by_inner(number: float) -> Callable[[Any], Any]:
    def inner(x: Any) -> Any:
        return number * x

    return lambda x: inner(x) + 1


def by_partial(number: float) -> Callable[[Any], Any]:
    return functools.partial(np.multiply, number)


def by_spline(number: float) -> Callable[[Any], Any]:
    spline = CubicSpline([0.0, 1.0, 2.0], [0.0, number, 0.0])
    return lambda x: spline(x[:, 0])


def by_grid(number: float) -> Callable[[Any], Any]:
    return RegularGridInterpolator(([0.0, 1.0], [0.0, 1.0]), np.array([[0.0, number], [1.0, 2.0]]))


class Model:
    """An object that is called, and that refers to itself."""

    def __init__(self, number: float) -> None:
        self.weights = {"w": np.array([number])}
        self.me = self

    def __call__(self, x: Any) -> Any:
        return self.weights["w"] * x

    def method(self, x: Any) -> Any:
        return x - self.weights["w"]


class Heir(Model):
    """Called as its parent is."""


def by_method(number: float) -> Callable[[Any], Any]:
    return Model(number).method


MAKERS = (by_closure, by_table, by_default, by_inner, by_partial, by_spline, by_grid, Model, Heir, by_method)


@pytest.mark.parametrize("made", MAKERS)
def test_another_number_that_a_function_refers_to_is_another_digest(made: Callable[[float], Any]) -> None:
    one, again, other = (makeup_of(made(number)) for number in (0.5, 0.5, 0.6))
    assert one is not None
    assert one == again != other


def test_a_global_number_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: Any) -> Any:
        return SCALE * x

    before = makeup_of(function)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert makeup_of(function) != before


def test_other_code_is_another_digest_and_other_names_are_not() -> None:
    assert makeup_of(lambda x: np.sin(x)) == makeup_of(lambda point: np.sin(point))
    assert makeup_of(lambda x: np.sin(x)) != makeup_of(lambda x: np.cos(x))
    assert makeup_of(np.sin) != makeup_of(np.cos)


def test_what_does_not_end_has_no_digest() -> None:
    chain: list[Any] = []
    for _ in range(100_000):
        chain = [chain]
    assert makeup_of(lambda: chain) is None


def test_it_is_the_same_in_another_process() -> None:
    code = "import numpy as np; from foreword.compiler.makeup import makeup_of; t = np.arange(9.0); s = {'a', 'b', 'c'}"
    code += "; print(makeup_of(lambda x: t[x] + len(s) + np.sin(x), None))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert len(runs[0].stdout) == 65
    assert runs[0].stdout == runs[1].stdout
