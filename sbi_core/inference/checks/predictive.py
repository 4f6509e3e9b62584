"""Does the posterior at x_obs simulate what was observed?"""

import torch
from torch import Tensor

from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.copies import copies
from sbi_core.simulator import Simulator

REPLICATES = 5000
"""Simulated copies of the observation, at most."""


def predictive(
    simulator: Simulator, theta: Tensor, x_obs: Tensor, false_alarm: float, *, design: Tensor | None, seed: int
) -> Check:
    """A posterior predictive check (Gelman, Meng & Stern, Statistica Sinica 6 (1996) 733).

    Of one observation the statistics are its columns, of a set the mean and standard deviation of each; T is the
    largest distance of a statistic from its mean over replicates in standard deviations, and p the share of replicates
    with a larger T, each among the others. The posterior has seen x_obs, so p is nearer to 1/2 than a uniform number:
    few alarms are false, and small faults stay unseen. With fewer replicates than 1 / false_alarm nothing can fail.

    Args:
        simulator: draws the replicates.
        theta: draws of the posterior at x_obs, (R, D).
        x_obs: the set, (n, *event).
        false_alarm: p below which the check fails.
        design: one for all, (K,), or one for each of the set, (n, K).
        seed: fixes the replicates.
    """
    n = len(x_obs)
    settings = None if design is None else design.expand(n, -1).repeat(len(theta), 1)
    made, whole, _ = copies(simulator, theta, n, design=settings, seed=seed)
    sets = torch.cat([x_obs.double().reshape(1, n, -1), made[whole].double().flatten(2)])
    statistics = sets[:, 0] if n == 1 else torch.cat([sets.mean(1), sets.std(1)], 1)
    spread = statistics.std(0)
    distance = ((statistics - statistics.mean(0)) / torch.where(spread > 0, spread, 1.0)).abs()
    largest, at = distance.max(1)
    many, columns = len(largest), sets.shape[2]
    p = float((largest >= largest[0]).sum()) / many
    where = (
        f"column {int(at[0]) % columns}"
        if n == 1
        else f"{'mean' if at[0] < columns else 'sd'} of column {int(at[0]) % columns}"
    )
    said = f"{where} of x_obs is {float(largest[0]):.1f} sd from that of {many - 1} replicates, p = {p:.2g}"
    passed: bool | None = p >= false_alarm
    if false_alarm * many < 1 and p <= 1 / many:
        passed, said = None, f"{said}; too few replicates to fail"
    return Check(
        "posterior predictive", "", float(largest[0]), (0.0, float(largest.quantile(1 - false_alarm))), passed, said
    )
