"""Small libraries that are preloaded into a server, to see what it does to its files or to refuse it."""

import shutil
import subprocess
from pathlib import Path

from reliability.promise import CannotTryError

_HERE = Path(__file__).parent


def compiled(name: str, folder: Path) -> Path:
    """A shared library of `name`.c. Raises CannotTryError where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise CannotTryError("there is no C compiler (cc or gcc) for a library that watches the server's files")
    library = folder / f"{name}.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(_HERE / f"{name}.c"), "-ldl"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - the system's compiler
    if done.returncode:
        raise CannotTryError(f"{name}.c cannot be compiled here: {done.stderr.strip()[:300]}")
    return library
