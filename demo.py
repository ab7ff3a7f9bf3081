"""`./run demo`: MovieLens-100K becomes a live recommender, and a new user is seen to be understood.

It drives the real programs, each in a process of its own: fetch, train, export, the service with its embedded store.
The story goes over HTTP like any client's.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from models.bundle import read_bundle
from models.interrupts import end_as_interrupted
from models.manifest import BundleError
from models.registry import Registry, RegistryError

CONFIG = "ml-100k"
USER = "ann"
FIRST_FIVE = (50, 172, 181, 174, 89)  # Star Wars, its two sequels, Raiders of the Lost Ark, Blade Runner
ONE_MORE = 99  # Snow White and the Seven Dwarfs
READY_WITHIN_S = 30


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run demo", description="Train on MovieLens-100K, serve it, show it working."
    )
    parser.add_argument("--exit", action="store_true", help="stop after the story instead of serving on")
    parser.add_argument("--skip-train", action="store_true", help="use the bundle that is there")
    parser.add_argument("--port", type=int, default=8000, help="of the service (%(default)s)")
    # A folder of its own: what is trained on somebody's own data must learn nothing of the demo's films.
    parser.add_argument(
        "--artifacts", type=Path, default=Path("artifacts/demo"), help="bundles and store (%(default)s)"
    )
    parser.add_argument("--redis", metavar="URL", help="use this store instead of an embedded one")
    parser.add_argument("--from", dest="source", metavar="PATH", help="a copy of MovieLens-100K that you have")
    parser.add_argument(
        "--config", default=CONFIG, help="what to train: a name under training/configs/, or a TOML file"
    )
    options = parser.parse_args()
    end_as_interrupted()
    try:
        refuse_taken(options.port)  # before minutes of training
        if not options.skip_train:
            make_bundle(options)
        titles = read_titles(options.artifacts)
        with service(options) as (url, wait):
            tell_story(url, titles)
            print(where_next(url, call(url, "GET", "/models")["champion"]), flush=True)
            if not options.exit:
                print("\nServing until Ctrl-C.", flush=True)
                wait()
    except KeyboardInterrupt:
        print("\nStopped.")
    except subprocess.CalledProcessError as error:
        return error.returncode  # the program has said why
    except urllib.error.HTTPError as error:
        print(f"error: {error.url} answered {error.code}: {detail_of(error)}", file=sys.stderr)
        return 1
    except (DemoError, BundleError, RegistryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_bundle(options: argparse.Namespace) -> None:
    """Fetch, train, export and promote, each by its own command."""
    file = Path(options.config) if options.config.endswith(".toml") else Path(f"training/configs/{options.config}.toml")
    mark = hashlib.sha256(file.read_bytes()).hexdigest()[:8] if file.is_file() else "unknown"
    data = Path("data/ml-100k")
    run = options.artifacts / "runs" / f"demo-{file.stem}-{mark}"  # another configuration is another run
    training("fetch", "ml-100k", "--to", data, *(["--from", options.source] if options.source else []))
    files = ("--data", data / "ml-100k.inter", "--attributes", data / "ml-100k.item")
    training("train", options.config, *files, "--output", run)
    training("export", run, "--artifacts", options.artifacts, "--promote")


def training(*arguments: object) -> None:
    """Run one command of the training package where the user can see it."""
    print(f"\n$ python -m training {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, "-m", "training", *map(str, arguments)], check=True)  # noqa: S603 - our own program


def read_titles(artifacts: Path) -> dict[str, str]:
    """Film titles by item id, from the champion's attributes."""
    registry = Registry(artifacts)
    champion = registry.current()
    if champion is None:
        raise DemoError(f"there is no bundle in {artifacts} yet; run the demo without --skip-train")
    bundle = read_bundle(registry.folder(champion))
    titles = (bundle.attributes or {}).get("movie_title")
    missing = {str(film) for film in (*FIRST_FIVE, ONE_MORE)} - bundle.index_of.keys()
    if titles is None or missing:
        raise DemoError(
            f"{champion} in {artifacts} is not a model of MovieLens-100K; run the demo without --skip-train"
        )
    years = (bundle.attributes or {}).get("release_year", [None] * len(titles))
    return {item: f"{title} ({year})" for item, title, year in zip(bundle.ids, titles, years, strict=True) if title}


