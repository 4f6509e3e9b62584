import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal, constraints

from sbi_core import InputError, Parameter, Simulations, check_gold, infer, limits, plots, simulate
from sbi_core.inference import GridPosterior, SamplePosterior
from sbi_core.report import write_report
from sbi_core.results import LogRatios, Results, compare_log_ratios, total_variation
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard, LinearGaussian

BOARD = GaltonBoard()
HISTORY = {
    "epoch": [1, 2, 3],
    "training": [1.0, 0.8, 0.7],
    "validation": [1.1, 0.9, 0.95],
    "learning_rate": [0.01, 0.005, 0.0],
}
TRAINING = {
    "loss": "alice<b>",
    "best_epoch": 2,
    "ended": "patience",
    "seconds": 1.0,
    "rows": [90, 10],
    "history": HISTORY,
    "flags": ["x column 1 is constant"],
}


@pytest.fixture(scope="module")
def rows() -> Simulations:
    data: Simulations = simulate(BOARD, 1000, seed=1, progress=False)
    return data


@pytest.fixture
def axes() -> Any:
    with plots.style():
        return Figure().add_subplot()


def gauss(mean: float, sd: float, *, cells: int = 2000) -> GridPosterior:
    edges = torch.linspace(-10, 10, cells + 1, dtype=torch.float64)
    centres = (edges[1:] + edges[:-1]) / 2
    density = -0.5 * ((centres - mean) / sd) ** 2
    return GridPosterior([Parameter("mu", -10, 10, latex=r"\mu")], [edges], density, verdicts={"coverage": "unchecked"})


class Off:
    """An estimator that is wrong by `error` times theta."""

    def __init__(self, error: float) -> None:
        self.error = error

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        return BOARD.log_likelihood(theta, x, design) + self.error * theta[..., 0]


@pytest.mark.parametrize("distance", [0.0, 0.5, 3.0])
def test_total_variation(distance: float) -> None:
    exact = math.erf(distance / 2 / math.sqrt(2))
    assert total_variation(gauss(0, 1), gauss(distance, 1)) == pytest.approx(exact, abs=1e-3)
    assert total_variation(gauss(0, 1, cells=700), gauss(distance, 1)) == pytest.approx(exact, abs=1e-2)


@pytest.mark.parametrize("distance", [0.0, 0.5, 3.0])
def test_total_variation_by_draws(distance: float) -> None:
    def drawn(mean: float) -> SamplePosterior:
        return SamplePosterior(
            gauss(0, 1).parameters,
            (mean + torch.randn(1, 20_000, 1)).double(),
            support=constraints.real_vector,
            log_density=lambda theta: Normal(mean, 1.0).log_prob(theta[..., 0]),
            verdicts={},
        )

    with seeded(1):
        found = total_variation(drawn(0.0), drawn(distance))
    assert found == pytest.approx(math.erf(distance / 2 / math.sqrt(2)), abs=4 * 0.007)


def test_log_ratios_are_compared(rows: Simulations) -> None:
    assert compare_log_ratios(Off(0.0), BOARD, rows).rms < 1e-6
    found = compare_log_ratios(Off(0.5), BOARD, rows)
    assert found.rms == pytest.approx(0.5 * math.sqrt(2 / 12), rel=0.1)  # theta is uniform on a unit interval
    assert found.joint is not None
    assert found.exact is not None
    assert float(found.joint.var()) > float(found.exact.var())
    assert math.isnan(compare_log_ratios(Off(0.0), None, rows).rms)


def test_training_curves(axes: Axes) -> None:
    plots.training_curves(HISTORY, best_epoch=2, axes=axes)
    kept = [line for line in axes.lines if line.get_label() == "kept: epoch 2"]
    assert [tuple(line.get_xydata()[0]) for line in kept] == [(2, 0.9)]


def test_gold_scores(axes: Axes, rows: Simulations) -> None:
    tests = check_gold(BOARD, rows).rows
    plots.gold_scores(tests, axes=axes)
    assert len(axes.get_yticklabels()) == len(tests)
    wild = [{"name": "score mean", "parameter": "a", "z": z, "passed": False} for z in (99.0, -99.0, None)]
    other = plots.gold_scores(wild, axes=Figure().add_subplot())
    low, high = other.get_xlim()
    ends = {float(line.get_xdata()[0]) for line in other.lines if line.get_marker() in "<>"}
    assert ends == {low, high}


def test_learned_against_exact(axes: Axes, rows: Simulations) -> None:
    plots.learned_against_exact(Off(0.5), BOARD, rows, axes=axes)
    assert any("rms error 0.2" in text.get_text() for text in axes.texts)
    assert len(axes.collections) == 3  # mined, learned, and the legend's own
    without = LogRatios(torch.randn(50), None, torch.randn(50))
    assert "learned" in plots.log_ratios(without, axes=Figure().add_subplot()).get_xlabel()
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.log_ratios(LogRatios(torch.randn(50), None, None), axes=axes)


