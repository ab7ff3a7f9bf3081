"""The results page: records of runs as Markdown, a table for each data set.

Written by a command and never by hand, so that a figure without a run behind it cannot stand there. Runs that
disappointed or were never finished have their row too, and rows say where a record was read back off an earlier page.
"""

import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.activations import compared_name
from training.config import CONFIGS
from training.evaluate import ALONE
from training.interactions import Columns
from training.measures import METRIC, spread
from training.preparation import default_split
from training.rating_results import HEADINGS, rating_rows
from training.report import SPLITS, heading, nearest_baseline
from training.run import EPOCHS, METRICS, RUN, SAMPLED, RunError, RunFolder
from training.spec import RATED, RunSpec

_FIGURES = ("hr@10", METRIC, "mrr", "coverage@10", "novelty@10")
_HEADINGS = (
    "model",
    *map(heading, _FIGURES),
    "95 % interval of NDCG@10",
    "NDCG@10 minus the best baseline's, 95 % interval",
    "NDCG@10, target strictly later",
    "seeds",
    "time of fitting",
    "command",
)
_SAMPLED_HEADINGS = ("model", "protocol", "HR@10", "NDCG@10", "95 % interval of NDCG@10", "seeds", "command")


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of a table, and the NDCG@10 it is sorted by; None where there is none."""

    cells: tuple[str, ...]
    order: float | None


def keep_record(run: RunFolder, to: Path) -> bool:
    """Copy what the results page is written from, some kilobytes, to a folder that outlives the run's.

    Paths of data become relative to where we are: a record is for others to read. An earlier record of the same run is
    replaced; a record itself is left as it is. False, and nothing is done, where the record is of the finished run and
    this one has begun again. Raises RunError if `to` holds the record of another run, or a folder beside it that of
    the same one.
    """
    spec = run.spec()
    if to.exists() and to.samefile(run.path):
        return True
    if (to / RUN).exists() and RunFolder(to).spec().identity != spec.identity:
        raise RunError(f"{to} is the record of another run; give the folder {run.path} another name")
    for other in sorted(to.parent.glob("*/")):  # two would be refused by every page from then on
        if other.name != to.name and RunFolder(other).spec().identity == spec.identity:
            raise RunError(
                f"{other} is the record of the same run; leave {run.path} out, or delete that record if this is to "
                "take its place"
            )
    if (to / METRICS).exists() and not (run.path / METRICS).exists():
        return False
    to.mkdir(parents=True, exist_ok=True)
    for name in (EPOCHS, SAMPLED, METRICS):
        if (run.path / name).exists():
            shutil.copyfile(run.path / name, to / name)
    paths = {name: [Path(_relative(path)) for path in getattr(spec, name)] for name in ("files", "test")}
    attributes = None if spec.attributes is None else Path(_relative(spec.attributes))
    spec = spec.model_copy(update={**paths, "attributes": attributes})
    (to / RUN).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")  # last: what it describes is there
    return True


def results_page(runs: Sequence[RunFolder]) -> str:
    """The page of these runs. Runs of one configuration on the same data are one row, their seeds put together;
    where the configuration of that name has changed since, the row says how.

    Raises RunError if a folder is no run or lacks a figure that its row shows, or if two hold the same run.
    """
    specs = [(run, run.spec()) for run in runs]
    identities: dict[str, Path] = {}
    for run, spec in specs:
        first = identities.setdefault(spec.identity, run.path)
        if first != run.path:
            raise RunError(f"{first} and {run.path} are the same run twice; name one of them")
        _shown_alone(run, spec)
    tables = [_table(group) for group in _grouped(specs, lambda spec: (_sources(spec), spec.split))]
    return (
        "\n\n".join(
            [
                "# Results",
                "Written by `python -m training results RUN...` from what it keeps of every run; not edited by hand. "
                "Where a command is followed by “read back”, nothing was left of these seeds' runs but an earlier "
                "state of this page, whose figures, to four places, are now the record.",
                "Every item of the catalogue is ranked, the user's history excluded; ties count against the model, and "
                "users whose target cannot be hit count as missed. HR is recall: one target a user. Figures are of the "
                "test part, which chose nothing. ± is the deviation over seeds; the interval is over users, by "
                "bootstrap, its bounds averaged over seeds. So is the interval of the difference from the best "
                "baseline, which is taken user by user; “-” in records from before it was. Novelty is in bits. Without "
                "timestamps nothing is known to be strictly later: “-”. The time of fitting is that of the epochs with "
                "their validation, of pre-training too, the mean over seeds; reading the data, blending and the final "
                "evaluation are not in it.",
                *tables,
            ]
        )
        + "\n"
    )


def _sources(spec: RunSpec) -> str:
    """What the data is; the newest train event of a random split is another for every seed."""
    left_out = {"trained_until_ms"} if spec.split == "random" else set()
    return spec.data.model_dump_json(exclude=left_out)


def _grouped(
    specs: Sequence[tuple[RunFolder, RunSpec]], key: Callable[[RunSpec], object]
) -> list[list[tuple[RunFolder, RunSpec]]]:
    groups: dict[object, list[tuple[RunFolder, RunSpec]]] = {}
    for run, spec in specs:
        groups.setdefault(key(spec), []).append((run, spec))
    return list(groups.values())


def _shown_alone(run: RunFolder, spec: RunSpec) -> None:
    """Raise a RunError that names the run if its row cannot be written."""
    try:
        _table([(run, spec)])
    except (KeyError, TypeError) as error:
        raise RunError(
            f"{run.path / METRICS} has not the figures of a run on {SPLITS[spec.split]} ({error!r}); leave the run "
            "out, or delete the folder if it is a record"
        ) from error


def _table(group: Sequence[tuple[RunFolder, RunSpec]]) -> str:
    """Heading, digests and table of the runs on one data set and split."""
    return _rating_table(group) if group[0][1].split in RATED else _ranking_table(group)


def _ranking_table(group: Sequence[tuple[RunFolder, RunSpec]]) -> str:
    spec = group[0][1]
    rows: list[_Row] = []
    finished = [run for run, _ in group if (run.path / METRICS).exists()]
    if finished:
        for name, figures in finished[0].metrics()["baselines"].items():
            if METRIC in figures["test"]:
                rows.append(_row(name, [figures["test"]], timed=_timed(spec)))
    configurations = _named(group)
    for name, part in configurations:
        rows += _rows(name, part)
    rows.sort(key=lambda row: -1.0 if row.order is None else row.order, reverse=True)
    lines = [_HEADINGS, tuple("---" for _ in _HEADINGS), *(row.cells for row in rows)]
    return _section(spec, lines) + _sampled_section(configurations)


def _sampled_section(configurations: Sequence[tuple[str, Sequence[tuple[RunFolder, RunSpec]]]]) -> str:
    """Figures among sampled negatives under a heading that says what they are; nothing if no run has some."""
    lines = [_SAMPLED_HEADINGS, tuple("---" for _ in _SAMPLED_HEADINGS)]
    for name, part in configurations:
        for protocol in sorted({protocol for run, _ in part for protocol in run.sampled()}):
            having = [(run, spec) for run, spec in part if protocol in run.sampled()]
            figures = [run.sampled()[protocol] for run, _ in having]
            low, high = (spread([one["intervals"][METRIC][side] for one in figures]).mean for side in (0, 1))
            lines.append(
                (
                    name if protocol.endswith(ALONE) else _served(name, [run.metrics() for run, _ in having]),
                    protocol.removesuffix(ALONE),
                    *(str(spread([one[metric] for one in figures])) for metric in ("hr@10", METRIC)),
                    f"{low:.4f} to {high:.4f}",
                    ", ".join(str(spec.seed) for _, spec in having),
                    f"`python -m training evaluate runs/{having[0][0].path.name} --sampled {protocol.split()[1]}`",
                )
            )
    if len(lines) == 2:
        return ""
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"\n\n### Among sampled negatives, not all items: only to compare with papers that sample\n\n{table}"


def _rating_table(group: Sequence[tuple[RunFolder, RunSpec]]) -> str:
    """The same of runs that predict ratings."""
    rows = rating_rows(_named(group), fitting_time=_fitting_time, command=_command)
    return _section(group[0][1], [HEADINGS, tuple("---" for _ in HEADINGS), *rows])


def _named(group: Sequence[tuple[RunFolder, RunSpec]]) -> list[tuple[str, list[tuple[RunFolder, RunSpec]]]]:
    """The runs of each configuration by its name."""
    configurations = _grouped(group, lambda spec: spec.model_copy(update={"seed": 0}).identity)
    names = [part[0][1].name for part in configurations]
    return [
        # Of equal names, told apart by what the run says of itself.
        (name if names.count(name) == 1 else f"{name} ({part[0][1].identity[:8]})", part)
        for name, part in zip(names, configurations, strict=True)
    ]


def _section(spec: RunSpec, lines: Sequence[tuple[str, ...]]) -> str:
    data = spec.data
    digests = "\n".join(f"- {name}: sha256 `{digest}`" for name, digest in data.files.items())
    title = f"## {', '.join(Path(name).name for name in data.files)}, {SPLITS[spec.split]}"
    size = f"{data.users:,} users, {data.items:,} items, {data.interactions:,} interactions"
    return "\n\n".join([title, f"{size}:\n\n{digests}", "\n".join(f"| {' | '.join(cells)} |" for cells in lines)])


def _rows(name: str, group: Sequence[tuple[RunFolder, RunSpec]]) -> list[_Row]:
    """One configuration: what it serves, the model alone if that is a blend, and a line for each unfinished run."""
    rows = []
    done = [(run.metrics(), spec) for run, spec in group if (run.path / METRICS).exists()]
    if done:
        recorded = [metrics for metrics, _ in done]
        specs = [spec for _, spec in done]
        served = _served(name, recorded)
        rows.append(_row(served, [metrics["test"] for metrics in recorded], recorded, specs, timed=_timed(specs[0])))
        if any("alone" in metrics for metrics in recorded):
            alone = [metrics.get("alone", metrics)["test"] for metrics in recorded]
            alone_name = name if served != name else f"{name} alone"
            rows.append(_row(alone_name, alone, recorded, specs, timed=_timed(specs[0])))
    for run, spec in group:
        if not (run.path / METRICS).exists():
            epochs = run.epochs()
            figures = [record[METRIC] for record in epochs if METRIC in record]  # ratings are validated by their RMSE
            best = f", best validation {heading(METRIC)} {max(figures):.4f}" if figures else ""
            state = f"not finished: {len(epochs)} epochs{best}"
            blank = ("-",) * (len(_HEADINGS) - 5)
            rows.append(_Row((name, state, *blank, str(spec.seed), "-", _command([spec])), None))
    return rows


def _served(name: str, recorded: Sequence[Mapping[str, Any]]) -> str:
    """What a configuration is called with what its runs serve: a blend has its partner's name, if all of them are."""
    if not all("alone" in metrics for metrics in recorded):
        return name
    # The item-kNN of the baseline, if it was recorded before there was another.
    chosen = any("backward" in metrics.get("blend", {}) for metrics in recorded)
    return f"{name} + item-kNN" if chosen else f"{name} + the baseline's item-kNN"


