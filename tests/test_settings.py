"""What a configuration builds, and what settings may hold."""

from collections.abc import Callable

import pytest

from sbi_core import InputError
from sbi_core.cli import build
from sbi_core.settings import RUN
from sbi_core.simulators import GaltonBoard


@pytest.mark.parametrize(
    ("config", "group", "check"),
    [
        ({"_target_": "GaltonBoard", "n_rows": 10}, "simulator", lambda made: made.n_rows == 10),
        ({"_target_": "alices", "alpha": 0.5}, "loss", lambda made: made.keywords == {"alpha": 0.5}),
        ({"_target_": "RatioEstimator", "hidden": [8]}, "estimator", lambda made: made.keywords == {"hidden": [8]}),
    ],
)
def test_build(config: dict[str, object], group: str, check: Callable[[object], bool]) -> None:
    assert check(build(config, group))


@pytest.mark.parametrize(
    ("prior", "mean"),
    [
        ({"_target_": "default"}, -0.5),
        ({"_target_": "uniform", "low": -0.8}, -0.4),
        ({"_target_": "uniform", "low": [-0.8], "high": [-0.6]}, -0.7),
        ({"_target_": "torch.distributions.Normal", "loc": [-0.3], "scale": [0.1]}, -0.3),
    ],
)
def test_build_prior(prior: dict[str, object], mean: float) -> None:
    board = GaltonBoard()
    made = build(prior, "prior")(board.parameters, board.prior)
    assert made.event_shape == (1,)
    assert float(made.mean[0]) == pytest.approx(mean)


def test_settings_saboteur() -> None:
    with pytest.raises(InputError, match="seed = True"):
        RUN.check({"seed": True})
    RUN.check({"seed": 1})