def test_posterior_1d(axes: Axes) -> None:
    plots.posterior_1d({"learned": gauss(1, 0.5), "exact": gauss(1.2, 0.4)}, axes=axes)
    learned, exact = axes.lines
    assert float(learned.get_xdata()[np.argmax(learned.get_ydata())]) == pytest.approx(1, abs=0.02)
    assert max(exact.get_ydata()) == pytest.approx(1 / (0.4 * math.sqrt(2 * math.pi)), rel=0.01)
    assert axes.get_xlim()[1] < 4
    assert axes.get_xlabel() == r"$\mu$"


def test_posterior_2d(axes: Axes) -> None:
    world = LinearGaussian(matrix=[[1.0, 0.0], [1.0, 1.0]])
    posterior = infer(world, world.prior, torch.tensor([1.0, 2.0]))
    plots.posterior_2d({"learned": posterior, "exact": posterior}, axes=axes)
    assert axes.get_xlabel() == r"$\theta_{1}$"
    for k, spread in enumerate(posterior.stddev):
        first = plots.posterior_1d({"learned": posterior}, k, axes=Figure().add_subplot()).lines[0]
        across, density = (torch.as_tensor(values) for values in first.get_data())
        assert float(torch.trapezoid(density, across)) == pytest.approx(1, abs=0.01)
        variance = torch.trapezoid(density * (across - posterior.mean[k]) ** 2, across)
        assert float(variance.sqrt()) == pytest.approx(float(spread), rel=0.02)


