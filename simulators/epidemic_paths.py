"""Exact paths of many epidemics at once: every row advances event by event, all rows in the same step."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
"""Events for which random numbers are drawn, and after which rows that have ended are dropped, at once."""


@dataclass(frozen=True)
class Paths:
    """What M epidemics were at K times, and what they had been until the last.

    Attributes:
        susceptible: S (M, K).
        infected: number in each stage of the infection, (M, K, L).
        contacts: integral of S I / N over time until the last of the K times, (M,), in days.
        burden: integral of I until then, (M,), in days.
    """

    susceptible: Tensor
    infected: Tensor
    contacts: Tensor
    burden: Tensor


def follow(
    beta: Tensor,
    gamma: Tensor,
    susceptible: Tensor,
    infected: Tensor,
    times: Tensor,
    population: int,
    generator: torch.Generator,
) -> Paths:
    """Run the jump process from time 0: infections at rate beta S I / N, and each infected's next stage at L gamma.

    The embedded chain is drawn first: an event is an infection with probability (beta S / N) / (beta S / N + L gamma),
    whatever I is, so if S > (L gamma N / beta) u / (1 - u) for a uniform u; else one of the infected, any with the same
    chance, moves on a stage, out of the last to the recovered. Then come the waiting times, exponential with rate
    I (beta S / N + L gamma). Both are exact (Gillespie, J. Phys. Chem. 81 (1977) 2340), and all but the comparison
    with S, and the choice of the stage if there are several, is done for 64 events at once.

    Args:
        beta: (M,), per day.
        gamma: (M,), per day.
        susceptible: S at time 0, (M,).
        infected: in each stage at time 0, (M, L).
        times: when to look, ascending, (M, K), in days.
        population: individuals N.
        generator: the only source of random numbers.
    """
    stages = infected.shape[1]
    rng = np.random.default_rng(torch.randint(0, 2**32, (8,), generator=generator).tolist())
    seen = Paths(
        susceptible[:, None].expand_as(times).clone(),
        infected[:, None].expand(*times.shape, stages).clone(),
        torch.zeros_like(beta),
        torch.zeros_like(beta),
    )
    row, now, last = torch.arange(len(beta)), torch.zeros_like(beta), times[:, -1:]
    force, leave, upto = beta / population, stages * gamma, infected.cumsum(1)
    ended = last[:, 0] <= 0
    while True:
        row, now, susceptible, upto, force, leave, times, last = (
            part[~ended] for part in (row, now, susceptible, upto, force, leave, times, last)
        )
        if not len(row):
            return seen
        s, below = _chain(susceptible, upto, leave / force, rng)
        everyone = below[:, -1]
        wait = torch.from_numpy(rng.standard_exponential((BLOCK, len(row))))
        wait.clamp_(min=1e-300)  # 0 / 0 would be NaN once nobody is infected
        wait /= (everyone[:-1] * (s[:-1] * force + leave)).clamp_(min=0)  # then infinite, and so is all that follows
        when = torch.cat([now[None], wait]).cumsum(0).T.contiguous()
        spent = when.clamp(max=last).diff(dim=1).T * everyone[:-1]
        seen.burden[row] += spent.sum(0)
        seen.contacts[row] += (spent * s[:-1]).sum(0) / population
        of, k = ((times >= now[:, None]) & (times < when[:, -1:])).nonzero(as_tuple=True)
        at = torch.searchsorted(when[of], times[of, k][:, None], right=True)[:, 0] - 1
        seen.susceptible[row[of], k] = s[at, of]
        seen.infected[row[of], k] = below[at, :, of].diff(dim=1, prepend=torch.zeros(len(of), 1).to(s))
        now, susceptible, upto = when[:, -1], s[-1], below[-1].T
        ended = now > last[:, 0]


def _chain(susceptible: Tensor, upto: Tensor, odds: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw 64 events of each row: S before and after them (65, M), and infected up to each stage (65, L, M).

    Without infected nothing happens any more; what is drawn then has no meaning. The loop is NumPy's, which takes half
    the time of torch's for so few numbers.
    """
    rows, stages = upto.shape
    unit = rng.random((BLOCK, rows))
    needed = unit / (1 - unit) * odds.numpy()
    s, infection = np.empty((BLOCK + 1, rows)), np.empty((BLOCK, rows), dtype=bool)
    s[0] = susceptible
    for k in range(BLOCK):
        np.greater(s[k], needed[k], out=infection[k])
        np.subtract(s[k], infection[k], out=s[k + 1])
    path = torch.from_numpy(s)
    if stages == 1:
        events = torch.arange(BLOCK + 1, dtype=path.dtype)[:, None]
        return path, (upto[:, 0] + 2 * (susceptible - path) - events)[:, None]
    who = rng.random((BLOCK, rows))
    below = np.empty((BLOCK + 1, stages, rows))
    below[0] = upto.T
    for k in range(BLOCK):
        chosen = who[k] * below[k, -1] < below[k]  # 0 .. 0 1 .. 1: the first 1 is at the stage
        chosen[1:] &= ~chosen[:-1]
        np.add(below[k], infection[k], out=below[k + 1])
        below[k + 1] -= chosen & ~infection[k]
    return path, torch.from_numpy(below)
