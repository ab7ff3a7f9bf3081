"""`python -m service keys`: make, show and revoke the keys of those who may call the service."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from service.keyfile import SCOPES, KeyFolder, Limit
from service.settings import load_folders

_SECONDS = {"s": 1, "min": 60, "h": 3600}

_ABOUT = """Who may call the service, and what each may do. A service that runs notices a change within a second.

scopes, of which a key has one or more; none contains another:
  recommend   ask for recommendations, alone and in batches, and for similar items
  events      send events
  items       say attributes and availability of items
  admin       look at models, promote one, roll back; show and erase what is stored of a user

With no key at all the service answers whoever reaches it, and starts on this machine's loopback alone. From the first
key on nobody is answered without one."""

_EPILOG = """examples:
  python -m service keys create shop --scope recommend --scope events
  python -m service keys create partner --scope recommend --limit 100/s
  python -m service keys list
  python -m service keys revoke 3f9a0c21d7be

to replace a key without a gap: create the new one, give it to the client, and revoke the old one when the client has
changed over. A client sends its key in a header, Authorization: Bearer KEY"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its own to a parser's commands."""
    raw = argparse.RawDescriptionHelpFormatter
    keys = commands.add_parser(
        "keys", help="make, show and revoke API keys", description=_ABOUT, epilog=_EPILOG, formatter_class=raw
    )
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--keys", type=Path, metavar="DIR", help="folder of the keys (keys, in the artifacts)")
    where.add_argument("--artifacts", type=Path, metavar="DIR", help="folder of bundles (artifacts)")
    actions = keys.add_subparsers(dest="action", required=True)
    create = actions.add_parser(
        "create",
        help="make a key and print it, once",
        description="Make a key. It is printed, alone on a line, and kept nowhere: what is kept recognises it.",
        parents=[where],
    )
    create.add_argument("name", help="whose key it is, for `list`")
    create.add_argument(
        "--scope", dest="scopes", action="append", required=True, choices=SCOPES, help="what it may do; again for more"
    )
    create.add_argument(
        "--limit",
        type=_limit,
        metavar="N/s",
        help="most requests, N/s, N/min or N/h: N at once, then evenly N in each of it (none); a batch counts once",
    )
    actions.add_parser("list", help="show what is known of every valid key, which is not the key", parents=[where])
    revoke = actions.add_parser("revoke", help="make a key invalid for good", parents=[where])
    revoke.add_argument("id", help="the key's id, as `list` shows it and as it stands in the key: rsk_ID_...")


def run(options: dict[str, Any]) -> int:
    """Carry out a parsed command. Raises KeyFileError, BadSettings."""
    folder = KeyFolder(load_folders({name: options[name] for name in ("artifacts", "keys")}).keys_folder)
    match options["action"]:
        case "create":
            first = folder.stamp() is None
            made, key = folder.create(options["name"], options["scopes"], options["limit"])
            print(key)
            print(
                f"{made.name}'s key, with the scopes {', '.join(sorted(made.scopes))}; its id is {made.id}. Keep it "
                f"now: it is not stored and cannot be shown again. What recognises it is in {folder.folder}."
                + (" It is the first: from now on nobody is answered without a key." if first else ""),
                file=sys.stderr,
            )
        case "list":
            _show(folder)
        case _:
            revoked = folder.revoke(options["id"])
            left = len(folder.read().keys)
            said = f"{left} left" if left else "none is left, and nobody may call"
            print(f"The key {revoked.id} of {revoked.name} is revoked; {said}.", file=sys.stderr)
    return 0


def _show(folder: KeyFolder) -> None:
    rows = [("id", "created", "limit", "scopes", "name")]
    for key in folder.read().keys.values():
        rows.append((key.id, key.created, _said(key.limit), ",".join(sorted(key.scopes)), key.name))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(rows) == 1:
        print(f"There are no keys in {folder.folder}.", file=sys.stderr)


def _limit(text: str) -> Limit:
    found = re.fullmatch(r"([1-9][0-9]{0,5})/(s|min|h)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no limit; give one like 100/s, 30/min or 1000/h")
    return Limit(requests=int(found[1]), seconds=_SECONDS[found[2]])


def _said(limit: Limit | None) -> str:
    units = {seconds: unit for unit, seconds in _SECONDS.items()}
    return "none" if limit is None else f"{limit.requests}/{units.get(limit.seconds, f'{limit.seconds}s')}"
