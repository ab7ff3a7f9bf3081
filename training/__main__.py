"""`python -m training`: fetch, train, judge, export, recommend, retrain, and what else its help lists."""

import sys
from collections.abc import Callable

import typer

from models.archive import ArchiveError
from models.device import DeviceError
from models.eventlog import EventLogError
from models.manifest import BundleError
from models.registry import RegistryError
from training.attributes import AttributesError
from training.backfill import BackfillError
from training.checkpoint import CheckpointError
from training.config import ConfigError
from training.dataset import DatasetError
from training.evaluate import EvaluationError
from training.export import ExportError
from training.fetch import FetchError
from training.fit import FitError
from training.fitting import activations, cold, fetch, train_command
from training.interactions import InteractionsError
from training.judging import evaluate, export_command, recommend_command, results
from training.operating import backfill_command, bench, bootstrap, retrain_command
from training.options import spread
from training.peer_process import PeersError
from training.recommend import RecommendError
from training.retrain import NotPromoted
from training.run import RunError

# What a person can put right: one sentence on standard error and exit status 1, never a traceback.
EXPECTED = (
    ArchiveError,
    AttributesError,
    BackfillError,
    BundleError,
    CheckpointError,
    ConfigError,
    DatasetError,
    DeviceError,
    EvaluationError,
    EventLogError,
    ExportError,
    FetchError,
    FitError,
    InteractionsError,
    PeersError,
    RecommendError,
    RegistryError,
    RunError,
    OSError,
)
NOT_PROMOTED = 3  # exit status of retrain when the challenger was worse

app = typer.Typer(
    help="From an interaction log to a certified model: fetch, train, evaluate, export, retrain.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# What each is called, and an example of it.
_COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("fetch", fetch, "fetch ml-100k --to data/ml-100k"),
    (
        "train",
        train_command,
        "train sasrec --data events.csv --user-column customer --item-column sku --output runs/first",
    ),
    ("activations", activations, "activations autorec-item --data ratings.csv --value-column rating"),
    ("cold", cold, "cold ml-100k --data ml-100k.inter --attributes ml-100k.item"),
    ("evaluate", evaluate, "evaluate artifacts/v2 --data events.csv --against artifacts/v1"),
    ("export", export_command, "export runs/first --promote"),
    ("recommend", recommend_command, "recommend v2 --data events.csv --output top.parquet"),
    ("backfill", backfill_command, "backfill --data events.csv --to http://127.0.0.1:8000"),
    ("retrain", retrain_command, "retrain --data history.parquet --events-from redis://localhost:6379"),
    ("results", results, "results runs/*"),
    ("bootstrap", bootstrap, "bootstrap --artifacts artifacts"),
    ("bench", bench, "bench data --interactions 1000000"),
)
for _name, _command, _example in _COMMANDS:
    app.command(name=_name, epilog=f"[bold]Example:[/] python -m training {_example}")(_command)


def main() -> int:
    try:
        app(spread(sys.argv[1:]))
    except NotPromoted as reason:
        print(f"not promoted: {reason}", file=sys.stderr)
        return NOT_PROMOTED
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
