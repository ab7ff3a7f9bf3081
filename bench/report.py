"""The figures for a person and for a program: a table, serving.json, and a plot where matplotlib is there."""

import json
from collections.abc import Sequence
from pathlib import Path

from bench.goals import Row

_WORDS = {True: "met", False: "not met", None: ""}


def table(rows: Sequence[Row]) -> str:
    """The rows as text; those without a value say why."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':{width}}  {'value':>12}  {'goal':<14}"]
    for row in rows:
        value = "-" if row.value is None else _number(row.value)
        goal = "" if row.goal is None else f"{row.bound} {row.goal:g}"
        said = f"not measured: {row.note}" if row.value is None else _WORDS[row.met]
        said += "" if row.steady else " (unsteady)"
        unit = row.unit or ("x" if row.value is not None else "")
        lines.append(f"{row.name:{width}}  {value:>12} {unit:<10}  {goal:<14} {said}".rstrip())
    return "\n".join(lines)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """A list of {name, value, goal, met, steady, unit, bound, note}: value null where it was not measured, goal and
    met null where there is none."""
    found = [
        {
            "name": row.name,
            "value": row.value,
            "goal": row.goal,
            "met": row.met,
            "steady": row.steady,
            "unit": row.unit,
            "bound": row.bound if row.goal is not None else None,
            "note": row.note,
        }
        for row in rows
    ]
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Rates beside each other, and each ratio as a share of its goal, as a PNG; False without matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - of the training extra, and half a second
    except ImportError:
        return False
    rates = [row for row in rows if row.value is not None and row.unit in ("requests/s", "rows/s", "calls/s")]
    judged = [row for row in rows if row.value is not None and row.goal is not None]
    heights = [max(1, len(rates)), max(1, len(judged))]
    canvas = Figure(figsize=(12, 1.5 + 0.3 * sum(heights)), layout="constrained")
    above, below = canvas.subplots(2, 1, height_ratios=heights)
    bars = above.barh([row.name for row in rates], [row.value for row in rates])
    above.bar_label(bars, [_number(row.value or 0.0) for row in rates], padding=3)
    above.set(title="a second", xlim=(0, 1.15 * max([1.0, *(row.value or 0.0 for row in rates)])))
    shares = [_share(row) for row in judged]
    bars = below.barh([row.name for row in judged], shares, color=["C2" if row.met else "C3" for row in judged])
    below.bar_label(bars, [f"{_number(row.value or 0.0)} ({row.bound} {row.goal:g})" for row in judged], padding=3)
    below.axvline(1, color="black", linewidth=1)
    below.set(title="of the goal: 1 or more meets it", xlim=(0, 1.4 * max([1.0, *shares])))
    for axes in (above, below):
        axes.invert_yaxis()
    canvas.savefig(path, dpi=110)
    return True


def _share(row: Row) -> float:
    value, goal = row.value or 0.0, row.goal or 1.0
    return value / goal if row.bound == "at least" else goal / max(value, 1e-9)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
