"""The parser reads what it says, computes what Python would, and answers anything else with a CompileError."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.compiler.expression import Expression, expression_of, ordered
from foreword.compiler.parser import FUNCTIONS, parse_expression
from foreword.errors import CompileError


def value(text: str, *point: float) -> float:
    return float(parse_expression(text, len(point)).evaluate(np.array([point]))[0, 0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3", 7.0),
        ("2 * 3 + 1", 7.0),
        ("2 - 3 - 4", -5.0),
        ("24 / 4 / 3", 2.0),
        ("-2**2", -4.0),
        ("(-2)**2", 4.0),
        ("2**3**2", 512.0),
        ("2**-1", 0.5),
        ("-2**-2", -0.25),
        ("2 * -3", -6.0),
        ("--3", 3.0),
        ("+-+3", -3.0),
        ("2**-x**2", 2 ** -(0.3**2)),
        ("x**0.5", math.sqrt(0.3)),
        ("x**(1/2)", math.sqrt(0.3)),
        ("x**1.5", 0.3**1.5),
        ("x**-0.5", 0.3**-0.5),
        ("x**(1/3)", 0.3 ** (1 / 3)),
        ("x**2.0", 0.09),
        ("x**y", 0.3**0.7),
        ("x**0", 1.0),
        ("e**x", math.exp(0.3)),
        ("e**(2 * x)", math.exp(0.6)),
        ("exp(x)**y", math.exp(0.21)),
        ("sin(pi / 2)", 1.0),
        ("max(x, y, 0.9, 0)", 0.9),
        ("min(x, y)", 0.3),
        ("abs(-x)", 0.3),
        ("asin(x) + acos(x)", math.pi / 2),
        ("ln(e)", 1.0),
        ("x0 + x", 0.6),
        (".5 + 5. + 1e-1 + 1E+1", 15.6),
        ("t = x + y; s = t**2; s - t", 0.0),
        (" \t\n x \r\n", 0.3),
    ],
)
def test_an_expression_means_what_python_would_say(text: str, expected: float) -> None:
    # A handful of operations on numbers of size 1 to 512: far fewer than 64 roundings.
    assert value(text, 0.3, 0.7) == pytest.approx(expected, rel=64 * 2.0**-53, abs=1e-15)


@pytest.mark.parametrize(
    ("text", "what", "position"),
    [
        ("", "ends too early", 1),
        ("   ", "ends too early", 4),
        ("x +", "ends too early", 4),
        ("sin(", "ends too early", 5),
        ("* x", "missing", 1),
        ("()", "missing", 2),
        ("sin()", "missing", 5),
        ("(x", "not closed", 3),
        ("x)", "goes on", 2),
        ("2x", "goes on", 2),
        ("x y", "goes on", 3),
        ("3(x)", "goes on", 2),
        ("x, y", "goes on", 2),
        ("[x, y", "list of outputs", 6),
        ("[[x]]", "missing", 2),
        ("[x] + 1", "goes on", 5),
        ("q + 1", 'no name "q"', 1),
        ("sni(x)", 'no function "sni"', 1),
        ("sin + 1", 'no name "sin"', 1),
        ("sin(x, y)", "2 arguments", 1),
        ("max(x)", "1 argument", 1),
        ("x^2", '"^"', 2),
        ("x.real", '"."', 2),
        ("x.__class__", '"."', 2),
        ("__import__('os')", "'", 12),
        ("x if x else y", "goes on", 3),
        ("x // y", "missing", 4),
        ("x == y", "a meaning already", 1),
        ("x = 3; x", "a meaning already", 1),
        ("t = 3 t", "semicolon", 7),
        ("t = t; t", 'no name "t"', 5),
        ("π * x", "U+03C0", 1),
        ("x ∗ y", "U+2217", 3),
        ("\u0663", "ARABIC-INDIC DIGIT THREE", 1),
        ("\x00", "U+0000", 1),
        ("\ud800", "U+D800", 1),
        ("1e400", "too large", 1),
        ("1" * 400, "too large", 1),
        ("1e-400", "too small", 1),
        ("x**1001", "exponent is too large", 2),
        ("x**-1e300", "exponent is too large", 2),
        ("2**2**2**2**2", "exponent is too large", 2),
        ("x2", 'no name "x2"', 1),
        ("z", 'no name "z"', 1),
    ],
)
def test_what_is_no_expression_is_refused_with_its_place(text: str, what: str, position: int) -> None:
    with pytest.raises(CompileError, match="character") as caught:
        parse_expression(text, 2)
    assert what in caught.value.what
    shown, caret = caught.value.found.split("\n")
    assert caret.endswith(f"^ character {position}")
    assert shown.isascii()
    assert caught.value.fix
    if shown.strip() and caret.index("^") - 12 < len(shown):
        assert shown[caret.index("^") - 12] in (text[position - 1], "?")


@pytest.mark.parametrize(
    "text",
    ["x" * 1_000_000, "(" * 10_001, "1+" * 1_000_000 + "1", " " * 10_001],
    ids=["letters", "parentheses", "sum", "spaces"],
)
def test_a_text_beyond_the_limit_is_refused_before_it_is_read(text: str) -> None:
    start = time.process_time()
    with pytest.raises(CompileError, match="too long"):
        parse_expression(text, 2)
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize("opened", ["(", "sin(", "-(", "2**(", "max(x, "])
def test_two_hundred_open_parentheses_are_read_and_one_more_is_refused(opened: str) -> None:
    assert parse_expression(opened * 200 + "x" + ")" * 200, 1)
    with pytest.raises(CompileError, match="nested too deep"):
        parse_expression(opened * 201 + "x" + ")" * 201, 1)


@pytest.mark.parametrize(
    "text",
    ["-" * 9_999 + "x", "+".join("x" * 5_000), "/".join("x" * 5_000), "x**" * 3_000 + "x", "1**" * 3_000 + "1"],
    ids=["signs", "sum", "quotients", "tower of x", "tower of 1"],
)
def test_a_long_chain_exhausts_neither_the_stack_nor_a_second(text: str) -> None:
    start = time.process_time()
    found = parse_expression(text, 1)
    found.evaluate(np.ones((1, 1)))
    expression_of(found.outputs, 1)
    repr(found.outputs)
    assert time.process_time() - start < 2.0


def test_a_number_is_the_double_nearest_to_it_and_pi_is_pi_itself() -> None:
    found = parse_expression("[0.1, 123456789012345678, pi, 4.9e-324]", 1)
    assert [node.operation for node in found.outputs] == ["constant", "constant", "pi", "constant"]
    assert [node.value for node in found.outputs] == [0.1, 123456789012345680.0, None, 5e-324]


def test_names_of_coordinates_follow_the_number_of_columns() -> None:
    assert value("x + 10*x1 + 100*z", 1.0, 2.0, 3.0) == 321.0
    assert value("x3", 1.0, 2.0, 3.0, 4.0) == 4.0
    with pytest.raises(CompileError, match='no name "x"') as refused:
        parse_expression("x", 4)
    assert refused.value.fix == "The 4 coordinates here are x0 to x3."


@pytest.mark.parametrize("text", [b"x", None, 3, ["x"]])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(CompileError, match="is a text"):
        parse_expression(text, 1)  # type: ignore[arg-type]


# Pieces that are each legal somewhere, so that most texts get far into the parser before they go wrong.
PIECES = st.sampled_from(
    [
        *FUNCTIONS,
        *"xyz()[],;=+-*/^.eπ'\"\\ \n",
        "**",
        "pi",
        "x0",
        "x99",
        "1",
        "0.5",
        "1e9",
        "1e999",
        "2",
        "t",
        "t=",
        "_",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join)))
def test_any_text_is_an_expression_or_a_compile_error(text: str) -> None:
    found = read(text)
    if isinstance(found, CompileError):
        assert str(found)
    else:
        points = np.array([[0.3, 0.7], [-1.0, 0.0]])
        assert found.evaluate(points).shape == (2, len(found.outputs))
        assert_reads_back(found, 2)


def trees() -> st.SearchStrategy[str]:
    """Texts of well-formed expressions."""
    leaves = st.sampled_from(["x", "y", "pi", "e", "0.1", "3", "1e-5", "123456.789"])
    unary = st.sampled_from(["sin({})", "exp({})", "abs({})", "-{}", "({})", "({})**2", "({})**-3", "({})**0.5", "+{}"])
    binary = st.sampled_from(
        ["{} + {}", "{} - {}", "({}) * ({})", "({}) / ({})", "max({}, {})", "({})**({})", "{} * {}"]
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(str.format, unary, inner), st.builds(str.format, binary, inner, inner)
        ),
        max_leaves=20,
    )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(trees())
def test_every_graph_reads_back_from_its_own_text(text: str) -> None:
    found = read(text)
    if isinstance(found, CompileError):
        assert "exponent" in found.what  # the only limit that a well-formed text of this size can exceed
    else:
        assert_reads_back(found, 2)


def read(text: str) -> Expression | CompileError:
    try:
        return parse_expression(text, 2)
    except CompileError as error:
        return error


def assert_reads_back(found: Expression, columns: int) -> None:
    written = expression_of(found.outputs, columns)
    again = parse_expression(written.text, columns, length_limit=10**7)
    assert signature(again) == signature(found)


def signature(expression: Expression) -> tuple[list[tuple[object, ...]], list[int]]:
    """The graph with nodes numbered in order: equal for equal graphs, shared parts included."""
    places: dict[int, int] = {}
    rows: list[tuple[object, ...]] = []
    known: dict[tuple[object, ...], int] = {}
    for node in ordered(expression.outputs):
        row = (node.operation, repr(node.value), *(places[id(argument)] for argument in node.arguments))
        places[id(node)] = known.setdefault(row, len(known))
        rows.append(row)
    return rows, [places[id(node)] for node in expression.outputs]
