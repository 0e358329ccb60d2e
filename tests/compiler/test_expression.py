"""A graph evaluates as NumPy does, however deep or shared, and its text says it briefly."""

from __future__ import annotations

import numpy as np
import pytest

from foreword.compiler.expression import OPERATIONS, Expression, Node, Nodes, expression_of
from foreword.compiler.parser import parse_expression
from foreword.errors import CompileError


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_each_operation_is_numpys(name: str) -> None:
    points = np.array([[0.3, 0.7], [0.9, 0.2]])
    arity = getattr(OPERATIONS[name], "nin", 1)
    arguments = tuple(Node("variable", value=column) for column in range(arity))
    found = Expression((Node(name, arguments),), ("x", "y"), "").evaluate(points)
    assert np.array_equal(found[:, 0], OPERATIONS[name](*points.T[:arity]))


def test_a_constant_output_is_as_long_as_the_batch() -> None:
    assert parse_expression("[2, pi]", 3).evaluate(np.zeros((4, 3))).tolist() == [[2.0, np.pi]] * 4


def test_a_part_that_is_shared_fifty_times_over_is_evaluated_and_written_once() -> None:
    nodes = Nodes()
    node = nodes("variable", value=0)
    for _ in range(50):
        node = nodes("multiply", nodes("add", node, node), nodes.constant(0.5))
    found = expression_of([node], 1)  # 2^50 terms, were it a tree
    assert found.evaluate(np.array([[0.25]]))[0, 0] == 0.25
    assert len(found.text) < 50 * 40
    assert parse_expression(found.text, 1).evaluate(np.array([[0.25]]))[0, 0] == 0.25


def test_a_chain_deeper_than_the_recursion_limit_is_evaluated_written_and_read_back() -> None:
    nodes = Nodes()
    node = nodes("variable", value=0)
    for _ in range(5_000):
        node = nodes("sin", node)
    found = expression_of([node], 1)
    again = parse_expression(found.text, 1, length_limit=100_000)
    point = np.array([[0.5]])
    assert again.evaluate(point) == found.evaluate(point)
    assert 0 < found.evaluate(point)[0, 0] < 0.03  # sin n times over is about sqrt(3/n) = 0.0245


def test_a_value_out_of_range_is_reported_by_what_it_is_and_not_by_a_warning() -> None:
    found = parse_expression("[log(x), 1/x, sqrt(-1 - x), exp(1000 + x)]", 1).evaluate(np.zeros((1, 1)))[0]
    assert found[0] == -np.inf
    assert found[1] == np.inf
    assert np.isnan(found[2])
    assert found[3] == np.inf


def test_powers_and_signs_have_one_form() -> None:
    nodes = Nodes()
    x = nodes("variable", value=0)
    assert nodes.power(x, 1) is x
    assert nodes.power(x, 0) is nodes.constant(1.0)
    assert nodes.power(x, -2) is nodes("divide", nodes.constant(1.0), nodes.power(x, 2))
    assert nodes.negative(nodes.constant(2.0)) is nodes.constant(-2.0)
    assert nodes.constant(0.0) is not nodes.constant(-0.0)


def test_a_graph_beyond_the_limit_is_refused() -> None:
    nodes = Nodes(limit=10)
    with pytest.raises(CompileError, match="too large"):
        [nodes.constant(number) for number in range(11)]
