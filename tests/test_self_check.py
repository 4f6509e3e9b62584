"""The check of a run's own posteriors, and its pictures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sbi_core import InputError, diagnose, infer, plots, simulate
from sbi_core.cli import main
from sbi_core.report import write_report
from sbi_core.results import Results
from sbi_core.self_check import with_checks
from sbi_core.simulators import GaltonBoard, LinearGaussian

OWN: dict[str, str] = {}
BOARD = GaltonBoard()


def results(world: Any, x_obs: Any, *, iid: bool = False) -> Results:
    posterior = infer(world, world.prior, x_obs, iid=iid, seed=1)
    rows = x_obs if iid else x_obs[None]
    return Results("toy", world.parameters, seed=1, simulator=world, posterior=posterior, x_obs=rows)


@pytest.fixture(scope="module")
def board() -> Results:
    x_obs = simulate(BOARD, 20, proposal=BOARD.prior, seed=3, progress=False).x
    return results(BOARD, x_obs, iid=True)


def test_the_verdict_reaches_summary_and_report(board: Results, tmp_path: Path) -> None:
    found = with_checks(board, BOARD, BOARD.prior, iid=True, pairs=100, time_limit=100.0)
    assert found.posterior.verdicts["coverage"].startswith("passed: ")
    assert board.posterior.verdicts["coverage"] == "unchecked"
    summary = json.loads(json.dumps(found.summary()))
    assert summary["diagnosis"]["passed"] and summary["diagnosis"]["pairs"] == 100
    assert summary["checks"]["coverage"].startswith("passed")
    html = write_report(tmp_path / "report.html", found).read_text()
    assert "Posteriors of simulations whose theta is known" in html and html.count("<img") == 3


def test_a_wrong_posterior_is_told(board: Results, tmp_path: Path) -> None:
    class Narrow(GaltonBoard):
        """Believes each ball twice."""

        def log_likelihood(self, theta: Any, x: Any, design: Any = None) -> Any:
            return 2 * super().log_likelihood(theta, x, design)

    found = with_checks(board, Narrow(), BOARD.prior, iid=True, pairs=150, time_limit=100.0)
    assert found.posterior.verdicts["coverage"].startswith("FAILED: ")
    assert any("calibration failed" in flag for flag in found.posterior.flags)
    html = write_report(tmp_path / "report.html", found).read_text()
    assert 'class="bad">FAILED' in html


@pytest.mark.parametrize(
    ("options", "without", "why"),
    [
        ({"pairs": 0}, {}, "checks.pairs is 0"),
        ({}, {"simulator": None}, "there is no simulator"),
        ({"time_limit": 1e-9}, {}, "simulations would take about"),
    ],
)
def test_what_is_not_checked_says_why(board: Results, options: Any, without: Any, why: str) -> None:
    asked = {"iid": True, "pairs": 200, "time_limit": 100.0, **options}
    found = with_checks(replace(board, **without), BOARD, BOARD.prior, **asked)
    said = found.posterior.verdicts["coverage"]
    assert said.startswith("unchecked: ") and why in said and found.diagnosis is None
    assert any(why in line for line in found.unchecked())
    assert board.posterior.verdicts["coverage"] == "unchecked", "the posterior that was given stays as it was"


def test_a_run_checks_itself(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sbi_core.stages.with_checks", with_checks)
    ask = ["x_obs=[12]", "iid=true", "n_simulations=500", "training.max_epochs=5", "run_dir=d", "seed=1"]
    assert main([*ask, "checks.pairs=100"]) == 0
    summary = json.loads(Path("d/summary.json").read_text())
    assert summary["diagnosis"]["pairs"] == 100 and "unchecked" not in summary["checks"]["coverage"]
    assert main(["run_dir=d", "checks.pairs=0"]) == 0
    assert json.loads(Path("d/summary.json").read_text())["checks"]["coverage"] == "unchecked: checks.pairs is 0"
    assert main(["run_dir=d", "checks.pairs=10"]) == 2
    assert "checks.pairs = 10: expected 0, or at least 100" in capsys.readouterr().err


def test_a_run_allows_what_its_campaign_did(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a share, since the checks simulate other numbers of rows."""
    asked: list[Any] = []
    monkeypatch.setattr(
        "sbi_core.stages.with_checks", lambda results, *given, rows, **more: asked.append(rows) or results
    )
    ask = ["x_obs=[12]", "n_simulations=100", "training.max_epochs=1", "seed=1"]
    assert main([*ask, "run_dir=a", "campaign.max_failures=20", "campaign.time_limit=50"]) == 0
    assert main([*ask, "run_dir=b"]) == 0
    assert asked == [{"failing": 0.2, "time_limit": 50}, {"failing": None, "time_limit": None}]


def panel() -> Any:
    with plots.style():
        return Figure().add_subplot()


def test_pictures() -> None:
    world = LinearGaussian(2)
    found = diagnose(world, world, n=200, seed=1, progress=False)
    axes = plots.ranks(found, axes=panel())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [p.name for p in world.parameters]
    by_level = plots.coverage(found, axes=panel())
    curve = next(curve for curve in found.curves if curve.name == "credibility")
    assert list(by_level.lines[0].get_ydata()) == list(curve.value)
    assert len(plots.closure(found, axes=panel()).lines) == 2
    off = replace(found, curves=tuple(replace(curve, value=(*curve.high[1:], 1.1)) for curve in found.curves))
    for draw in (plots.ranks, plots.coverage):
        assert draw(found, axes=panel()).lines[0].get_color() != plots.VERMILION
        assert draw(off, axes=panel()).lines[0].get_color() == plots.VERMILION, "saboteur: out of its band"
    alone = replace(found, curves=tuple(curve for curve in found.curves if curve.name != "ratio closure"))
    with pytest.raises(InputError, match="no curve 'ratio closure'; it has TARP, credibility, ranks"):
        plots.closure(alone, axes=panel())
