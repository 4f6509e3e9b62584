"""The rules of the house, each with a saboteur that must be caught."""

import ast
import configparser
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
from omegaconf import OmegaConf

import sbi_core
from sbi_core.cli import build

ROOT = Path(__file__).parent.parent
OUTSIDE = {"tests", "tutorials", "benchmarks", "build", "dist"}
ROOMS = ("simulators", "estimators", "design", "conf")
MAY_IMPORT = {
    "sbi_core": {"sbi_core"},
    "simulators": {"simulators", "sbi_core"},
    "estimators": {"estimators", "sbi_core"},
    "design": {"design", "estimators", "sbi_core"},
    "conf": {"sbi_core", *ROOMS},
}
NAMELESS = re.compile(r"(util|helper|common|base|manager|misc)s?")
SHAPE_ITEM = r"(?:\*\w*|\.\.\.|\d+|[A-Z]\w?(?: [+-] \d+)?|n_\w+|event)"
SHAPE = re.compile(rf"(?<!\w)\((?:|{SHAPE_ITEM},?|{SHAPE_ITEM}(?:, {SHAPE_ITEM})+)\)")


def packages_on_disk(root: Path) -> dict[str, str]:
    """Return package name -> folder, for every folder of code below `root`."""
    folders = [path.parent.relative_to(root) for path in root.rglob("__init__.py")]
    code = [f for f in folders if f.parts and f.parts[0] not in OUTSIDE and not f.parts[0].startswith(".")]
    return {".".join(f.parts if f.parts[0] == "sbi_core" else ("sbi_core", *f.parts)): f.as_posix() for f in code}


def packages_declared() -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(config["options"]["packages"].split())


PACKAGES = packages_on_disk(ROOT)
SOURCES = sorted(path for folder in PACKAGES.values() for path in (ROOT / folder).glob("*.py"))
MODULES = sorted(
    package if path.stem == "__init__" else f"{package}.{path.stem}"
    for package, folder in PACKAGES.items()
    for path in (ROOT / folder).glob("*.py")
)
by_file = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())


