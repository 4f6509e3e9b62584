"""The boarding school of 1978, from `sbi-run study=influenza` to its posterior, its report and what contradicts it."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sbi_core import simulate
from sbi_core.cli import main
from sbi_core.simulators import Epidemic

OWN: dict[str, str] = {}
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BENCHMARK = runpy.run_path(str(BENCHMARKS / "influenza.py"))
SERIES = [3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4]


def run(folder: Path, *ask: str) -> dict[str, Any]:
    assert main(["study=influenza", f"run_dir={folder}", "progress=false", *ask]) == 0
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_the_study_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thin slice: what is learned from so few epidemics is not looked at."""
    monkeypatch.chdir(tmp_path)
    quick = ["n_simulations=2000", "training.max_epochs=3", "checks.pairs=0", "checks.replicates=200"]
    summary = run(tmp_path / "run", *quick)
    assert summary["gold_check"]["passed"]
    with np.load(tmp_path / "run" / "posterior.npz") as posterior:
        assert posterior["x_obs"].tolist() == SERIES
    predicted = summary["posterior_predictive"]
    assert predicted["observed"] == SERIES and predicted["replicates"] == 200 and len(predicted["bands"]["0.5"]) == 14
    assert summary["checks"]["posterior predictive"] == predicted["verdict"]
    html = (tmp_path / "run" / "report.html").read_text()
    assert "Does the posterior predict what was observed?" in html and "95% of what the posterior predicts" in html
    assert summary["checks"]["x_obs inside the simulated range"].startswith("inside")
    again = run(tmp_path / "run", "x_obs=[0,0,0,0,500,0,0,500,0,0,0,0,500,0]", "checks.pairs=0")
    assert again["posterior_predictive"]["passed"] is False, "saboteur: ups and downs that no epidemic has"
    assert any("the posterior does not predict x_obs" in flag for flag in again["flags"])
    assert 'class="bad">NOT as predicted by' in (tmp_path / "run" / "report.html").read_text()


def test_what_is_not_replicated_says_why(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sbi_core.self_check import with_checks

    monkeypatch.setattr("sbi_core.stages.with_checks", with_checks)
    ask = ["n_simulations=200", "training.max_epochs=1", "checks.pairs=0"]
    for more, why in (
        (["checks.replicates=0"], "unchecked: checks.replicates is 0"),
        (["checks.replicates=200", "checks.time_limit=1e-9"], "unchecked: 100 replicates would take about "),
    ):
        summary = run(here / "run", *ask, *more)
        assert summary["checks"]["posterior predictive"].startswith(why)
        assert summary["posterior_predictive"] == "unchecked"
        assert any(why in line for line in summary["unchecked"])
    assert main(["study=influenza", "checks.replicates=20"]) == 2


def test_particles_agree_with_the_exact_filter() -> None:
    """Likelihoods of filters are unbiased: their mean over 200 runs, in standard errors; and ranks of a true model."""
    world = Epidemic(
        population=20, infected=2, observed="prevalence", times=[1, 2, 4], reporting=0.8, dispersion=0.1, stages=2
    )
    theta, x = torch.tensor([[0.9, 0.4]]).double(), [3.0, 4.0, 2.0]
    found = BENCHMARK["particle_filter"](world, theta.expand(200, 2), x, particles=100, seed=1).log_likelihood

    def z(exact: float) -> float:
        ratio = (found - exact).exp()
        return float((ratio.mean() - 1) / ratio.std() * len(ratio) ** 0.5)

    assert abs(z(float(world.log_likelihood(theta[0], torch.tensor(x))))) < 4
    assert abs(z(float(world.log_likelihood(theta[0] * torch.tensor([1.4, 1.0]), torch.tensor(x))))) > 4, (
        "saboteur: other rates"
    )
    series = simulate(world, 60, seed=3, proposal=theta[0], progress=False).x.double()
    ranks = torch.cat([BENCHMARK["particle_filter"](world, theta, x, particles=200).ranks for x in series])
    assert abs(float(ranks.mean()) - 0.5) < 4 * (1 / 12 / ranks.numel()) ** 0.5
    assert 0.2 < float(ranks.std()) < 0.35, "uniform: 0.29, less where counts tie"


@pytest.mark.slow
def test_the_posterior_is_that_of_a_particle_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole study, beside filters that know nothing of gold and networks; and the plain model's misfit."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    world = BENCHMARK["school"](3, 0.7, 0.02)
    exact = BENCHMARK["reference"](world, SERIES, particles=400, seeds=1, cells=(17, 13))
    summary = run(tmp_path / "run")
    for k, name in enumerate(("beta", "gamma")):
        mean, sd = (summary["numbers"][f"{name} {what}"]["value"] for what in ("mean", "sd"))
        assert abs(mean - float(exact.mean[k])) < 0.5 * float(exact.stddev[k]), name
        assert 0.75 < sd / float(exact.stddev[k]) < 1.35, name
    with np.load(tmp_path / "run" / "posterior.npz") as posterior:
        ratio = posterior["samples"][:, 0] / posterior["samples"][:, 1]
    assert ratio.mean() == pytest.approx(exact.r0[0], abs=0.5 * exact.r0[1])
    assert summary["posterior_predictive"]["passed"] and summary["diagnosis"]["passed"] and summary["flags"] == []
    plain = run(tmp_path / "plain", "simulator.stages=1")
    assert plain["posterior_predictive"]["passed"] is not True and plain["flags"]
    other = BENCHMARK["reference"](BENCHMARK["school"](1, 0.7, 0.02), SERIES, particles=400, seeds=1, cells=(11, 11))
    assert exact.log_evidence - other.log_evidence > 10, "exponential times in bed"


@pytest.mark.slow
def test_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    guide = Path(__file__).parents[1] / "tutorials" / "guide" / "epidemics.md"
    text = guide.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2 and capsys.readouterr().out.count("tensor(") == 4
    known = {
        line.split("|")[4].strip() for line in guide.read_text(encoding="utf-8").splitlines() if line.count("|") == 8
    }
    found = np.loadtxt(BENCHMARKS / "influenza.csv", delimiter=",", skiprows=1, usecols=3)
    assert {f"{value:.1f}" for value in found} <= known, "the table is what the benchmark wrote"
