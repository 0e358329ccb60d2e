"""A target measured in a unit near its own size, so that a construction may square its numbers.

The unit is a power of two: values that change units are exact, but for those too small for float64.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from foreword.compiler.construction.contract import Construction, Draft, Obstacle, Request
from foreword.compiler.domain import Domain
from foreword.compiler.expression import Expression, Node
from foreword.compiler.head import Head
from foreword.compiler.target import Target

LARGE = 1e30  # values beyond it, or all below its inverse, are measured in another unit
SAMPLED = 500  # points at which the size is looked for


def drafted(
    construction: Construction, target: Target, domain: Domain, request: Request, rng: np.random.Generator
) -> Draft | Obstacle:
    """The construction's draft of the target; of one of an extreme size, in a unit that suits it."""
    largest = float(np.abs(target.evaluate(domain.sample(SAMPLED, np.random.default_rng(0)))).max())
    if largest == 0 or 1 / LARGE <= largest <= LARGE:
        return construction.draft(target, domain, request, rng=rng)
    exponent = max(math.frexp(largest)[1], -1000)
    inner = replace(
        request,
        tolerance=None if request.tolerance is None else math.ldexp(request.tolerance, -exponent),
        rival=math.ldexp(request.rival, -exponent),
        value_limit=max(math.ldexp(request.value_limit, -exponent), 1e-300),
    )
    found = construction.draft(_measured(target, -exponent), domain, inner, rng=rng)
    if isinstance(found, Obstacle):
        return found
    head = Head(found.head.keys, found.head.biases, np.ldexp(found.head.values, exponent))
    bound = None if found.a_priori is None else math.ldexp(found.a_priori, exponent)
    return replace(found, head=head, a_priori=bound, sampled=math.ldexp(found.sampled, exponent))


def _measured(target: Target, exponent: int) -> Target:
    """The target times 2 to the exponent, with what constructions ask of one."""
    expression = target.expression
    if expression is not None:
        factor = Node("constant", value=math.ldexp(1.0, exponent))
        outputs = tuple(Node("multiply", (factor, output)) for output in expression.outputs)
        expression = Expression(outputs, expression.variables, expression.text)
    return Target(
        lambda points: np.ldexp(target.evaluate(points), exponent),
        domain=target.domain,
        expression=expression,
        lipschitz=None if target.lipschitz is None else math.ldexp(target.lipschitz, exponent),
        metric=target.metric,
        kinks=target.kinks,
        name=target.name,
    )
