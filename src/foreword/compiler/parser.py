"""Reads an expression such as "sin(3*x) * exp(-y**2)" into a graph. It runs nothing: there is no `eval` in it.

The grammar, loosest first; numbers are decimal and mean the double nearest to them, `pi` means pi itself:

    text        = { name "=" sum ";" } ( sum | "[" sum { "," sum } "]" )
    sum         = product { ("+" | "-") product }
    product     = signed { ("*" | "/") signed }
    signed      = ("+" | "-") signed | power
    power       = atom [ "**" signed ]
    atom        = number | "pi" | "e" | coordinate | name | function "(" sum { "," sum } ")" | "(" sum ")"

An integer exponent is a power, half of an odd one a power of a square root; any other means exp(exponent * log(base)).
It reads with a stack of its own, so no text can exhaust Python's; everything wrong is a CompileError with a caret.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from foreword.compiler.expression import (
    ATOM,
    OPERATIONS,
    POWER,
    SIGN,
    SYMBOLS,
    Expression,
    Node,
    Nodes,
    coordinate_names,
)
from foreword.errors import CompileError

LENGTH_LIMIT = 10_000
READ_BACK_LIMIT = 2_000_000  # for a text that a graph was written to, such as a compiled file's
NESTING_LIMIT = 200
EXPONENT_LIMIT = 1_000
EXACT_BITS = 4_096  # an exponent is exact as long as it is a fraction of at most so many bits

ALIASES = {
    "abs": "absolute",
    "max": "maximum",
    "min": "minimum",
    "ln": "log",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
}
FUNCTIONS = {name: name for name in OPERATIONS if name not in (*SYMBOLS, "negative")} | ALIASES
SEVERAL = ("maximum", "minimum")  # two arguments or more

TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<symbol>\*\*|[-+*/()\[\],;=])"
)
BINARY = {symbol.strip(): (operation, binds) for operation, (symbol, binds) in SYMBOLS.items()}
HINTS = {
    "^": "Write powers as x**2.",
    ".": "Attributes are not part of an expression; a number needs a digit beside its point.",
    "|": "Write abs(x).",
    "{": "Use parentheses.",
    "%": "There is no remainder; it is not continuous.",
    "'": "An expression holds no text.",
    '"': "An expression holds no text.",
}


def parse_expression(text: str, columns: int, *, length_limit: int = LENGTH_LIMIT) -> Expression:
    """The expression in `text` over `columns` coordinates, called x, y, z (up to three) or x0, x1, ...

    CompileError, with the place, when it is no expression or exceeds a limit: 10,000 characters (`length_limit`), 200
    open parentheses, exponents beyond 1,000, numbers that no double holds.

    >>> import numpy as np
    >>> found = parse_expression("[sin(3*x) * exp(-y**2), max(x, y, 0)]", 2)
    >>> found.evaluate(np.array([[0.0, 1.0]]))
    array([[0., 1.]])
    """
    if not isinstance(text, str):
        raise CompileError("An expression is a text.", expected='such as "sin(x) * y"', found=type(text).__name__)
    if len(text) > length_limit:
        raise CompileError(
            "The expression is too long.",
            expected=f"at most {length_limit:,} characters",
            found=f"{len(text):,} characters",
            fix="Shorten it, or name its repeated parts: t = x**2 + y**2; exp(-t) * t.",
        )
    return Expression(_Reader(text, columns).read(), coordinate_names(columns), text.strip())


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


@dataclass
class _Pending:
    """An operator, or (with `binds` 0) an opened parenthesis, that waits for what stands to its right."""

    token: _Token
    binds: int
    function: str = ""
    count: int = 1


class _Reader:
    def __init__(self, text: str, columns: int) -> None:
        self.text = text
        self.nodes = Nodes()
        self.tokens = self._tokens()
        self.index = 0
        self.exact: dict[int, Fraction | None] = {}  # the value of a constant part, where it is a fraction
        names = [f"x{column}" for column in range(columns)]
        self.names = {name: self._make("variable", value=column) for column, name in enumerate(names)}
        self.names |= {name: self.names[f"x{column}"] for column, name in enumerate(coordinate_names(columns))}
        self.names |= {"pi": self._make("pi"), "e": self._make("exp", self._constant(1.0))}
        self.coordinates = coordinate_names(columns)

    def read(self) -> tuple[Node, ...]:
        while self.tokens[self.index].kind == "name" and self.tokens[self.index + 1].text == "=":
            self._read_definition()
        if self.tokens[self.index].text != "[":
            outputs = [self._read_sum()]
        else:
            self.index += 1
            outputs = [self._read_sum()]
            while self.tokens[self.index].text == ",":
                self.index += 1
                outputs.append(self._read_sum())
            if self.tokens[self.index].text != "]":
                raise self._error("The list of outputs does not end.", self.tokens[self.index], expected='"," or "]"')
            self.index += 1
        if self.tokens[self.index].kind != "end":
            raise self._error("The expression goes on where it should end.", self.tokens[self.index], fix=self._hint())
        return tuple(outputs)

    def _read_definition(self) -> None:
        name = self.tokens[self.index]
        if name.text in self.names or name.text in FUNCTIONS:
            raise self._error(f'The name "{name.text}" has a meaning already.', name, fix="Choose another name.")
        self.index += 2
        found = self._read_sum()
        if self.tokens[self.index].text != ";":
            raise self._error(
                "A definition ends with a semicolon.", self.tokens[self.index], expected='";"', fix=self._hint()
            )
        self.index += 1
        self.names[name.text] = found

    def _read_sum(self) -> Node:
        """One expression, up to a symbol that is no part of it: operators wait on `pending` for their right side."""
        pending: list[_Pending] = []
        operands: list[Node] = []
        is_operand_due = True
        while True:
            token = self.tokens[self.index]
            if is_operand_due:
                is_operand_due = self._take_operand(token, pending, operands)
                continue
            if token.text in BINARY or token.text == "**":
                binds = POWER if token.text == "**" else BINARY[token.text][1]
                self._reduce(pending, operands, least=ATOM if token.text == "**" else binds)
                pending.append(_Pending(token, binds))
                is_operand_due = True
            else:
                self._reduce(pending, operands, least=1)
                if not pending:
                    return operands.pop()
                if token.text == "," and pending[-1].function:
                    pending[-1].count += 1
                    is_operand_due = True
                elif token.text == ")":
                    self._close(pending.pop(), operands)
                else:
                    what = "A parenthesis is not closed before this."
                    raise self._error(what, token, expected='an operator or ")"', fix=self._hint())
            self.index += 1

    def _take_operand(self, token: _Token, pending: list[_Pending], operands: list[Node]) -> bool:
        """Takes what may begin an operand; whether an operand is still due after it."""
        self.index += 1
        if token.kind == "number":
            operands.append(self._number(token))
            return False
        if token.kind == "name" and self.tokens[self.index].text == "(" and token.text not in self.names:
            if token.text not in FUNCTIONS:
                raise self._name_error(token, list(FUNCTIONS), "function")
            self.index += 1
            self._open(_Pending(token, 0, FUNCTIONS[token.text]), pending)
            return True
        if token.kind == "name":
            if token.text not in self.names:
                raise self._name_error(token, list(self.names), "name")
            operands.append(self.names[token.text])
            return False
        if token.text == "(":
            self._open(_Pending(token, 0), pending)
            return True
        if token.text in ("+", "-"):
            pending.append(_Pending(_Token("sign", token.text, token.position), SIGN))
            return True
        what = "The expression ends too early." if token.kind == "end" else "Something is missing before this."
        raise self._error(what, token, expected="a number, a name or an opened parenthesis")

    def _open(self, opened: _Pending, pending: list[_Pending]) -> None:
        pending.append(opened)
        if sum(entry.binds == 0 for entry in pending) > NESTING_LIMIT:
            raise self._error(
                "The expression is nested too deep.", opened.token, expected=f"at most {NESTING_LIMIT} open parentheses"
            )

    def _reduce(self, pending: list[_Pending], operands: list[Node], *, least: int) -> None:
        """Applies the operators that bind at least so tightly, from the innermost, up to an open parenthesis."""
        while pending and pending[-1].binds >= max(least, 1):
            operator = pending.pop()
            right = operands.pop()
            if operator.token.kind == "sign":
                operands.append(right if operator.token.text == "+" else self._make("negative", right))
            elif operator.token.text == "**":
                operands.append(self._power(operands.pop(), right, operator.token))
            else:
                operands.append(self._make(BINARY[operator.token.text][0], operands.pop(), right))

    def _close(self, opened: _Pending, operands: list[Node]) -> None:
        if not opened.function:
            return
        is_right = opened.count >= 2 if opened.function in SEVERAL else opened.count == 1
        if not is_right:
            needs = "two arguments or more" if opened.function in SEVERAL else "one argument"
            what = f"{opened.token.text} has {opened.count} argument{'s' * (opened.count > 1)}."
            raise self._error(what, opened.token, expected=needs)
        arguments = operands[-opened.count :]
        del operands[-opened.count :]
        found = arguments[0]
        for argument in arguments[1:]:
            found = self._make(opened.function, found, argument)
        operands.append(found if opened.function in SEVERAL else self._make(opened.function, found))

    def _power(self, base: Node, exponent: Node, token: _Token) -> Node:
        exact = self.exact.get(id(exponent))
        if exact is not None and abs(exact) > EXPONENT_LIMIT:
            raise self._error(
                "The exponent is too large.", token, expected=f"between -{EXPONENT_LIMIT} and {EXPONENT_LIMIT}"
            )
        if exact is not None and exact.denominator == 1:
            found = self.nodes.power(base, int(exact))
            power = self.exact.get(id(base))
            bits = 0 if power is None else max(power.numerator.bit_length(), power.denominator.bit_length())
            if power is not None and (power or exact >= 0) and bits * abs(int(exact)) <= EXACT_BITS:
                self.exact[id(found)] = power ** int(exact)
            return found
        if exact is not None and exact.denominator == 2:
            return self.nodes.power(self._make("sqrt", base), exact.numerator)
        if base.operation == "exp":  # e**x, above all
            inner = base.arguments[0]
            is_e = inner.operation == "constant" and inner.value == 1.0
            return self._make("exp", exponent if is_e else self._make("multiply", exponent, inner))
        return self._make("exp", self._make("multiply", exponent, self._make("log", base)))

    def _make(self, operation: str, *arguments: Node, value: float | int | None = None) -> Node:
        if operation == "negative":
            found = self.nodes.negative(*arguments)
        else:
            found = self.nodes(operation, *arguments, value=value)
        if id(found) not in self.exact:
            self.exact[id(found)] = _exact(operation, [self.exact.get(id(argument)) for argument in arguments])
        return found

    def _constant(self, value: float) -> Node:
        found = self.nodes.constant(value)
        self.exact[id(found)] = Fraction(value)
        return found

    def _number(self, token: _Token) -> Node:
        value = float(token.text)
        is_lost = value == 0.0 and any(digit in "123456789" for digit in re.split("[eE]", token.text)[0])
        if math.isinf(value) or is_lost:
            raise self._error(
                f"The number is too {'small' if is_lost else 'large'}.", token, expected="0, or 5e-324 to 1.8e308"
            )
        return self._constant(value)

    def _tokens(self) -> list[_Token]:
        found, position = [], 0
        while position < len(self.text):
            match = TOKEN.match(self.text, position)
            if match is None:
                raise self._character_error(position)
            if match.lastgroup != "space":
                found.append(_Token(str(match.lastgroup), match.group(), position))
            position = match.end()
        end = _Token("end", "", len(self.text))
        return [*found, end, end]

    def _hint(self) -> str:
        """What to do about a token that stands where an operator should."""
        token, before = self.tokens[self.index], self.tokens[max(self.index - 1, 0)]
        if token.kind in ("name", "number") or token.text == "(":
            return f"Write a product with a star: {before.text[:20]} * {token.text[:20]}"
        if token.text == ",":
            return "Write several outputs in brackets: [sin(x), cos(x)]."
        return 'Close what is open with ")".' if token.kind == "end" else ""

    def _character_error(self, position: int) -> CompileError:
        character = self.text[position]
        if character.isascii() and character.isprintable():
            shown = f'The character "{character}"'
        else:
            shown = f"The character U+{ord(character):04X} ({unicodedata.name(character, 'unnamed')})"
        fix = HINTS.get(character, "" if character.isascii() else "Write it with ASCII letters: pi, *, -, sqrt(x).")
        return self._error(f"{shown} is no part of an expression.", _Token("", character, position), fix=fix)

    def _name_error(self, token: _Token, known: list[str], kind: str) -> CompileError:
        near = difflib.get_close_matches(token.text[:40], known, n=1)
        if kind == "name" and token.text in FUNCTIONS:
            fix = f"Give it its argument: {token.text}({self.coordinates[0]})."
        elif kind == "name" and token.text in ("x", "y", "z") and len(self.coordinates) > 3:
            fix = f"The {len(self.coordinates)} coordinates here are {self.coordinates[0]} to {self.coordinates[-1]}."
        else:
            fix = f'Did you mean "{near[0]}"?' if near else ""
        names = known if kind == "function" else [*self.coordinates[:8], "pi", "e"]
        return self._error(
            f'There is no {kind} "{token.text[:40]}".', token, expected=", ".join(sorted(names)), fix=fix
        )

    def _error(self, what: str, token: _Token, *, expected: str = "", fix: str = "") -> CompileError:
        start = max(0, token.position - 40)
        around = self.text[start : token.position + 24]
        line = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in around)
        caret = " " * (len("  found:    ") + token.position - start) + f"^ character {token.position + 1}"
        fix = fix or f"Correct the expression at {'its end' if token.kind == 'end' else 'the mark'}."
        return CompileError(what, expected=expected, found=f"{line}\n{caret}", fix=fix)


def _exact(operation: str, values: list[Fraction | None]) -> Fraction | None:
    """A sum, difference, product or quotient of known fractions, unless it is too long to be an exponent."""
    if None in values or not values:
        return None
    found = [value for value in values if value is not None]
    if operation == "add":
        result = found[0] + found[1]
    elif operation == "subtract":
        result = found[0] - found[1]
    elif operation == "multiply":
        result = found[0] * found[1]
    elif operation == "divide" and found[1]:
        result = found[0] / found[1]
    elif operation == "negative":
        result = -found[0]
    else:
        return None
    return result if max(result.numerator.bit_length(), result.denominator.bit_length()) <= EXACT_BITS else None
