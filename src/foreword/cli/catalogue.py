"""`foreword compile --list`: the built-in targets, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.compiler.catalogue import Entry

KINKED = {"absolute", "maximum", "minimum"}


def listed() -> list[dict[str, Any]]:
    """The catalogue as plain values: name, coordinates, domain, regularity, what it is."""
    from foreword.compiler.catalogue import CATALOGUE

    return [_row(entry) for entry in CATALOGUE.values()]


def as_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows under a line of headings, their columns aligned."""
    names = ["name", "coordinates", "domain", "regularity", "about"]
    table = [names, *([row[name] for name in names] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(names))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _row(entry: Entry) -> dict[str, Any]:
    from foreword.compiler.expression import ordered
    from foreword.compiler.parser import READ_BACK_LIMIT, parse_expression

    columns = max(entry.least, 2)
    nodes = parse_expression(entry.text(columns), columns, length_limit=READ_BACK_LIMIT).outputs
    is_kinked = bool(KINKED & {node.operation for node in ordered(nodes)})
    low, high = entry.inside or (0.0, 0.0)
    where = f"in [{low:g}, {high:g}]" if entry.inside else "anywhere"
    constant = f"{entry.lipschitz(columns, False):.3g}"
    return {
        "name": entry.name,
        "coordinates": f"{entry.least}" if entry.most == entry.least else f"{entry.least} or more",
        "domain": f"cubes {where} only" if entry.has_poles else "spheres and cubes",
        "regularity": f"{'kinks' if is_kinked else 'smooth'}, Lipschitz {constant}"
        + (f" {where}" if entry.inside and not entry.has_poles else ""),
        "about": entry.about,
    }
