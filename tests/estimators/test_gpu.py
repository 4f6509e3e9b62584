"""Training on a CUDA device ends at the loss that the CPU reaches. Run with: pytest -m gpu"""

import pytest
import torch

from sbi_core import Parameter, Simulator, simulate
from sbi_core.estimators import LikelihoodEstimator, RatioEstimator, alice, fit, nle
from sbi_core.simulators import TwoMoons

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SIDE = 64


class Blob(Simulator):
    """x (64, 64): a blob at a height z ~ N(theta, 3 pixels), with noise of 0.3 in every pixel."""

    parameters = (Parameter("height", 16, 48),)
    rows_per_seed = 100

    def sample(self, theta, design, generator):
        z = theta + 3 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        place = torch.arange(SIDE).double()
        profile = torch.exp(-((place - z) ** 2) / 32)
        noise = torch.randn(len(theta), SIDE, SIDE, generator=generator)
        return (profile[:, :, None] * torch.exp(-((place - 31.5) ** 2) / 32)).float() + 0.3 * noise, z

    def log_joint(self, theta, x, z, design):
        return -((z - theta) ** 2).sum(-1) / 18


def image(device, **options):
    world = Blob()
    data = simulate(world, 2000, seed=1, progress=False)
    head = RatioEstimator.from_data(data, embedding={"name": "cnn", "width": 8})
    options = {"max_epochs": 20, "gold_check": False, "progress": False, "device": device, "seed": 1} | options
    return fit(head, alice, data, simulator=world, **options)


def flow(device):
    data = simulate(TwoMoons(), 2000, seed=1, progress=False)
    head = LikelihoodEstimator.from_data(data, transforms=3)
    return fit(head, nle, data, seed=1, max_epochs=20, progress=False, device=device)


@pytest.mark.parametrize("train", [image, flow])
def test_the_gpu_reaches_the_loss_of_the_cpu(train):
    """Two seeds on the CPU differ by about as much; half the epochs differ by more."""
    here, there = train("cpu"), train("cuda")
    best, first = (min(run.history["validation"]) for run in (here, there))
    start = here.history["validation"][0]
    assert abs(best - first) < 0.05 * abs(start - best)
    assert next(there.estimator.parameters()).device.type == "cpu"


def test_mixed_precision_learns_the_same():
    full, mixed = (image("cuda", mixed_precision=value) for value in (False, True))
    best, other = (min(run.history["validation"]) for run in (full, mixed))
    assert best != other, "bfloat16 rounds"
    assert abs(best - other) < 0.05 * abs(full.history["validation"][0] - best)
