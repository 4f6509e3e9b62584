"""`sbi-run` with data made elsewhere, gold that is wrong, more parameters, limits, and folders of others."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sbi_core import simulate
from sbi_core.cli import main
from sbi_core.simulators import GaltonBoard

FAST = ["n_simulations=200", "training.max_epochs=2"]
OWN = {
    "my_world": """
from sbi_core.simulators import GaltonBoard


class Wrong(GaltonBoard):
    def log_joint(self, theta, x, z, design):
        return super().log_joint(-theta, x, z, design)
"""
}


@pytest.mark.parametrize("name", ["rows.npz", "rows.csv", "rows.zarr"])
def test_data_made_elsewhere(here: Path, name: str) -> None:
    store = "rows.zarr" if name == "rows.zarr" else None
    rows = simulate(GaltonBoard(), 200, seed=1, progress=False, store=store)[:]
    if name == "rows.npz":
        rows.to_npz(name)
    if name == "rows.csv":
        lines = [f"{float(t)},{float(x)}" for t, x in zip(rows.theta, rows.x, strict=True)]
        Path(name).write_text("\n".join(["theta,x", *lines]))
    ranges = ["parameters={theta: [-1, 0]}"] if name == "rows.csv" else []
    assert main([f"data={name}", "loss=carl", "x_obs=[12]", "run_dir=d", *ranges, *FAST]) == 0
    assert json.loads(Path("d/summary.json").read_text())["numbers"]["simulations"]["value"] == 200
    os.replace(name, f"moved-{name}")
    assert main(["run_dir=d", "x_obs=[20]"]) == 0


def test_data_with_a_simulator_have_gold(here: Path) -> None:
    simulate(GaltonBoard(), 200, seed=1, progress=False).to_npz("rows.npz")
    assert main(["data=rows.npz", "simulator=galton_board", "run_dir=d", *FAST]) == 0
    summary = json.loads(Path("d/summary.json").read_text())
    assert summary["gold_check"]["passed"]
    assert "simulations.zarr" not in {path.name for path in Path("d").iterdir()}


def test_wrong_gold_stops(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["simulator._target_=my_world.Wrong", "x_obs=null", "n_simulations=2000", "training.max_epochs=1"]
    assert main([*ask, "run_dir=stopped"]) == 1
    assert "GoldError" in capsys.readouterr().err
    assert not Path("stopped/model").exists()
    assert main([*ask, "run_dir=forced", "gold_check=false"]) == 0
    assert json.loads(Path("forced/summary.json").read_text())["gold_check"] == "unchecked"


def test_three_parameters_are_drawn_by_chains(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = ["simulator=linear_gaussian", "simulator.dim=3", "x_obs=[1.0, 0.5, -1.0]"]
    few = ["inference.n=200", "inference.chains=4"]
    assert main([*world, "run_dir=d", "seed=1", "n_simulations=500", "training.max_epochs=5", *few]) == 0
    headline = capsys.readouterr().out
    assert headline.count("68% interval") == headline.count("(exact:") == 3
    summary = json.loads(Path("d/summary.json").read_text())
    assert summary["checks"]["chains"].startswith("4 chains")
    distance = summary["numbers"]["total variation to the exact posterior"]
    assert 0 < distance["value"] < 0.5
    with np.load("d/posterior.npz") as found:
        assert found["samples"].shape == (10_000, 3)
        off = found["log_density"] - found["exact_log_density"]
    # the same number from what was written: over draws of the other of the two, so with twice the noise
    assert np.clip(1 - np.exp(-off), 0, None).mean() == pytest.approx(distance["value"], abs=0.05)
    assert main(["run_dir=d", "inference.method=importance"]) == 0
    assert "importance sampling" in json.loads(Path("d/summary.json").read_text())["checks"]
    assert main(["run_dir=d", "inference.method=gird"]) == 2
    assert "inference.method = 'gird': expected one of auto, grid" in capsys.readouterr().err


def test_limits_on_demand(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["x_obs=[12, 14, 9]", "iid=true", "run_dir=d", "seed=1", *FAST]
    assert main(ask) == 0
    assert json.loads(Path("d/summary.json").read_text())["limits"] == {}
    assert main(["run_dir=d", "limits.method=feldman_cousins", "limits.toys=200"]) == 0
    found = json.loads(Path("d/summary.json").read_text())["limits"]["theta"]
    assert found["method"] == "feldman_cousins" and len(found["intervals"]["0.95"]) >= 1
    assert found["verdicts"]["coverage"].startswith("by 200 toys")
    assert found["verdicts"]["x_obs inside the simulated range"] == "all inside, by labels"
    assert main(["run_dir=d", "limits.method=neyman", "limits.time_limit=1e-9"]) == 0
    summary = json.loads(Path("d/summary.json").read_text())
    assert summary["limits"] == {} and any("limits of theta: none" in flag for flag in summary["flags"])
    assert main(["run_dir=d", "limits.method=wilks"]) == 2
    assert "limits.method = 'wilks': expected one of profile, feldman_cousins" in capsys.readouterr().err


def test_foreign_folder_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run_dir=."]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert main(["run_dir=my_world.py"]) == 2
