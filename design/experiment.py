"""What a loop leaves: each round with what was expected of it, what came, and what is believed since."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.design.choice import Choice
from sbi_core.design.gain import Gain
from sbi_core.errors import InputError
from sbi_core.inference import Posterior


@dataclass(frozen=True)
class Experiment:
    """One round.

    Attributes:
        design: (K,).
        x_obs: the outcome, (event).
        n_events: how many of its events count, ().
        predicted: expected gain before the outcome; `None` where the policy did not ask.
        realised: KL(posterior || belief before), nats; its expectation is the predicted gain.
        posterior: of theta, from all outcomes so far.
        choice: what else was looked at; `None` where the policy did not ask.
    """

    design: Tensor
    x_obs: Tensor
    n_events: Tensor | None
    predicted: Gain | None
    realised: float
    posterior: Posterior
    choice: Choice | None = None


@dataclass(frozen=True)
class Loop:
    """What a loop has done.

    Attributes:
        experiments: round by round.
        prior: what was believed before.
        stopped: why it ended.
        flags: what a careful reader should know.
    """

    experiments: tuple[Experiment, ...]
    prior: Distribution
    stopped: str
    flags: tuple[str, ...] = field(default=())

    @property
    def posterior(self) -> Distribution:
        """The belief after the last round."""
        return self.experiments[-1].posterior if self.experiments else self.prior

    def predicted_over_realised(self) -> tuple[float, float]:
        """Ratio of the summed gains, which must be 1 on average, and its standard error from the realised ones.

        Raises:
            InputError: with fewer than two rounds that were predicted.
        """
        pairs = [(one.predicted.value, one.realised) for one in self.experiments if one.predicted is not None]
        return ratio(pairs)


def ratio(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean of the first over mean of the second of each pair, and its standard error.

    Raises:
        InputError: for fewer than two pairs.
    """
    if len(pairs) < 2:
        raise InputError(f"{len(pairs)} predicted rounds: a ratio with an error needs at least 2.")
    predicted, realised = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    value = float(predicted.mean() / realised.mean())
    error = (predicted - value * realised).std() / math.sqrt(len(pairs)) / realised.mean()
    return value, float(error)
