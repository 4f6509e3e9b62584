import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sbi_core import InputError
from sbi_core.cli import main
from sbi_core.run_folder import recall
from sbi_core.settings import RUN

ROOT = Path(__file__).parent.parent
FAST = ["n_simulations=200", "training.max_epochs=2"]
OWN = {
    "my_world": '''
import os
from pathlib import Path

import torch
from sbi_core import Parameter, Simulator


class Shift(Simulator):
    """x ~ N(mu, scale^2)."""

    parameters = (Parameter("mu", -2, 2, unit="GeV"),)
    rows_per_seed = 50

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def sample(self, theta, design, generator):
        fuse = Path("fuse")
        if fuse.exists() and int(fuse.read_text()) == 0:
            raise RuntimeError("the fuse is blown")
        if fuse.exists():
            fuse.write_text(str(int(fuse.read_text()) - 1))
        return theta + self.scale * torch.randn(theta.shape, generator=generator, dtype=torch.float64), None


def lopsided(estimator, batch):
    return estimator.log_likelihood(batch.theta, batch.x).square().mean()
'''
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that is complete; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main([*FAST, f"run_dir={folder}", "seed=3"]) == 0
    return folder


@pytest.fixture
def folder(finished: Path, here: Path) -> Path:
    return Path(shutil.copytree(finished, here / "run")).relative_to(here)


def result(folder: Path) -> dict[str, dict[str, float]]:
    numbers: dict[str, dict[str, float]] = json.loads((folder / "summary.json").read_text())["numbers"]
    return numbers


def balls(path: Path, slots: list[float]) -> Path:
    path.write_text("x\n" + "".join(f"{slot}\n" for slot in slots))
    return path


def test_run_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = {path.name for path in finished.iterdir()}
    assert held >= {
        "simulations.zarr",
        "model",
        "posterior.npz",
        "posterior.nc",
        "summary.json",
        "report.html",
        "run.json",
    }
    assert [path.name for path in finished.parent.iterdir()] == ["run"]
    summary = json.loads((finished / "summary.json").read_text())
    assert all(number["verdict"] for number in summary["numbers"].values())
    assert summary["gold_check"]["passed"]
    assert summary["seed"] == 3
    with np.load(finished / "posterior.npz") as posterior:
        width = posterior["grid_theta"][1] - posterior["grid_theta"][0]
        assert np.exp(posterior["log_density"]).sum() * width == pytest.approx(1)
        assert posterior["samples"].shape == (10_000, 1)
        assert posterior["x_obs"].shape == (500, 1)


def test_last_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run_dir={folder}"]) == 0
    printed = capsys.readouterr().out
    number = r"-?\d+\.\d+"
    interval = rf"\[{number}, {number}\]"
    line = rf"theta = {number}, 68% interval {interval} \(exact: {number}, {interval}\); report: run/report.html\n"
    assert re.fullmatch(line, printed)
    assert "(exact: -0.705, [-0.739, -0.670])" in printed  # known: mean -0.7048, sd 0.0347


def test_report_is_self_contained(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    assert "<script" not in html
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert html.count("<img") == html.count("data:image/svg+xml;base64,") == 9
    titles = ["Posterior", "Every number with its verdict", "What was not checked", "The world", "Gold check"]
    assert [title for title in [*titles, "Learning"] if f"<h2>{title}</h2>" not in html] == []


def test_finished_stages_are_skipped(folder: Path) -> None:
    before = {name: (folder / name).stat().st_mtime_ns for name in ("fit.json", "model/model.json", "gold.json")}
    numbers = result(folder)
    assert main([*FAST, f"run_dir={folder}", "seed=3"]) == 0
    assert before == {name: (folder / name).stat().st_mtime_ns for name in before}
    assert result(folder) == numbers


def test_new_observation_only_infers(folder: Path) -> None:
    model = (folder / "model" / "model.json").stat().st_mtime_ns
    before = result(folder)
    balls(Path("new.csv"), [10, 12, 15, 20])
    assert main([f"run_dir={folder}", "x_obs=new.csv"]) == 0
    assert (folder / "model" / "model.json").stat().st_mtime_ns == model
    after = result(folder)
    assert after["observations"]["value"] == 4
    assert after["theta mean"]["value"] != before["theta mean"]["value"]
    assert json.loads((folder / "run.json").read_text())["settings"]["x_obs"] == "new.csv"


@pytest.mark.parametrize(
    ("argument", "named"),
    [("loss=carl", "loss"), ("n_simulations=300", "n_simulations"), ("training.batch_size=64", "training.batch_size"),
     ("simulator.n_rows=10", "simulator.n_rows"), ("seed=4", "seed")],
)  # fmt: skip
def test_contradictions(folder: Path, argument: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "run.json").read_text()
    assert main([f"run_dir={folder}", argument]) == 2
    assert re.search(rf"{named} = \S+ contradicts run_dir = run, .* another run_dir", capsys.readouterr().err)
    assert (folder / "run.json").read_text() == before


def test_contradictions_saboteur() -> None:
    settings = {"loss": {"_target_": "carl"}, "x_obs": "a", "n_simulations": 5}
    asked = {"loss": {"_target_": "carl"}, "x_obs": "b", "n_simulations": 10}
    assert recall(RUN, settings, asked, {"loss", "x_obs"}, Path())["x_obs"] == "b"
    assert recall(RUN, settings, asked, {"loss"}, Path())["x_obs"] == "a"
    with pytest.raises(InputError, match="n_simulations"):
        recall(RUN, settings, asked, {"n_simulations"}, Path())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["n_simulation=5"], "'n_simulation': did you mean 'n_simulations'"),
        (["training.max_epoch=5"], "did you mean 'training.max_epochs'"),
        (["loss=alic"], "did you mean 'alice'"),
        (["study=galtn"], "did you mean 'galton'"),
        (["-m", "loss=carl,alic"], "did you mean 'alice'"),
        (["simulator.n_row=5"], "did you mean 'n_rows'"),
        (["loss.alpah=5"], "did you mean 'alpha'"),
        (["simulator._target_=GaltonBord"], "did you mean 'GaltonBoard'"),
        (["n_simulations=abc"], "n_simulations = 'abc': expected a whole number"),
        (["n_simulations=5"], "n_simulations = 5 simulations: expected at least 20"),
        (["iid=maybe"], "iid = 'maybe': expected true or false"),
        (["training.validation_fraction=1"], "training.validation_fraction = 1"),
        (["loss=carl,alice"], "add -m"),
        (["gold_check"], "Expected key=value"),
        (["x_obs=missing.csv"], "no file 'missing.csv'"),
        (["data=missing.npz"], "no file 'missing.npz'"),
        (["device=tpux"], "device"),
        (["loss=null"], "loss"),
        (["loss=nle"], "needs a density of x, and RatioEstimator is none"),
        (["loss=npe", "estimator=likelihood", "data=missing.npz"], "needs a density of theta"),
        (["--config-dir=missing"], "no folder 'missing'"),
        (["inference.method=hcm"], "inference.method = 'hcm': expected one of auto, grid"),
        (["simulator._target_=os.system"], "_target_ = os.system is refused: expected a subclass of Simulator"),
        (["estimator._target_=os.system"], "_target_ = os.system is refused"),
        (["prior._target_=subprocess.Popen"], "_target_ = subprocess.Popen is refused"),
        (["loss._target_=os.getcwd"], "_target_ = os.getcwd is refused"),
        (["simulator._target_=my_world.Shift"], "has no log_joint. Use loss=carl"),
        (["prior=uniform", "prior.low=[-1,-2]"], "prior.low"),
        (["estimator.hidden=[64,0]"], "hidden = [64, 0]: expected whole numbers of at least 1"),
        (["simulator=slcp", "loss=carl", "x_obs=null", "estimator.embedding=seres"], "did you mean 'series'"),
        (["estimator=likelihood", "loss=nle", "estimator.hidden=7"], "LikelihoodEstimator cannot be made with"),
    ],
)
def test_mistakes_fail_at_once(
    here: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.perf_counter()
    assert main(arguments) == 2
    assert time.perf_counter() - start < 5
    printed = capsys.readouterr()
    assert printed.out == ""
    assert named in printed.err
    assert printed.err.count("\n") == 1
    assert [path.name for path in here.iterdir() if path.name != "__pycache__"] == ["my_world.py"]


@pytest.mark.parametrize(
    ("x_obs", "named"),
    [
        ("[nan_]", "x_obs"),
        ("[40]", "not a label from 0 to 31"),
        ("[[1,2],[3,4]]", "x_obs has shape (2, 2), expected (1,) or (n, 1)"),
        ("nan.csv", "x_obs holds NaN in 1 rows; the first is row 1"),
        ("wide.npy", "x_obs has shape (3,), expected (2,)"),
        ("two.npy", "x_obs has 2 rows of shape (2,), expected one observation. If they are independent"),
        ("column.npy", "x_obs has shape (2, 1), expected (2,)"),
        ("empty.csv", "x_obs has 0 rows"),
        ("words.csv", "expected 1 numbers"),
        ("broken.npz", "broken.npz' cannot be read"),
    ],
)
def test_bad_observations(here: Path, x_obs: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    balls(here / "nan.csv", [3, float("nan"), 4])
    balls(here / "empty.csv", [])
    (here / "words.csv").write_text("x\nleft\n")
    (here / "broken.npz").write_bytes(b"PK not a zip")
    np.save("wide.npy", np.zeros(3))
    np.save("two.npy", np.zeros((2, 2)))
    np.save("column.npy", np.zeros((2, 1)))
    world = ["simulator=linear_gaussian", "simulator.dim=2"] if "(2,)" in named else []
    assert main([*world, f"x_obs={x_obs}"]) == 2
    assert named in capsys.readouterr().err


def test_several_jobs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "loss=carl,alice", "run_dir=both", *FAST]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("report: ")[1] for line in lines] == [
        "both/loss=carl/report.html",
        "both/loss=alice/report.html",
    ]
    assert json.loads(Path("both/loss=carl/summary.json").read_text())["gold_check"] == "unchecked"
    assert main(["run_dir=both/loss=carl"]) == 0


