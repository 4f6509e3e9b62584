"""What the README says works: its commands exist, its Python and its command lines run."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sbi_core.estimators.training
from sbi_core import simulate
from sbi_core.cli import main
from sbi_core.cli_design import main as sbi_design
from sbi_core.simulators import GaltonBoard

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULE = """
import torch
from sbi_core import Parameter, Simulator

class MySimulator(Simulator):
    parameters = (Parameter("mu", -2, 2),)

    def sample(self, theta, design, generator):
        return theta + torch.randn(theta.shape, generator=generator, dtype=torch.float64), None


class MyExperiment(MySimulator):
    designs = (Parameter("arm", 0, 3),)

    def sample(self, theta, design, generator):
        return super().sample(theta if design is None else theta * design, None, generator)
"""


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


SETUP = [block.split() for block in blocks("bash") if "sbi-" not in block]
LINES = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("sbi-run")]
STUDIES = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("sbi-design")]


def targets(makefile: str) -> set[str]:
    return set(re.findall(r"^(\w+):", makefile, re.M))


def broken_links(text: str) -> list[str]:
    """Return the files that a text links to and that are not there."""
    links = re.findall(r"\]\((?!http)([^)]+)\)", text)
    return [link for link in links if not (ROOT / link).is_file()]


def test_two_set_up_commands() -> None:
    assert SETUP == [["make", "demo", "make", "test"]]
    assert {"demo", "test"} <= targets((ROOT / "Makefile").read_text())
    assert "demo" not in targets("demonstration: x\n\tdemo: y\n")


def test_links_and_folders() -> None:
    assert broken_links(README) == []
    assert broken_links("[gone](tutorials/00_gone.ipynb)") == ["tutorials/00_gone.ipynb"]
    folders = re.findall(r"^\| `(\w+)/` \|", README, re.M)
    assert len(folders) == 8
    assert [name for name in folders if not (ROOT / name).is_dir()] == []


@pytest.mark.parametrize("block", blocks("python"), ids=["function", "galton"])
def test_python(block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sbi_core.estimators.training, "STEPS", 20)
    monkeypatch.setattr(sbi_core.estimators.training, "EPOCHS", 2)
    names: dict[str, object] = {}
    exec(block.replace("10_000", "500"), names)
    posterior = names["posterior"]
    assert isinstance(posterior, sbi_core.Posterior)
    low, high = posterior.credible_interval(0.683)
    assert torch.isfinite(low).all() and bool((low < posterior.mean).all() and (posterior.mean < high).all())


@pytest.mark.parametrize("line", LINES)
def test_command_line(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_module.py").write_text(MODULE)
    for name in ("balls.csv", "new.csv"):
        (tmp_path / name).write_text("x\n17\n12\n")
    np.save("measured.npy", np.array([12.0]) if "data=" in line else np.array([0.5]))
    simulate(GaltonBoard(), 200, seed=1, progress=False).to_npz("rows.npz")
    short = ["training.max_epochs=2", *([] if "data=" in line else ["n_simulations=200"])]
    arguments = [word for word in shlex.split(line)[1:] if not word.startswith("n_simulations=")]
    if line.startswith("sbi-run run_dir=first"):
        assert main(["loss=alice", "seed=3", "iid=true", "x_obs=balls.csv", "run_dir=first", *short]) == 0
        short = []
    assert main([*arguments, *short]) == 0
    sys.modules.pop("my_module", None)
    assert list(tmp_path.rglob("report.html"))


def test_command_line_saboteur(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(LINES) == 5
    assert main(["loss=alice", "n_simulation=200"]) == 2
    assert main(["loss=alicia", "n_simulations=200"]) == 2


def test_names_in_conf() -> None:
    for group, name in (("loss", "carl"), ("loss", "alice"), ("loss", "alices"), ("study", "galton")):
        assert (ROOT / "conf" / group / f"{name}.yaml").is_file()
        assert name in README
    assert f"Python ≥ {sys_version_required()}" in README


def sys_version_required() -> str:
    found = re.search(r"python_requires = >=(\S+)", (ROOT / "setup.cfg").read_text())
    assert found
    return found[1]


def test_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_module.py").write_text(MODULE)
    simulated, asks, goes_on = (shlex.split(line)[1:] for line in STUDIES)
    small = ["gain.n=32", "gain.inner=32", "baselines=1", "progress=false"]
    assert sbi_design([*simulated, *small, "rounds=2", "events=50", "candidates=[80, 95]"]) == 0
    assert " after 2 experiments" in capsys.readouterr().out
    fewer = [word for word in asks if not word.startswith("n_simulations=")]
    assert sbi_design([*fewer, *small, "n_simulations=200", "training.max_epochs=2", "gain.budget=6"]) == 0
    assert "nothing has been observed. Next experiment: arm = " in capsys.readouterr().out
    np.save("mine/answers/000.npy", np.array([1.0]))
    assert sbi_design(goes_on) == 0
    assert "Write its outcome to mine/answers/001.npy" in capsys.readouterr().out
