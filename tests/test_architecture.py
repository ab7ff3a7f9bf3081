"""Who may import whom, held by reading every import and by starting the service without torch."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STANDARD = set(sys.stdlib_module_names)
PACKAGES = ("models", "service", "training")
NEED_TORCH = {"attributed", "autorec", "layers", "s3rec", "sasrec", "zoo"}  # of models
TORCH_FREE = sorted(path.stem for path in (ROOT / "models").glob("*.py") if path.stem not in NEED_TORCH)


@cache
def parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


@cache
def imports(module: Path) -> tuple[tuple[str, bool], ...]:
    """Full names of everything a module imports, and whether it happens when the module is loaded."""
    return tuple(_imports(module, parsed(module)))


def _imports(module: Path, tree: ast.Module) -> Iterator[tuple[str, bool]]:
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, id(node) not in inside) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            yield from ((f"{node.module}.{name.name}", id(node) not in inside) for name in node.names)
            yield node.module or "", id(node) not in inside


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(package: str) -> set[str]:
    return {name for module in modules(package) for name, _ in imports(module)}


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_models_depends_on_neither_of_the_others() -> None:
    assert not roots(imported("models")) & {"service", "training"}


def test_training_and_service_never_import_each_other() -> None:
    assert "service" not in roots(imported("training"))
    assert "training" not in roots(imported("service"))


def test_nobody_depends_on_what_measures() -> None:
    for package in PACKAGES:
        assert not {"bench", "reliability"} & roots(imported(package)), package


def test_service_imports_no_torch_and_of_models_only_what_has_none() -> None:
    names = imported("service")
    assert not roots(names) & {"torch", "onnx", "onnxscript", "polars", "scipy", "tests"}
    own = {module.stem for module in modules("models")}
    used = {name.split(".")[1] for name in names if name.startswith("models.")} & own
    assert used <= set(TORCH_FREE)


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_both_share_needs_little(name: str) -> None:
    found = set(imports(ROOT / "models" / f"{name}.py"))
    assert "torch" not in roots({name for name, _ in found})
    when_loaded = roots({name for name, at_load in found if at_load}) - STANDARD
    for_types = {"eventlog": "redis", "rewriting": "redis", "archive": "polars", "compaction": "polars"}
    typing_only = {for_types[name]} if name in for_types else set()
    assert when_loaded <= {"models", "numpy", "pydantic"} | typing_only


def test_redis_is_known_to_the_connection_what_it_stands_on_the_log_and_its_files_alone() -> None:
    for package in PACKAGES:
        for module in modules(package):
            if "redis" in roots({name for name, _ in imports(module)}):
                known = {"connection.py", "topology.py", "pools.py", "eventlog.py", "rewriting.py"}
                assert module.name in known, module


def test_onnxruntime_is_imported_in_one_place_which_keeps_it_from_reporting_to_its_maker() -> None:
    for package in (*PACKAGES, "bench", "reliability", "tests"):
        for module in modules(package):
            if "onnxruntime" in roots({name for name, _ in imports(module)}):
                assert module == ROOT / "models" / "device.py" or "peers" in module.parts, module


def test_the_environment_is_read_by_settings_alone() -> None:
    for module in modules("service"):
        text = module.read_text(encoding="utf-8")
        if "os.environ" in text or "getenv" in text:
            assert module.name in {"settings.py", "embedded.py"}, module


def test_no_module_is_called_after_nothing() -> None:
    names = {module.stem for package in PACKAGES for module in modules(package)}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_no_assert_guards_the_service() -> None:
    for module in modules("service"):
        tree = parsed(module)
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], module


WITHOUT_TORCH = r"""
import json, os, re, signal, sys, threading, time, urllib.request

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "polars", "training"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
from service.__main__ import main

class Stderr:
    def write(self, text):
        if match := re.search(r'serving on (http://[^"\s]+)', text):
            found["url"] = match[1]
    def flush(self): pass
    def isatty(self): return False

def ask():
    while "url" not in found:
        time.sleep(0.01)
    for attempt in range(200):
        try:
            request = urllib.request.Request(found["url"] + "/recommend", b'{"history": ["i3"], "k": 1}')
            found["answer"] = json.load(urllib.request.urlopen(request))
            break
        except OSError:
            time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

found = {}
stderr, sys.stderr = sys.stderr, Stderr()
threading.Thread(target=ask, daemon=True).start()
store = ["--redis", "redis://127.0.0.1:1"]
status = main(["serve", "--port", "0", "--device", "cpu", *store, "--artifacts", sys.argv[1]])
sys.stderr = stderr
print(status, found["answer"]["items"][0]["item_id"], "torch" in sys.modules)
"""


def test_the_service_starts_and_answers_without_torch(make_bundle: Callable[..., Path], artifacts: Path) -> None:
    make_bundle("v1")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(artifacts)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "i4", "False"], done.stderr


UNPICKLERS = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}


def test_nothing_is_ever_unpickled() -> None:
    """A file that is unpickled runs whatever it says: no import that does, and numpy and torch are told not to."""
    for package in PACKAGES:
        for module in modules(package):
            assert not roots({name for name, _ in imports(module)}) & UNPICKLERS, module
            for node in ast.walk(parsed(module)):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    assert options.get("allow_pickle", "False") == "False", f"{module}:{node.lineno}"
                    assert called != "np.load" or "allow_pickle" in options, f"{module}:{node.lineno}"
                    assert called != "torch.load", f"{module}:{node.lineno}: weights are kept as safetensors"