def refuse_taken(port: int) -> None:
    """Raise DemoError if another program listens on a port."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise DemoError(f"port {port} is taken by another program; choose another with --port")


@contextlib.contextmanager
def service(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], None]]]:
    """The service, ready to answer, and what waits for its end, which is an error; stopped when the block ends."""
    refuse_taken(options.port)  # again: a stranger that came meanwhile would answer for ours
    command = ["-m", "service", "serve", "--port", str(options.port), "--artifacts", str(options.artifacts)]
    environment = dict(os.environ)
    if options.redis:  # not on the command line, where everyone on the machine can read its password
        environment["RECSERVE_REDIS"] = options.redis
    else:
        command.append("--embedded")
    log = options.artifacts / "demo.log"
    print(f"\n$ python {' '.join(command)}   (its log: {log})", flush=True)
    url = f"http://127.0.0.1:{options.port}"
    with log.open("w", encoding="utf-8") as output:
        # In a group of its own: Ctrl-C reaches it through us, once.
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, *command], stdout=output, stderr=output, env=environment, process_group=0
        )

    def wait() -> None:
        process.wait()
        raise DemoError(f"the service ended; its log ({log}) ends with:\n{tail_of(log)}")

    try:
        wait_until_ready(url, process, log)
        yield url, wait
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave the service behind
        process.terminate()
        process.wait()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return once /readyz answers 200. Raises DemoError with the end of the log if the service does not get there."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            call(url, "GET", "/readyz")
            if process.poll() is None:
                return
        time.sleep(0.05)
    state = "ended" if process.poll() is not None else f"was not ready within {READY_WITHIN_S} s"
    raise DemoError(f"the service {state}; its log ({log}) ends with:\n{tail_of(log)}")


def tail_of(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])


def call(url: str, method: str, path: str, body: object = None) -> Any:
    """One JSON request. Raises OSError (HTTPError among them) if it does not succeed."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"}, method=method)  # noqa: S310
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({})
    )  # a proxy knows nothing of this machine's ports
    with direct.open(request, timeout=10) as response:
        return json.loads(response.read())


def detail_of(refusal: urllib.error.HTTPError) -> str:
    """What a problem says, or the reason of the status line where the answer is none."""
    try:
        return str(json.loads(refusal.read())["detail"])
    except (ValueError, KeyError, TypeError):
        return str(refusal.reason)


def tell_story(url: str, titles: dict[str, str]) -> None:
    """A new user watches five films, is recommended ten, watches one more, and the list follows."""
    user = f"{USER}-{time.time_ns() // 1_000_000}"  # new in every demo, also when the store is an old one
    now_ms = time.time_ns() // 1_000_000

    def watch(films: tuple[int, ...], since_ms: int) -> None:
        events = [
            {"user_id": user, "item_id": str(film), "timestamp": since_ms + second * 1000, "type": "view"}
            for second, film in enumerate(films)
        ]
        answer = call(url, "POST", "/events", {"events": events})
        watched = ", ".join(titles[str(film)] for film in films)
        print(f"POST /events     {user} watched {watched}\n                 -> {json.dumps(answer)}\n")

    def recommend(before: list[str]) -> list[str]:
        answer = call(url, "POST", "/recommend", {"user_id": user, "k": 10})
        print(f"POST /recommend  {answer['history_length']} films in the history, by {answer['model_version']}")
        ids = [item["item_id"] for item in answer["items"]]
        for place, item in enumerate(answer["items"], 1):
            mark = "  new" if before and item["item_id"] not in before else ""
            print(f"  {place:>2}  {item['score']:7.3f}  {titles[item['item_id']]}{mark}")
        print()
        return ids

    print()
    watch(FIRST_FIVE, now_ms - 3_600_000)
    first = recommend([])
    watch((ONE_MORE,), now_ms)
    second = recommend(first)
    if first == second or len(second) != 10:
        raise DemoError("the recommendations did not follow the film just watched; please report this")
    print(f"One more film, and {len(set(second) - set(first))} of ten recommendations are new.\n")


def where_next(url: str, version: str) -> str:
    """A line for each endpoint, to copy; `version` is one that can be promoted."""
    as_json = "-H 'Content-Type: application/json' -d"
    return f"""Where to look next: {url} in a browser, {url}/docs, or with curl:
  curl {url}/events {as_json} '{{"user_id": "bob", "item_id": "50", "type": "view"}}'
  curl {url}/recommend {as_json} '{{"user_id": "bob", "k": 3}}'
  curl {url}/recommend {as_json} '{{"history": ["50", "172"], "k": 3, "exclude_item_ids": ["181"]}}'
  curl {url}/models
  curl -X POST {url}/models/{version}/promote
  curl -X POST {url}/models/rollback
  curl {url}/healthz
  curl {url}/readyz
  curl {url}/metrics"""


if __name__ == "__main__":
    sys.exit(main())
