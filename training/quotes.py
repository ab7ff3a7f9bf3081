"""Quotes of a CSV that were left open: they take whole rows into one cell, where nobody would count them."""

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True, slots=True)
class Swallowed:
    """A cell that holds rows of its own table: its column, its row, counted from 1, and its text."""

    column: str
    row: int
    text: str


def swallowed_rows(table: pl.DataFrame, *, separator: str, ids: tuple[str, ...]) -> Swallowed | None:
    """The first cell that holds a row, or what is left of one on its first and last line; None if none does.

    ids: the columns of ids, by which text of several lines is told from rows: a line of text hardly has as many
    separators as a row, and an id that occurs in the table where a row has it.
    """
    for place, name in enumerate(table.columns):
        several = table[name].str.contains("\n", literal=True).fill_null(False)
        if not several.any():
            continue
        known = {table.columns.index(one): set(table[one].unique().drop_nulls()) for one in ids}
        for row, text in zip(several.arg_true(), table[name].filter(several), strict=True):
            if _holds_row(text, place, table.width, separator, known):
                return Swallowed(name, row + 1, text)
    return None


def _holds_row(text: str, place: int, width: int, separator: str, known: dict[int, set[str]]) -> bool:
    """Whether a line of a cell, which stands in column `place`, reads as a row: known has ids by their column."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        begin = place if number == 0 else 0  # the first line goes on from the cell's own column, the last ends in it
        end = place + 1 if number == len(lines) - 1 else width
        fields = line.removesuffix("\r").split(separator)
        if len(fields) != end - begin:
            continue
        there = [fields[column - begin] in ids for column, ids in known.items() if begin <= column < end]
        if there and all(there):
            return True
    return False
