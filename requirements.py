"""What the named extras need, one requirement a line: `python requirements.py service-cpu embedded`.

./run and the images install these under constraints.txt and run the packages from the tree. So a change of code needs
no build backend and no network, and an image keeps its layer of dependencies.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extras: list[str]) -> list[str]:
    """The project's own dependencies and those of the extras, extras within extras resolved, each once.

    project is the table `project` of pyproject.toml. Raises KeyError for an extra it does not have.
    """
    found: dict[str, None] = dict.fromkeys(project["dependencies"])
    own = f"{project['name']}["
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            if requirement.startswith(own):
                nested = requirement.removeprefix(own).removesuffix("]").split(",")
                found.update(dict.fromkeys(requirements(project, nested)))
            else:
                found[requirement] = None
    return list(found)


def main(extras: list[str]) -> None:
    """Print the requirements, or exit 1 with a sentence when an extra does not exist."""
    project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        print("\n".join(requirements(project, extras)))
    except KeyError as error:
        known = ", ".join(sorted(project["optional-dependencies"]))
        raise SystemExit(f"pyproject.toml has no extra {error}; it has {known}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
