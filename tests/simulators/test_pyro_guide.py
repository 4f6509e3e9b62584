"""The Python of the guide on Pyro programs runs as it stands, block after block."""

import pytest
from guides import run_guide

from sbi_core import simulate
from sbi_core.simulators import GaltonBoard, PyroSimulator


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_pyro(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_guide("pyro.md", 5)
    told = capsys.readouterr().out
    assert told.count("Bernoulli") == 20 and "torch.Size([500, 2]) torch.Size([500, 4])" in told
    walk, posterior = names["Walk"], names["posterior"]
    assert isinstance(walk, type) and issubclass(walk, PyroSimulator)
    assert simulate(walk(), 5, seed=1, progress=False).x.shape == (5, 2)
    x_obs, board = names["x_obs"], GaltonBoard()
    theta = board.prior.mean.new_tensor([[-0.95 + 0.01 * k] for k in range(91)])
    weight = board.log_likelihood(theta[:, None], x_obs).sum(1).softmax(0)
    exact = float(weight @ theta[:, 0])
    spread = float(weight @ (theta[:, 0] - exact) ** 2) ** 0.5
    assert abs(float(posterior.mean) - exact) < 0.5 * spread < 0.1, "the posterior of the board by hand"