def _row(
    name: str,
    figures: Sequence[Mapping[str, Any]],
    recorded: Sequence[Mapping[str, Any]] = (),
    specs: Sequence[RunSpec] = (),
    *,
    timed: bool,
) -> _Row:
    """Figures of several seeds as one line; without recorded runs, of a baseline, which has no chance in it.

    timed: whether the data has timestamps, without which every target counts as strictly later.
    """

    low, high = (spread([figure["intervals"][METRIC][side] for figure in figures]).mean for side in (0, 1))
    later = [figure["slices"]["strictly later"][METRIC] for figure in figures] if timed else []
    return _Row(
        (
            name,
            *(str(spread([figure[metric] for figure in figures])) for metric in _FIGURES),
            f"{low:.4f} to {high:.4f}",
            _ahead(figures),
            str(spread(later)) if timed else "-",
            ", ".join(str(spec.seed) for spec in specs) or "-",
            _fitting_time(recorded) if recorded else "-",
            _command(specs, recorded) if specs else "-",
        ),
        spread([figure[METRIC] for figure in figures]).mean,
    )


def _ahead(figures: Sequence[Mapping[str, Any]]) -> str:
    """How far several seeds are from the best baseline, "-" where one of them was recorded before that was."""
    if not all(figure.get("differences") for figure in figures):
        return "-"
    found = [nearest_baseline(figure["differences"])[1] for figure in figures]
    mean, low, high = (spread([one[part] for one in found]).mean for part in ("mean", "low", "high"))
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