@pytest.fixture(scope="module")
def both() -> dict[str, Any]:
    """The same posterior of three parameters on a grid and by draws."""
    world = LinearGaussian(matrix=[[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    x_obs = torch.tensor([1.0, 2.0, 0.5])
    return {name: infer(world, world.prior, x_obs, method=name, seed=1) for name in ("grid", "hmc")}


def test_corner(both: dict[str, Any]) -> None:
    truth = torch.tensor([1.0, 1.0, 0.2])
    panels = plots.corner(both, truth=truth, axes=Figure().subplots(3, 3))
    assert [label.get_text() for label in panels[0, 2].get_legend().get_texts()][1:] == ["hmc", "truth"]
    assert [panel.axison for panel in panels[0]] == [True, False, False]
    assert [panels[2, k].get_xlabel() for k in range(3)] == [p.label for p in both["grid"].parameters]
    assert panels[1, 1].get_xlabel() == panels[2, 1].get_ylabel() == ""
    for k in range(3):
        filled, line = panels[k, k].lines[:2]
        grid, draws = (float(np.trapezoid(at.get_ydata() * at.get_xdata(), at.get_xdata())) for at in (filled, line))
        assert grid == pytest.approx(draws, abs=0.1 * float(both["grid"].stddev[k]))
        assert grid == pytest.approx(float(both["grid"].mean[k]), abs=0.02 * float(both["grid"].stddev[k]))


def test_corner_of_some(both: dict[str, Any]) -> None:
    names = [both["grid"].parameters[k].name for k in (2, 0)]
    panels = plots.corner(both, names=names, axes=Figure().subplots(2, 2))
    assert panels[1, 0].get_xlabel() == both["grid"].parameters[2].label
    alone = plots.corner(both, names=names[:1], axes=Figure().add_subplot())
    assert alone[0, 0].get_legend() is not None
    with pytest.raises(InputError, match=r"axes has shape \(2, 2\), expected \(3, 3\)"):
        plots.corner(both, axes=Figure().subplots(2, 2))
    with pytest.raises(InputError, match="theta_9"):
        plots.corner(both, names=["theta_9"])


def test_observation(axes: Axes) -> None:
    x_obs = simulate(BOARD, 500, proposal=torch.tensor([-0.7]), seed=2, progress=False).x
    posterior = infer(BOARD, BOARD.prior, x_obs, iid=True)
    plots.observation(x_obs, BOARD, posterior, axes=axes)
    assert sum(bar.get_height() for bar in axes.patches) == 500
    assert float(axes.lines[0].get_ydata().sum()) == pytest.approx(500, rel=0.01)


def test_board(axes: Axes, rows: Simulations) -> None:
    assert plots.board(BOARD, rows, axes=axes) is axes
    assert axes.has_data()


def test_new_axes() -> None:
    import matplotlib.pyplot as plt

    assert isinstance(plots.training_curves(HISTORY), Axes)
    plt.close("all")


def test_style_is_put_back() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with plots.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert dict(matplotlib.rcParams) == before


def test_import_loads_no_matplotlib() -> None:
    code = "import sys, sbi_core; sys.exit('matplotlib' in sys.modules or 'hydra' in sys.modules)"
    path = str(Path(__file__).parent.parent)
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False).returncode == 0


def full(rows: Simulations) -> Results:
    x_obs = rows.x[:20]
    learned = infer(BOARD, BOARD.prior, x_obs, iid=True)
    return Results(
        name="<study> & co",
        parameters=BOARD.parameters,
        settings={"x_obs": "</pre><script>alert(1)</script>"},
        seed=1,
        versions={"torch": "1"},
        simulator=BOARD,
        data=rows,
        n_simulations=1000,
        gold=check_gold(BOARD, rows).to_json(),
        training=TRAINING,
        posterior=learned,
        exact=learned,
        x_obs=x_obs,
        ratios=compare_log_ratios(Off(0.1), BOARD, rows),
        seconds={"train": 1.0},
        notes=["a < b"],
    )


def test_report(tmp_path: Path, rows: Simulations) -> None:
    results = full(rows)
    html = write_report(tmp_path / "report.html", results).read_text()
    assert "<script" not in html
    assert "alice<b>" not in html
    assert "&lt;study&gt; &amp; co" in html
    assert "&amp;lt;" not in html
    assert "a &lt; b" in html
    assert "x column 1 is constant" in html
    assert html.count("<section>") == html.count("</section>") == 7
    titles = ["Posterior", "Every number with its verdict", "The world", "Gold check", "Learning", "How it was made"]
    assert [title for title in titles if f"<h2>{title}</h2>" not in html] == []
    assert re.search(r"close: \+0\.00 sd from the exact", html)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_report_of_three_parameters(tmp_path: Path, both: dict[str, Any]) -> None:
    draws = both["hmc"]
    results = Results("toy", draws.parameters, posterior=draws, exact=both["grid"])
    html = write_report(tmp_path / "report.html", results).read_text()
    assert html.count("<img") == 1 and "of every pair" in html
    assert re.search(r'class="good">20 chains agree: R-hat 1\.0', html)
    draws.verdicts = {**draws.verdicts, "chains": "20 chains DISAGREE: R-hat 1.3"}
    assert 'class="bad">20 chains DISAGREE' in write_report(tmp_path / "report.html", results).read_text()


def test_report_of_limits(tmp_path: Path, rows: Simulations) -> None:
    found = limits(BOARD, rows.x[:20], iid=True)
    results = Results("toy", BOARD.parameters, limits={"theta": found})
    html = write_report(tmp_path / "report.html", results).read_text()
    assert "<h2>Limits</h2>" in html and html.count("<img") == 1 and "unchecked" in html
    assert re.sub("-", "−", str(found.interval(0.95)[0])) in html.replace("&lt;", "<").replace("&gt;", ">")


@pytest.mark.parametrize(
    ("missing", "title"),
    [("gold", "Gold check"), ("posterior", "Posterior"), ("simulator", "The world"), ("data", "The world")],
)
def test_missing_parts_are_left_out(tmp_path: Path, rows: Simulations, missing: str, title: str) -> None:
    fields = dict(vars(full(rows)))
    fields[missing] = None
    if missing == "posterior":
        fields["exact"] = None
    html = write_report(tmp_path / "part.html", Results(**fields)).read_text()
    assert f"<h2>{title}</h2>" not in html


def test_nothing_but_a_name(tmp_path: Path) -> None:
    results = Results("empty", BOARD.parameters)
    assert "nothing was observed" in write_report(tmp_path / "report.html", results).read_text()
    assert results.summary()["numbers"] == {}


def test_verdicts_tell_good_from_bad(rows: Simulations) -> None:
    def verdicts(learned: GridPosterior) -> list[str]:
        results = Results("toy", learned.parameters, posterior=learned, exact=gauss(0, 1))
        return [number["verdict"].split(":")[0] for number in results.numbers().values()]

    assert verdicts(gauss(0.1, 1.05)) == ["close"] * 5
    assert verdicts(gauss(3.0, 0.3)) == ["NOT close"] * 5
    alone = Results("toy", BOARD.parameters, posterior=gauss(0, 1))
    assert all(number["verdict"].startswith("unchecked") for number in alone.numbers().values())
    assert any("coverage" in line for line in alone.unchecked())


@pytest.mark.parametrize(("mean", "sd", "text"), [(0.0, 1.0, "mu = 0.0,"), (1.23456, 0.05, "mu = 1.235,")])
def test_headline_rounds_to_the_spread(mean: float, sd: float, text: str) -> None:
    posterior = gauss(mean, sd, cells=20_000)
    assert Results("toy", posterior.parameters, posterior=posterior).headline().startswith(text)