def test_own_class_from_the_working_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = ["simulator._target_=my_world.Shift", "simulator.scale=0.5"]
    assert main([*world, "loss=carl", "x_obs=[0.5]", "run_dir=mine", "workers=2", *FAST]) == 0
    assert re.match(r"mu = -?\d\.\d+ GeV, 68% interval", capsys.readouterr().out)
    unchecked = json.loads(Path("mine/summary.json").read_text())["unchecked"]
    assert any(line.startswith("mu mean: unchecked") for line in unchecked)
    del sys.modules["my_world"]
    assert main(["run_dir=mine", "x_obs=[1.0]"]) == 0  # the folder's word for code is not taken
    assert "my_world" not in sys.modules
    assert main(["run_dir=mine", "x_obs=[1.0]", world[0]]) == 0
    assert "my_world" in sys.modules


def test_interruption_is_resumed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["simulator._target_=my_world.Shift", "loss=carl", "x_obs=[0.5]", "seed=1", *FAST]
    Path("fuse").write_text("3")
    assert main([*ask, "run_dir=broken"]) == 1
    assert "SimulatorError: simulator 'Shift' raised RuntimeError: the fuse is blown" in capsys.readouterr().err
    Path("fuse").unlink()
    assert main(["run_dir=broken"]) == 2
    assert "simulator._target_=my_world.Shift" in capsys.readouterr().err
    assert main(["run_dir=broken", ask[0]]) == 0
    assert main([*ask, "run_dir=whole"]) == 0
    assert result(Path("broken")) == result(Path("whole"))