def _timed(spec: RunSpec) -> bool:
    return spec.data.first_ms is not None


def _fitting_time(recorded: Sequence[Mapping[str, Any]]) -> str:
    """The mean over seeds, the longest where it is another, and on what."""
    seconds = [metrics["seconds"] for metrics in recorded]
    shown, longest = _time(spread(seconds).mean), _time(max(seconds))
    if longest != shown:
        shown += f", longest {longest}"
    places = {metrics["device"] for metrics in recorded}
    return f"{shown} ({', '.join(sorted(places))})"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _command(specs: Sequence[RunSpec], recorded: Sequence[Mapping[str, Any]] = ()) -> str:
    """What makes these runs again, but for the seed where there are several, and whether a record was read back."""
    spec = specs[0]
    compared = compared_name(spec)
    config = compared or spec.name
    known = (CONFIGS / f"{config}.toml").is_file()
    verb = "activations" if compared else "cold" if spec.hidden else "train"
    words = ["python", "-m", "training", verb, config if known else f"{config}.toml"]
    for path in spec.files:
        words += ["--data", _relative(path)]
    if spec.attributes is not None:
        words += ["--attributes", _relative(spec.attributes)]
    for role, name in (
        ("user", spec.columns.user),
        ("item", spec.columns.item),
        ("timestamp", spec.columns.timestamp),
        ("value", spec.columns.value),
    ):
        if name != getattr(Columns(), role):
            words += [f"--{role}-column", str(name)]
    for path in spec.test:
        words += ["--test", _relative(path)]
    if spec.split not in (default_split(spec.config), "file"):
        words += ["--split", spec.split]
    if spec.hidden:
        words += ["--share", f"{spec.hidden:g}"]
    command = f"`{shlex.join(words)} --seed {spec.seed if len(specs) == 1 else 'SEED'}`"
    changed = [f"{name} {before!r}, now {now!r}" for name, (before, now) in spec.changed_since().items()]
    command += f" of an earlier {spec.name} ({'; '.join(changed)})" if changed else ""
    back = [str(spec.seed) for spec, metrics in zip(specs, recorded, strict=False) if "read_back" in metrics]
    return command + (f"; read back: seed {', '.join(back)}" if back else "")


def _relative(path: Path) -> str:
    """As it is reached from here: a page must not speak of somebody's home."""
    return os.path.relpath(path)