def imported(source: str, package: str = "") -> Iterator[str]:
    """Yield the absolute dotted name of everything a source text imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            origin = [".".join(parts[: len(parts) + 1 - node.level])] if node.level else []
            name = ".".join(origin + ([node.module] if node.module else []))
            yield from (f"{name}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def forbidden_arrows(source: str, room: str, package: str) -> list[str]:
    found = []
    for name in imported(source, package):
        parts = name.split(".")
        if parts[0] == "sbi_core":
            target = parts[1] if len(parts) > 1 and parts[1] in ROOMS else "sbi_core"
            found += [name] if target not in MAY_IMPORT[room] else []
        elif parts[0] in OUTSIDE:
            found.append(name)
    return found


def bare_names(source: str) -> list[str]:
    return [name for name in imported(source) if name.split(".")[0] in ROOMS]


def narrows(test: ast.expr) -> bool:
    """Tell whether an assertion only tells the type checker what the code already holds."""
    if isinstance(test, ast.BoolOp):
        return all(map(narrows, test.values))
    return ast.unparse(test).endswith(" is not None") or ast.unparse(test).startswith("isinstance(")


def unsafe(source: str) -> list[str]:
    """Return every assert that checks values, every pickle and every torch.load of a source text."""
    found = [f"import {name}" for name in imported(source) if re.match(r"(cloud)?pickle\b|dill\b|torch\.load$", name)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and (node.msg or not narrows(node.test)):
            found.append(f"line {node.lineno}: assert")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            found.append(f"line {node.lineno}: torch.load")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append(f"line {node.value.lineno}: allow_pickle")
    return found


def undocumented(name: str, thing: object) -> list[str]:
    """Return what lacks a docstring, or handles tensors without stating a shape."""
    methods = {}
    if isinstance(thing, type):
        methods = {
            f"{name}.{key}": inspect.unwrap(getattr(thing, key))
            for key, value in vars(thing).items()
            if not key.startswith("_") and isinstance(value, FunctionType | staticmethod | classmethod)
        }
    found = [] if (inspect.getdoc(thing) or "").strip() else [f"{name}: no docstring"]
    for key, function in ({name: thing} if isinstance(thing, FunctionType) else methods).items():
        doc = inspect.getdoc(function) or ""
        if not doc and key != name:
            found.append(f"{key}: no docstring")
        if doc and "Tensor" in str(list(function.__annotations__.values())) and not SHAPE.search(doc):
            found.append(f"{key}: handles tensors, states no shape")
    return found


@by_file
def test_arrows(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    package = next(name for name, folder in PACKAGES.items() if ROOT / folder == path.parent)
    if path not in (ROOT / "sbi_core" / "cli.py", ROOT / "sbi_core" / "cli_design.py"):
        assert forbidden_arrows(path.read_text(), room, package) == []


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("import sbi_core.estimators", "simulators"),
        ("from sbi_core import simulators", "estimators"),
        ("def f():\n    from ..design import propose", "estimators"),
        ("from .simulators import GaltonBoard", "sbi_core"),
        ("import importlib\nimportlib.import_module('sbi_core.design')", "sbi_core"),
        ("from tests.conftest import thing", "design"),
    ],
)
def test_arrows_saboteur(source: str, room: str) -> None:
    assert forbidden_arrows(source, room, "sbi_core" if room == "sbi_core" else f"sbi_core.{room}")


def test_arrows_allowed() -> None:
    source = "from sbi_core.estimators import fit\nfrom .. import simulate\nfrom . import gain\nimport torch"
    assert forbidden_arrows(source, "design", "sbi_core.design") == []


def test_no_bare_names() -> None:
    files = [*SOURCES, *(path for top in sorted(OUTSIDE) for path in (ROOT / top).rglob("*.py"))]
    assert {path.name: found for path in files if (found := bare_names(path.read_text()))} == {}


@pytest.mark.parametrize(
    "source", ["import conf", "from simulators.toy import Toy", "def f():\n    import design.gain"]
)
def test_no_bare_names_saboteur(source: str) -> None:
    assert bare_names(source)


def test_package_list_is_the_folders() -> None:
    assert packages_declared() == set(PACKAGES)


def test_package_list_saboteur(tmp_path: Path) -> None:
    for folder in ("sbi_core", "sbi_core/forgotten", "simulators", "tests"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    assert set(packages_on_disk(tmp_path)) == {"sbi_core", "sbi_core.forgotten", "sbi_core.simulators"}


def test_names_say_something() -> None:
    assert [path for path in SOURCES if NAMELESS.fullmatch(path.stem)] == []
    assert [folder for folder in PACKAGES.values() if NAMELESS.fullmatch(Path(folder).name)] == []


@pytest.mark.parametrize("name", ["utils", "util", "helpers", "common", "base", "manager", "misc"])
def test_names_saboteur(name: str) -> None:
    assert NAMELESS.fullmatch(name)
    assert not NAMELESS.fullmatch(f"{name}_of_theta")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_configuration_builds(path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, Mapping)
    assert build(config, path.parent.name) is not None


def test_configuration_saboteur() -> None:
    with pytest.raises(sbi_core.SbiError):
        build({"_target_": "sbi_core.simulators.NoSuchWorld"}, "simulator")


@pytest.mark.parametrize(
    "package", ["sbi_core", "sbi_core.inference", "sbi_core.simulators", "sbi_core.estimators", "sbi_core.design"]
)
def test_public_names_are_documented(package: str) -> None:
    module = importlib.import_module(package)
    things = {name: getattr(module, name) for name in module.__all__}
    assert [line for name, thing in things.items() for line in undocumented(name, thing)] == []


def test_documented_saboteur() -> None:
    module = ModuleType("saboteur")
    source = '''
from torch import Tensor
def silent(n): ...
def shapeless(theta: Tensor) -> Tensor:
    """Call log(theta) (see CARL)."""
class World:
    """A world."""
    def log_joint(self, theta: "Tensor"):
        """Return f()."""
def good(theta: Tensor) -> Tensor:
    """Take theta (*, D), return ()."""
'''
    exec(source, module.__dict__)
    found = [
        line for name in ("silent", "shapeless", "World", "good") for line in undocumented(name, vars(module)[name])
    ]
    assert [line.split(":")[0] for line in found] == ["silent", "shapeless", "World.log_joint"]


@pytest.mark.parametrize("text", ["(N, D)", "(*, D)", "(D,)", "()", "(N, K + 1)", "(M, n_max, ...)", "(*, event)"])
def test_shape_is_recognised(text: str) -> None:
    assert SHAPE.search(f"theta {text}.")


def failed_examples(module: ModuleType) -> int:
    """Run the examples in the docstrings of a module; return how many went wrong."""
    return doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).failed


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    assert failed_examples(importlib.import_module(name)) == 0


def test_examples_saboteur() -> None:
    module = ModuleType("saboteur", "Add.\n\n>>> 1 + 1\n3\n")
    assert failed_examples(module) == 1


def surplus_lines(source: str) -> int:
    return max(0, len(source.splitlines()) - 320)


@by_file
def test_file_is_a_page(path: Path) -> None:
    assert surplus_lines(path.read_text()) == 0


def test_file_is_a_page_saboteur() -> None:
    assert surplus_lines("x = 1\n" * 321) == 1
    assert surplus_lines("x = 1\n" * 320) == 0


@by_file
def test_nothing_unsafe(path: Path) -> None:
    assert unsafe(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "assert n > 0",
        "assert z is not None and n > 0",
        "assert z is not None, 'give z'",
        "import pickle",
        "def f():\n    from pickle import loads",
        "import torch\ntorch.load('model')",
        "from torch import load",
        "numpy.load('x', allow_pickle=True)",
    ],
)
def test_nothing_unsafe_saboteur(source: str) -> None:
    assert unsafe(source)
    assert unsafe("import numpy\nassert z is not None\nstate = torch.load_state") == []


def cost(statement: str, after: str) -> tuple[float, float]:
    """Return the memory (MB) and CPU time (s) a statement adds in a fresh interpreter, each the least of three."""
    measure = "print(psutil.Process().memory_info().rss / 1e6, time.process_time())"
    code = "\n".join(["import psutil, time", after, measure, statement, measure])
    added = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        memory, seconds, memory_now, seconds_now = map(float, run.stdout.split())
        added.append((memory_now - memory, seconds_now - seconds))
    return min(memory for memory, _ in added), min(seconds for _, seconds in added)


def affordable(statement: str, after: str) -> bool:
    memory, seconds = cost(statement, after)
    return memory <= 40 and seconds <= 0.5


def test_import_is_cheap() -> None:
    assert affordable("import sbi_core", "import torch")


@pytest.mark.parametrize("waste", ["x = b'1' * 60_000_000", "while time.process_time() < 0.8: pass"])
def test_import_is_cheap_saboteur(waste: str) -> None:
    assert not affordable(waste, "pass")
