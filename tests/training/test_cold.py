"""Hiding items from training, on a log worked out by hand, and placing them where their attributes say something."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.cold import SHARE, hide
from training.dataset import Dataset, DatasetError, build_dataset
from training.interactions import Interactions, read_interactions


def read(folder: Path, *rows: str) -> tuple[Dataset, Interactions]:
    """A data set of rows of "user item item ...", oldest first, one event a second."""
    events = [(row.split()[0], item) for row in rows for item in row.split()[1:]]
    frame = pl.DataFrame(events, schema=["user_id", "item_id"], orient="row").with_row_index("timestamp")
    frame.with_columns(pl.col("timestamp") + 1_700_000_000).write_csv(folder / "log.csv")
    interactions = read_interactions([folder / "log.csv"])
    return build_dataset(interactions), interactions


def last_new(items: list[str], hidden: set[str]) -> int:
    """Where a user meets the last hidden item not met before; -1 for none."""
    return max((items.index(item) for item in hidden.intersection(items)), default=-1)


def test_what_follows_a_users_last_new_hidden_item_and_all_hidden_items_are_not_learned(tmp_path: Path) -> None:
    rows = ("u a b c d e f", "v f e d c b a a", "w a a", "x b c d e f b c d e f")
    dataset, interactions = read(tmp_path, *rows)
    split = hide(dataset, interactions, share=0.34, seed=0)  # two of six
    hidden = set(split.hidden)
    assert len(hidden) == 2
    learned: dict[str, str] = {}
    judged = []
    for row in rows:
        user, *items = row.split()
        last = last_new(items, hidden)
        before = [item for item in items[: max(0, last)] if item not in hidden]
        kept = before if before else [item for item in items if item not in hidden]
        learned |= {user: " ".join(kept)} if kept else {}
        if before:
            judged.append((before, items[last], {item for item in items[:last] if item in hidden}))
    frame = split.learned.frame.group_by("user_id", maintain_order=True).agg(pl.col("item_id"))
    assert {user: " ".join(items) for user, items in frame.iter_rows()} == learned
    found = zip(split.histories, split.targets, split.met, strict=True)
    assert [(history, split.hidden[one], {split.hidden[n] for n in met}) for history, one, met in found] == judged
    assert split.counts.tolist() == [sum(row.split()[1:].count(item) for row in rows) for item in split.hidden]
    assert split.learned.frame["timestamp"].is_sorted()
    for item, contexts in zip(split.hidden, split.contexts, strict=True):
        expected: dict[tuple[str, ...], None] = {}
        for row in rows:  # one user's events after another's
            _, *items = row.split()
            last = last_new(items, hidden)
            for place, one in enumerate(items[: max(0, last)]):
                context = tuple(other for other in items[:place] if other not in hidden)[-3:]
                if one == item and context:
                    expected[context] = None
        assert contexts == list(expected)


def test_nobody_is_judged_by_an_item_met_before_nor_places_it(tmp_path: Path) -> None:
    """Of a user who returns to hidden items, one of two, the first meeting with the last of them is the target."""
    users = [f"u{n} a{n % 3} b{n % 4} h a{(n + 1) % 3} g b{n % 2} h g" for n in range(12)]
    dataset, interactions = read(tmp_path, *users, *(f"v{n} h a0 h" for n in range(3)))
    split = next(
        found
        for seed in range(500)
        if set((found := hide(dataset, interactions, share=2 / 9, seed=seed)).hidden) == {"h", "g"}
    )
    assert [split.hidden[target] for target in split.targets] == ["g"] * 12  # and none of v0 to v2
    assert all(target not in met for target, met in zip(split.targets, split.met, strict=True))
    assert split.histories[0] == ["a0", "b0", "a1"]
    contexts = dict(zip(split.hidden, split.contexts, strict=True))
    assert (contexts["g"], contexts["h"][0]) == ([], ("a0", "b0"))  # g is in everybody's way as the target alone
    learned = split.learned.frame.filter(user_id="v0")["item_id"].to_list()
    assert learned == ["a0"]


def test_what_is_hidden_follows_from_the_seed(tmp_path: Path) -> None:
    dataset, interactions = read(tmp_path, "u " + " ".join(f"i{n}" for n in range(50)))
    found = [hide(dataset, interactions, share=SHARE, seed=seed).hidden for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 10


def test_where_nobody_meets_a_hidden_item_after_another_nothing_can_be_judged(tmp_path: Path) -> None:
    dataset, interactions = read(tmp_path, "u a", "v b", "w c", "x d", "y e")
    with pytest.raises(DatasetError, match="hide a larger share"):
        hide(dataset, interactions, share=SHARE, seed=0)


@pytest.fixture
def kinds(tmp_path: Path) -> tuple[Path, Path]:
    """A log of 120 users who each stay with the items of one of four kinds, and the kinds of its 40 items."""
    generator = np.random.default_rng(0)
    rows = []
    for user in range(120):
        chosen = generator.permutation(10)[:8] * 4 + user % 4
        rows += [(f"u{user}", f"i{item}", 1_700_000_000 + 60 * step) for step, item in enumerate(chosen)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "log.csv")
    kinds = pl.DataFrame({"item_id": [f"i{n}" for n in range(40)], "kind": [f"k{n % 4}" for n in range(40)]})
    kinds.write_csv(tmp_path / "kinds.csv")
    return tmp_path / "log.csv", tmp_path / "kinds.csv"


@pytest.mark.parametrize("model", ["", 'name = "s3rec"\nitem_attributes = true\n'])
def test_attributes_that_place_no_hidden_item_are_refused_before_anything_is_fitted(
    tmp_path: Path, kinds: tuple[Path, Path], model: str
) -> None:
    """Each item has a colour of its own, so that none tells of another."""
    import io

    from rich.console import Console

    from training.cold import evaluate_cold
    from training.interactions import Columns

    pl.read_csv(kinds[1]).select("item_id", colour="item_id").write_csv(tmp_path / "colours.csv")
    (tmp_path / "tiny.toml").write_text(f"[model]\n{model}")
    with pytest.raises(DatasetError, match=r"attributes place none of 16 hidden items.*share with other items"):
        evaluate_cold(
            *(str(tmp_path / "tiny.toml"), [kinds[0]], Columns(), tmp_path / "colours.csv"),
            share=0.4,
            seed=1,
            output=tmp_path / "run",
            console=Console(file=io.StringIO()),
        )
    assert not (tmp_path / "run").exists()


def test_attributes_place_hidden_items_far_above_chance(
    tmp_path: Path, kinds: tuple[Path, Path], one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """16 hidden items of 4 kinds: those of a user's kind are to come first, and among them is no order."""
    import io

    from rich.console import Console

    from training.cold import evaluate_cold
    from training.interactions import Columns
    from training.measures import summarise
    from training.run import RunFolder

    config = tmp_path / "tiny.toml"
    config.write_text(
        "[model]\ndim = 16\nblocks = 1\nheads = 1\ninner = 16\nlength = 8\ndropout = 0.1\n"
        "[training]\nbatch = 32\nepochs = 10\nlearning_rate = 0.01\n"
    )

    def judged(attributes: Path) -> dict[str, float]:
        found = evaluate_cold(
            *(str(config), [kinds[0]], Columns(), attributes),
            share=0.4,
            seed=1,
            output=tmp_path / "run",
            console=Console(file=io.StringIO()),
        )
        assert (found.hidden, found.placed) == (16, 16)
        assert 0 < found.shown <= 1
        assert found.table().row_count == 6
        assert RunFolder(tmp_path / "run").spec().hidden == 0.4
        return {name: summarise(ranks)["mrr"] for name, ranks in found.ranks.items()}

    figures = judged(kinds[1])
    by_events = ["3 events", "attributes and 3 events", "attributes and 20 events"]
    assert list(figures) == ["chance", "popularity, an oracle", "attributes", *by_events]
    assert figures["3 events"] > 1.5 * max(figures["chance"], figures["popularity, an oracle"])
    assert figures["chance"] < 0.3
    assert figures["attributes"] > 1.5 * max(figures["chance"], figures["popularity, an oracle"])


@pytest.mark.usefixtures("one_thread")
def test_of_fewer_than_ten_items_all_are_shown(tmp_path: Path) -> None:
    import io

    from rich.console import Console

    from training.cold import evaluate_cold
    from training.interactions import Columns

    generator = np.random.default_rng(0)
    rows = [f"u{user},i{item},{step}\n" for user in range(30) for step, item in enumerate(generator.permutation(9))]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
    (tmp_path / "kinds.csv").write_text("item_id,kind\n" + "".join(f"i{n},k{n % 2}\n" for n in range(9)))
    (tmp_path / "tiny.toml").write_text("[model]\ndim = 8\nblocks = 1\nheads = 1\ninner = 8\n[training]\nepochs = 1\n")
    found = evaluate_cold(
        *(str(tmp_path / "tiny.toml"), [tmp_path / "log.csv"], Columns(), tmp_path / "kinds.csv"),
        share=0.34,
        seed=0,
        output=tmp_path / "run",
        console=Console(file=io.StringIO()),
    )
    assert (found.hidden, found.placed, found.shown) == (3, 3, 1.0)
