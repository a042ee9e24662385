"""A table of short cells, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def aligned(rows: Rows, left: frozenset[int] = frozenset({0})) -> str:
    """Cells in columns of equal width, the head first; those of `left` are set to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown(rows: Rows, left: frozenset[int] = frozenset({0})) -> str:
    """The same as a Markdown table, in which no cell can act as Markdown's table marks or HTML."""
    ruler = "|".join(" --- " if i in left else " ---: " for i in range(len(rows[0])))
    return "\n".join([_line(rows[0]), f"|{ruler}|", *map(_line, rows[1:])])


def one_line(text: str) -> str:
    """Text from outside on one line of Markdown."""
    return " ".join(text.split()).replace("<", "&lt;")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |"
