"""What a user gets: the wheel holds everything, and runs far from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest
from test_architecture import PACKAGES, ROOT, packages_declared

CODE = sorted({folder.split("/")[0] for folder in PACKAGES.values()})


def build_wheel(work: Path, *, config: str) -> Path:
    """Build a wheel from a copy of the sources, so that nothing stale and nothing in the checkout takes part."""
    for folder in CODE:
        shutil.copytree(ROOT / folder, work / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, work)
    (work / "setup.cfg").write_text(config)
    code = "from setuptools.build_meta import build_wheel\nbuild_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=work, check=True, capture_output=True)
    return next((work / "dist").glob("*.whl"))


def missing(wheel: Path) -> list[str]:
    """Return the files of our packages that the wheel lacks."""
    held = set(ZipFile(wheel).namelist())
    expected = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(expected - held)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"), config=(ROOT / "setup.cfg").read_text())


def test_wheel_is_complete(wheel: Path) -> None:
    assert missing(wheel) == []
    held = ZipFile(wheel).namelist()
    assert "sbi_core/py.typed" in held
    assert any(name.startswith("sbi_core/conf/") and name.endswith(".yaml") for name in held)
    assert {f"{package.replace('.', '/')}/__init__.py" for package in packages_declared()} <= set(held)
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"sbi_core"}


def test_wheel_saboteur(tmp_path: Path) -> None:
    config = (ROOT / "setup.cfg").read_text().replace("sbi_core.conf = *.yaml, */*.yaml", "")
    lost = missing(build_wheel(tmp_path, config=config))
    assert lost
    assert {name.split("/")[1] for name in lost} == {"conf"}


@pytest.mark.slow
def test_wheel_runs_elsewhere(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (Path(where) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", "--ignore-installed", wheel], check=True)

    work = tmp_path / "elsewhere"
    work.mkdir()
    for name in ("simulators", "estimators", "design", "conf"):
        (work / f"{name}.py").write_text("raise RuntimeError('a bare name was imported')")
    code = """
import sbi_core, sbi_core.conf, sbi_core.design, sbi_core.estimators, sbi_core.simulators
from importlib.resources import files
from pathlib import Path
print(sbi_core.simulators.__file__)
print(len(list(Path(str(files(sbi_core.conf))).rglob("*.yaml"))))
"""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run([python, "-c", code], cwd=work, env=env, check=True, capture_output=True, text=True)
    file, count = run.stdout.split()
    assert Path(file).is_relative_to(where)
    assert int(count) == len(list((ROOT / "conf").rglob("*.yaml")))
    own = subprocess.run([python, "-c", "import simulators"], cwd=work, env=env, capture_output=True, text=True)
    assert "a bare name was imported" in own.stderr  # the user's own module stays reachable
