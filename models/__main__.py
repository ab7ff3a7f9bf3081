"""`python -m models`: look after the versions in an artifacts folder.

Needs no torch and no web framework, so that an operator can roll back from any machine that sees the folder.
"""

import argparse
import os
import sys
from pathlib import Path

from models.bundle import read_bundle
from models.device import DeviceError, check_installation
from models.manifest import BundleError
from models.registry import Registry, RegistryError
from models.runtime import Runtime

_EPILOG = """examples:
  python -m models list
  python -m models verify 20261122-093000-sasrec
  python -m models promote 20261122-093000-sasrec    a running service swaps to it within a second
  python -m models rollback                          back to the champion before"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m models",
        description="Versions of the served model: list, verify, promote, roll back.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    artifacts = Path(os.environ.get("RECSERVE_ARTIFACTS") or "artifacts")  # as the service reads it
    about = "folder of bundles (RECSERVE_ARTIFACTS, or artifacts)"
    parser.add_argument("--artifacts", type=Path, default=artifacts, help=about)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all versions with their figures; * marks the champion")
    for name, text in (("verify", "check digests and replay the golden inputs"), ("promote", "verify, then serve it")):
        commands.add_parser(name, help=text, description=text).add_argument("version", help="a name that list shows")
    commands.add_parser("rollback", help="serve the champion before this one again")
    for command in commands.choices.values():  # it may stand behind the command as well
        command.add_argument("--artifacts", type=Path, default=argparse.SUPPRESS, help=about)
    options = parser.parse_args(arguments)
    registry = Registry(options.artifacts)
    try:
        if options.command == "list":
            _list(registry)
        elif options.command == "verify":
            _certify(registry, options.version)
            print(f"{options.version}: complete, unchanged, and equal to its golden answers")
        elif options.command == "promote":
            _certify(registry, options.version)
            before = registry.promote(options.version)
            print(f"champion is {options.version} (before: {before or 'none'})")
        else:
            print(f"champion is {registry.rollback()}")
    except (BundleError, RegistryError, DeviceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _certify(registry: Registry, version: str) -> None:
    check_installation()
    Runtime(read_bundle(registry.folder(version)), device="cpu").replay_golden()


def _list(registry: Registry) -> None:
    versions = registry.versions()
    if not versions:
        print(f"no versions in {registry.artifacts}; make one with: python -m training export RUN")
        return
    champion, unreadable = _champion(registry)
    print(f"  {'version':<32} {'model':<10} {'items':>9}  {'test':<14}  created")
    for version in versions:
        mark = "*" if version == champion else " "
        try:
            manifest = registry.manifest(version)
        except (BundleError, RegistryError, OSError) as error:  # it may have gone meanwhile
            print(f"{mark} {version:<32} damaged: {error}")
            continue
        shown = _figure(manifest.metrics.get("test"))
        print(f"{mark} {version:<32} {manifest.model:<10} {manifest.items:>9,}  {shown:<14}  {manifest.created}")
    if unreadable is not None:
        raise unreadable


def _champion(registry: Registry) -> tuple[str | None, Exception | None]:
    """The champion, or why it cannot be told: the versions are shown all the same."""
    try:
        return registry.current(), None
    except (RegistryError, OSError) as error:
        return None, error


def _figure(test: object) -> str:
    """The figure a model was chosen for: of a ranking its NDCG, of ratings their error."""
    figures = test if isinstance(test, dict) else {}
    return next((f"{name}={figures[name]:.4f}" for name in ("ndcg@10", "rmse") if name in figures), "-")


if __name__ == "__main__":
    sys.exit(main())
