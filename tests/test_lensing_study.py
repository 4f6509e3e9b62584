"""The studies of lensing: they run, resume and stream; the hundred lenses are what they claim; the mini one covers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sbi_core import diagnose, joint_score, simulate
from sbi_core.cli import main
from sbi_core.estimators import RatioEstimator, alices, embedding, fit, load_estimator
from sbi_core.estimators.loop import Loop
from sbi_core.estimators.symmetries import copied
from sbi_core.simulators import StrongLensing

OWN: dict[str, str] = {}
FIDUCIAL = torch.tensor([0.05, -0.9], dtype=torch.float64)
DATA = Path(__file__).parent.parent / "simulators" / "data" / "hundred_lenses.npz"
FULL = ["study=lensing_full", "n_simulations=300", "workers=1", "progress=false", "training.max_epochs=3"]
FULL += ["estimator.embedding.width=2", "estimator.embedding.features=4", "estimator.hidden=[8]", "device=cpu"]
FULL += ["training.batch_size=50", "training.validation_fraction=0.34", "simulator.n_pixels=16"]
MINI = StrongLensing("mini")


def test_resnet_of_the_full_study_has_about_a_million_weights() -> None:
    network = embedding("resnet", (64, 64), width=40, features=64)
    assert 0.9e6 < sum(weight.numel() for weight in network.parameters()) < 1.2e6


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_full_study_streams_and_carries_on_where_it_was_stopped(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fit.__kwdefaults__, "memory", 1e5)  # 300 images of 16 x 16 pixels have three times that
    monkeypatch.setattr("sbi_core.estimators.checkpoints.SECONDS", 0.0)
    assert main([*FULL, "run_dir=whole"]) == 0
    one_pass = Loop._pass

    def stopped(loop: Loop, rows: object) -> float:
        if loop.epoch == 2:
            raise KeyboardInterrupt
        return one_pass(loop, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Loop, "_pass", stopped)
    assert main([*FULL, "run_dir=parts"]) == 130
    assert not (here / "parts" / "fit.json").exists()
    monkeypatch.setattr(Loop, "_pass", one_pass)
    assert main([*FULL, "run_dir=parts"]) == 0
    whole, parts = (json.loads((here / name / "fit.json").read_text()) for name in ("whole", "parts"))
    assert parts["history"] == whole["history"] and len(whole["history"]["epoch"]) == 3
    models = [load_estimator(here / name / "model") for name in ("whole", "parts")]
    rows = simulate(StrongLensing("full", n_pixels=16), 5, seed=2, progress=False)
    first, second = (model.log_likelihood(rows.theta, rows.x) for model in models)
    assert torch.equal(first, second) and first.std() > 0


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_mini_study_runs_from_images_to_the_posterior(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["n_simulations=300", "training.max_epochs=1", "progress=false", "device=cpu"]
    assert main(["study=lensing_mini", *small, "run_dir=run"]) == 0
    printed = capsys.readouterr().out
    assert "f_sub = " in printed and "beta = " in printed
    with np.load(here / "run" / "posterior.npz") as found:
        assert found["x_obs"].shape == (100, 32, 32) and found["samples"].shape == (10_000, 2)


def octant(x: torch.Tensor) -> torch.Tensor:
    """Images (N, P, P) averaged over turns and flips: their different pixels (N, K), float64."""
    side = x.shape[-1] // 2
    mean = copied(x.double(), "dihedral", 8).unflatten(0, (8, len(x))).mean(0)
    return mean[:, :side, :side][:, torch.ones(side, side).tril().bool()]


def test_the_hundred_lenses_are_what_they_claim() -> None:
    x_obs = torch.from_numpy(np.load(DATA)["x_obs"].astype(np.float32))
    assert x_obs.shape == (100, *MINI.x_shape) and DATA.stat().st_size < 200_000
    many = FIDUCIAL * torch.tensor([3.0, 1.0])
    images = [octant(simulate(MINI, 1000, proposal=theta, seed=5, progress=False).x) for theta in (FIDUCIAL, many)]
    first, fresh = ([part[rows] for part in images] for rows in (slice(600), slice(600, None)))
    weights = torch.linalg.solve(first[0].T.cov(), first[1].mean(0) - first[0].mean(0))  # what tells the two apart
    own, *others = (part @ weights for part in (octant(x_obs), *fresh))
    z = [abs(float((own.mean() - one.mean()) / (own.var() / 100 + one.var() / 400).sqrt())) for one in others]
    assert z[0] < 4
    assert z[1] > 4, "saboteur: three times as many subhalos"


def told(estimator, fresh):
    """Information a lens in f_sub of the learned score at the fiducial point, and of the best linear one of pixels."""
    joint, seen = joint_score(MINI, fresh)[:, 0], octant(fresh.x)
    first, second = slice(0, 5000), slice(5000, None)
    seen = seen - seen[first].mean(0)
    weights = torch.linalg.solve(seen[first].T @ seen[first], seen[first].T @ joint[first])
    slopes = []
    for some in fresh.x[second].split(1000):
        theta = FIDUCIAL.expand(len(some), 2).clone().requires_grad_()
        slopes.append(torch.autograd.grad(estimator.log_likelihood(theta, some).sum(), theta)[0][:, 0])
    statistics = (torch.cat(slopes), seen[second] @ weights)
    return [float((t - t.mean()).mul(joint[second]).mean() ** 2 / t.var()) for t in statistics]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_mini_study_covers_and_learns_more_than_the_mean_image_tells() -> None:
    data = simulate(MINI, 20_000, seed=1, progress=False)
    network = {"name": "cnn", "symmetry": "dihedral", "copies": 1, "pooled": []}
    head = RatioEstimator.from_data(data, embedding=network, hidden=[32, 32, 32], centred=True)
    options = {"batch_size": 128, "learning_rate": 1e-3, "max_epochs": 40, "progress": False}
    estimator = fit(head, alices, data, simulator=MINI, seed=1, **options).estimator

    def far(estimator, **sets):
        found = diagnose(estimator, MINI, seed=1, progress=False, **sets)
        shares = {level: float((found.credibility <= level).double().mean()) for level in (0.5, 0.8, 0.9)}
        return max(abs(share - q) / (q * (1 - q) / sets["n"]) ** 0.5 for q, share in shares.items())

    assert far(estimator, n=300) < 4
    assert far(estimator, n=100, iid=100) < 4, "populations"
    fresh = simulate(MINI, 10_000, proposal=FIDUCIAL, seed=2, progress=False)
    learned, linear = told(estimator, fresh)
    latent = float(MINI.fisher_information(FIDUCIAL, latent=True)[0, 0])
    assert 1.2 * linear < learned < latent
    short = fit(head, alices, data[:1000], simulator=MINI, seed=1, **{**options, "max_epochs": 1}).estimator
    assert told(short, fresh)[0] < 1.2 * linear, "saboteur: eight steps"
    for weight in estimator.network[-1].parameters():
        weight.data *= 2
    estimator.centring.coefficients.mul_(2)
    assert far(estimator, n=300) > 4, "saboteur: twice as sure"