def test_own_configuration(here: Path) -> None:
    (here / "mine" / "simulator").mkdir(parents=True)
    (here / "mine" / "study").mkdir()
    (here / "mine" / "simulator" / "shift.yaml").write_text("_target_: my_world.Shift\nscale: 2.0\n")
    (here / "mine" / "study" / "shifts.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /simulator: shift\n  - override /loss: carl\n"
        "name: shifts\nx_obs: [0.5, 0.7]\niid: true\n"
    )
    assert main(["--config-dir", "mine", "study=shifts", *FAST]) == 0
    (folder,) = Path("runs/shifts").iterdir()
    assert json.loads((folder / "run.json").read_text())["settings"]["simulator"]["scale"] == 2.0
    assert main(["--config-dir", "mine", "simulator=shft"]) == 2


def test_misspelt_key_in_own_study(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine" / "study").mkdir(parents=True)
    (here / "mine" / "study" / "typo.yaml").write_text("# @package _global_\nname: typo\nn_simulation: 5\n")
    assert main(["--config-dir", "mine", "study=typo"]) == 2
    assert "'n_simulation': did you mean 'n_simulations'" in capsys.readouterr().err


def test_environment_is_not_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_NAME", "hunter-two")
    assert (
        main(["x_obs=null", "run_dir=s", "+training.max_epochs=1", "n_simulations=100", "name=${oc.env:SECRET_NAME}"])
        == 0
    )
    texts = [path.read_text(errors="replace") for path in Path("s").rglob("*") if path.suffix in (".json", ".yaml")]
    assert [text for text in texts if "hunter-two" in text] == []
    assert any("${oc.env:SECRET_NAME}" in text for text in texts)


def test_console_from_another_folder(tmp_path: Path) -> None:
    code = "import sys; from sbi_core.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "loss=alic"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("sbi-run: InputError: loss=alic: did you mean 'alice'")
    assert "Traceback" not in done.stderr


def test_information_is_hydras(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "sbi-run -m loss=carl,alice,alices" in capsys.readouterr().out
    assert main(["--cfg", "job", "loss=carl"]) == 0
    assert "_target_: carl" in capsys.readouterr().out
