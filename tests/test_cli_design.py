"""`sbi-design`: a study from command line to report, one that waits for its experimenter, and what is refused."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbi_core.cli import main as sbi_run
from sbi_core.cli_design import main

SMALL = ["gain.n=64", "gain.inner=64", "baselines=2", "rounds=2"]
TOY = ["simulator=asymmetry_toy", "events=20", "truth={g: 1.2}", "candidates=[45, 50]", "seed=3", *SMALL]
OWN = {
    "my_lever": '''
import torch
from sbi_core import Parameter, Simulator


class Lever(Simulator):
    """x ~ N(weight * arm, 1)."""

    parameters = (Parameter("weight", 0.0, 2.0, unit="kg"),)
    designs = (Parameter("arm", 0.5, 3.0, unit="m"),)
    x_shape = (1,)

    def sample(self, theta, design, generator):
        arm = torch.ones(len(theta), 1) if design is None else design
        return theta * arm + torch.randn(theta.shape, generator=generator, dtype=torch.float64), None


class Frail(Lever):
    def sample(self, theta, design, generator):
        if design is not None and float(design.max()) > 2.0:
            raise ValueError("the arm breaks")
        return super().sample(theta, design, generator)

    def log_likelihood(self, theta, x, design=None):
        return -((x - theta * design)[..., 0] ** 2) / 2


def price(design, *, power=4.0):
    return float(design[0]) ** power


def shortest(estimator, simulator, prior, design, *, seed):
    return 4.0 - float(design[0])
'''
}
LEVER = [
    "simulator._target_=my_lever.Lever",
    "seed=1",
    "n_simulations=400",
    "training.max_epochs=8",
    "candidates=[0.5, 3.0]",
    *SMALL,
]


def summary(folder: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that is complete; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    assert main([*TOY, f"run_dir={folder}"]) == 0
    return folder


def test_run_folder(finished: Path) -> None:
    held = {path.name for path in finished.iterdir()}
    assert held == {"loop", "posterior.npz", "random", "report.html", "run.json", "summary.json"}
    found = summary(finished)
    assert found["truth"] == {"g": 1.2} and found["seed"] == 3 and found["learned"] is None
    assert [one["design"]["phi"] for one in found["rounds"]] == [50, 50], "the steepest teaches most"
    first = found["rounds"][0]
    assert abs(first["predicted"]["value"] - 0.1760) < 4 * first["predicted"]["error"] < 0.1
    assert first["low"]["g"] < first["mean"]["g"] < first["high"]["g"] and first["realised"] > 0
    assert len(found["sd of random designs"]) == 2 and found["predicted over realised"]["rounds"] == 2
    with np.load(finished / "posterior.npz") as posterior:
        assert posterior["samples"].shape == (10_000, 1)
        assert posterior["samples"].std() == pytest.approx(found["rounds"][-1]["sd"]["g"], rel=0.05)


def test_report(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    assert "<script" not in html and html.count("<figure>") == 4
    for text in (
        "Round by round",
        "Was it worth choosing?",
        "random designs",
        "nats more than",
        "exact likelihood",
        "g = 1.2",
    ):
        assert text in html
    assert "learned from" not in html, "nothing was"


def test_last_line_and_going_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TOY, "run_dir=one"]) == 0
    out, err = capsys.readouterr()
    number = r"-?\d+\.\d+"
    line = rf"g = {number}, 68% interval \[{number}, {number}\] after 2 experiments \(all 2 rounds are done\); "
    assert re.fullmatch(line + r"report: one/report.html\n", out)
    assert err.count("sbi-design: round ") == 2 and "phi = 50" in err
    before = summary("one")["rounds"]
    assert main(["run_dir=one", "rounds=3", "progress=false"]) == 0
    after = summary("one")["rounds"]
    assert after[:2] == before and len(after) == 3 and capsys.readouterr().err == ""
    assert main([*TOY, "rounds=3", "run_dir=whole", "progress=false"]) == 0
    assert summary("whole")["rounds"] == after, "a study in parts is the study in one"
    assert main([*TOY, "rounds=3", "seed=4", "run_dir=other", "progress=false"]) == 0
    assert summary("other")["rounds"] != after, "saboteur: another seed"


def test_a_study_waits_for_its_experimenter(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEVER, "run_dir=mine"]) == 0
    out = capsys.readouterr().out
    assert "nothing has been observed. Next experiment: arm = 3. Write its outcome to mine/answers/000.npy" in out
    assert "go on with run_dir=mine simulator._target_=my_lever.Lever; report: mine/report.html" in out
    np.save("mine/answers/000.npy", np.array([3.9]))
    assert main(["run_dir=mine"]) == 2, "the folder's word for code is not taken"
    assert "which is code. If you trust it, say so: simulator._target_=my_lever.Lever" in capsys.readouterr().err
    assert main(as_told(out)) == 0
    assert re.match(r"weight = 1\.\d+ kg, .*\. Next experiment: arm = 3\. Write its outcome", capsys.readouterr().out)
    found = summary("mine")
    assert found["learned"]["simulations"] == 400 and found["learned"]["labels"] == "hard"
    assert found["rounds"][0]["mean"]["weight"] == pytest.approx(1.3, abs=0.25) and found["exact"] is None
    assert "unchecked" in Path("mine/report.html").read_text()


def as_told(out: str) -> list[str]:
    """What a study says to go on with."""
    return out.split("go on with ")[1].split(";")[0].split()


def test_a_study_goes_on_as_it_was_asked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["name=lever", "cost._target_=my_lever.price", "cost.power=-1.0", "gain.n=80", "run_dir=named"]
    assert main([*LEVER, *asked]) == 0
    out = capsys.readouterr().out
    np.save("named/answers/000.npy", np.array([3.9]))
    assert main([*as_told(out), "gain.inner=96"]) == 0
    settings = json.loads(Path("named/run.json").read_text())["settings"]
    assert settings["cost"] == {"_target_": "my_lever.price", "power": -1.0} and settings["name"] == "lever"
    assert (settings["gain"]["n"], settings["gain"]["inner"]) == (80, 96), "what is not named stays"
    assert main([*as_told(out), "candidates=[0.5, 2.0]"]) == 0
    capsys.readouterr()
    assert main([*as_told(out), "candidates=[0.4]"]) == 2
    assert "candidates: arm = 0.4 is outside 0.5 to 3" in capsys.readouterr().err
    assert main([*LEVER, "candidates=[1.0, 2.0]", "run_dir=narrower"]) == 0
    out = capsys.readouterr().out
    assert main([*as_told(out), "candidates=[1.0, 2.5]"]) == 1
    assert "was learned at designs from [1.0] to [2.0], and some lie beyond" in capsys.readouterr().err


def test_own_utility_and_cost(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEVER, "cost._target_=my_lever.price", "run_dir=cheap"]) == 0
    assert "arm = 0.5" in capsys.readouterr().out, "a tenth of the gain at a thousandth of the price"
    assert main([*LEVER, "utility._target_=my_lever.shortest", "run_dir=short"]) == 0
    assert "arm = 0.5" in capsys.readouterr().out
    Path("mine/study").mkdir(parents=True)
    Path("mine/study/broken.yaml").write_text("name: [1")
    assert main(["--config-dir", "mine", *LEVER, "n_simulations=300", "run_dir=beside", "study=own"]) == 0
    assert main(["--config-dir", "mine", "study=broken"]) == 2
    assert "while parsing a flow sequence" in capsys.readouterr().err
    narrow = ["utility=expected_width", "utility.of=weight", "start=[0.5]", "run_dir=narrow"]
    assert main([*LEVER, *narrow]) == 0
    assert "arm = 0.5" in capsys.readouterr().out
    np.save("narrow/answers/000.npy", np.array([0.5]))
    assert main([LEVER[0], "run_dir=narrow"]) == 0
    assert "arm = 3" in capsys.readouterr().out
    np.save("narrow/answers/001.npy", np.array([3.0]))
    np.save("narrow/answers/002.npy", np.array([2.0]))
    assert main([LEVER[0], "run_dir=narrow", "rounds=3"]) == 0
    found = summary("narrow")
    assert found["predicted over realised"] == {"value": None, "error": None, "rounds": 2}, "kilograms are no nats"
    assert found["rounds"][2]["predicted"]["value"] > 0


def test_learned_and_exact(here: Path) -> None:
    """What is learned of an exact world is held against it."""
    options = [
        "n_simulations=2000",
        "training.max_epochs=3",
        "truth=random",
        "candidates={phi: [45, 50, 3]}",
        "baselines=0",
        "run_dir=both",
    ]
    assert main([*TOY, *options]) == 0
    found = summary("both")
    assert len(found["exact"]) == 1 and found["learned"]["excess"] < 0.1 and 0.5 < found["truth"]["g"] < 1.5
    assert "With the exact likelihood: g = " in Path("both/report.html").read_text()
    looked_at = json.loads(Path("both/loop/000.design.json").read_text())["looked_at"]
    assert looked_at["candidates"] == [[45.0], [47.5], [50.0]]


def test_designs_that_cannot_be(here: Path) -> None:
    """An epidemic is not counted the second time before the first; with candidates, random loops know it too."""
    world = ["simulator=death_process", "truth={rate: 1.0}", "progress=false", "seed=1", *SMALL]
    assert main([*world, "candidates={t_1: [0.5, 2, 2], t_2: [1, 3, 2]}", "run_dir=listed"]) == 0
    found = summary("listed")
    assert len(found["sd of random designs"]) == 2
    assert all("1 of 4 designs are excluded" in text for text in found["flags"]) and len(found["flags"]) == 2
    assert main(["run_dir=listed", "rounds=3", "candidates=[[0.5, 1], [0.5, 3], [2, 1], [2, 3]]"]) == 0
    assert len(summary("listed")["sd of random designs"]) == 2, "in another order they are still known"
    frail = ["simulator._target_=my_lever.Frail", "truth={weight: 1.0}", "progress=false", "seed=1", *SMALL]
    for number, (own, why) in enumerate(((world, "times"), (frail, "ValueError: the arm breaks"))):
        options = ["gain.budget=8", f"run_dir=box{number}", "baselines=6", "rounds=1"]
        assert main([*own, *options]) == 0
        found = summary(f"box{number}")
        ended = [text for text in found["flags"] if "of 6 loops of random designs could not be run" in text]
        assert len(ended) == 1 and why in ended[0]
        assert len(found["sd of random designs"]) == 6 - int(ended[0].split()[0]) > 0


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (["roundz=3"], "did you mean 'rounds'"),
        (["study=galton"], "study=galton: Known: own, weinberg."),
        (["simulator=two_moons"], "'TwoMoons' has no designs to choose from"),
        (["simulator._target_=my_lever.Lever"], "n_simulations = null: simulator 'Lever' states no exact"),
        ([*TOY, "n_simulations=3"], "n_simulations = 3 simulations: expected at least"),
        (["truth={sin2_theta_w: 0.5, g_f: 1}"], "outside the prior"),
        (["truth={sin2: 0.23}"], "there is no parameter 'sin2'"),
        (["truth={g_f: 1}"], "truth: sin2_theta_w is missing"),
        (["truth=hidden"], "truth = 'hidden': expected values by name"),
        ([*TOY, "answers=here"], "truth and answers"),
        ([*TOY, "candidates={ph: [45, 50, 3]}"], "candidates: there is no 'ph'; did you mean 'phi'?"),
        ([*TOY, "candidates={phi: [45, 50]}"], "candidates = {'phi': [45, 50]}: expected a list of designs"),
        (["simulator=death_process", "truth=random", "candidates={t_1: [1, 2, 3]}"], "candidates: t_2 is missing"),
        ([*TOY, "candidates=[[45, 50]]"], r"candidates have shape (1, 2), expected (C, 1)"),
        ([*TOY, "start=[[45, 50]]"], r"start have shape (1, 2), expected (C, 1)"),
        ([*TOY, "utility=expected_width"], "utility.of: expected_width needs it"),
        ([*TOY, "utility=posterior_gian"], "utility=posterior_gian: did you mean 'posterior_gain'"),
        ([*TOY, "cost._target_=my_lever.prize"], "did you mean 'price'"),
        ([*TOY, "cost._target_=my_lever.Lever"], "is refused: expected a function with the argument 'design'"),
        ([*TOY, "cost._target_=price"], "your own function needs its module"),
        ([*TOY, "luminosity=2.0"], "Events needs either n"),
        ([*TOY, "width={h: 0.1}"], "width: there is no 'h'"),
        ([*TOY, "width={g: 0}"], "width = {'g': 0}: expected standard deviations by name"),
        ([*TOY, "noise=-1"], "noise = -1: expected a number, at least 0"),
        ([*TOY, "candidates={phi: 5}"], "candidates = {'phi': 5}: expected a list of designs"),
        ([*TOY, "candidates={phi: [[1], [2], 3]}"], "expected a list of designs"),
        ([*TOY, "candidates=[45, 60]"], "candidates: phi = 60 is outside 40 to 50"),
        ([*TOY, "start=[30]"], "start: phi = 30 is outside 40 to 50"),
        ([*TOY, "utility.n=1000"], "utility.n is not read; say gain.n=..."),
        ([*TOY, "cost=price"], "cost=price: say cost._target_=my_module.price."),
        ([*TOY, "prior=uniform", "prior.low=0.5", "prior.high=1.1"], "outside the prior UniformPrior(g in [0.5, 1.1])"),
        ([*TOY, "gain.inner=16"], "gain.inner = 16: expected a whole number, at least 32"),
        ([*TOY, "gain.n=2"], "gain.n = 2: expected a whole number, at least 8"),
    ],
)
def test_refused_before_anything_is_done(
    asked: list[str], named: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in here.iterdir())
    assert main(asked) == 2
    out, err = capsys.readouterr()
    assert named in err and err.count("\n") == 1 and err.startswith("sbi-design: ") and out == ""
    assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == before


def test_folders_know_their_command(finished: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sbi_run([f"run_dir={finished}"]) == 2
    assert "is a run of sbi-design, not of sbi-run" in capsys.readouterr().err
    assert main([f"run_dir={finished}", "events=30"]) == 2
    assert "events = 30 contradicts run_dir" in capsys.readouterr().err
    assert sbi_run(["study=weinberg"]) == 2
    assert "study=weinberg: Known: galton, influenza, lensing_full, lensing_mini, own." in capsys.readouterr().err


def test_help_names_its_keys(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sbi-design", "--help"])
    assert main() == 0
    out = capsys.readouterr().out
    assert "which experiment next?" in out and "noise: 0" in out and "expected_width" in out


@pytest.mark.slow
def test_weinberg(here: Path) -> None:
    """The flagship: a second energy is found at once, and both parameters end where they belong."""
    assert main(["run_dir=weinberg"]) == 0
    found = summary("weinberg")
    energies = [one["design"]["sqrt_s"] for one in found["rounds"]]
    assert energies[0] == 89 and abs(energies[1] - 89) > 4
    sd = found["rounds"][-1]["sd"]
    for name, truth in found["truth"].items():
        assert abs(found["rounds"][-1]["mean"][name] - truth) < 4 * sd[name]
    assert sd["g_f"] < 0.3 * found["rounds"][0]["sd"]["g_f"]
    areas = [one["sin2_theta_w"] * one["g_f"] for one in (sd, *found["sd of random designs"])]
    assert sum(areas[0] < other for other in areas[1:]) >= 6, "smaller than most"
