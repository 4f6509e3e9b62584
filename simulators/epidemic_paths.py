"""Exact paths of many epidemics at once: every row advances event by event, all rows in the same step."""

from dataclasses import dataclass

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
    seen = Paths(
        susceptible[:, None].expand_as(times).clone(),
        infected[:, None].expand(*times.shape, stages).clone(),
        torch.zeros_like(beta),
        torch.zeros_like(beta),
    )
    row, now = torch.arange(len(beta)), torch.zeros_like(beta)
    force, leave, upto = beta / population, stages * gamma, infected.cumsum(1)
    ended = times[:, -1] <= 0
    while True:
        row, now, susceptible, upto, force, leave, times = (
            part[~ended] for part in (row, now, susceptible, upto, force, leave, times)
        )
        if not len(row):
            return seen
        s, below = _chain(susceptible, upto, leave / force, generator)
        everyone = below[:, -1]
        unit = torch.rand((BLOCK, len(row)), generator=generator, dtype=torch.float64)
        wait = unit.neg_().log1p_().neg_().clamp_(min=1e-300)  # 0 / 0 would be NaN once nobody is infected
        wait /= (everyone[:-1] * (s[:-1] * force + leave)).clamp_(min=0)  # then infinite, and so is all that follows
        when = torch.cat([now[None], wait]).cumsum(0).T.contiguous()
        at = torch.searchsorted(when[:, 1:].contiguous(), times, right=True)
        later = times >= now[:, None]
        stage = below.diff(dim=1, prepend=torch.zeros_like(below[:, :1]))
        seen.susceptible[row] = torch.where(later, s.T.gather(1, at), seen.susceptible[row])
        of_stage = stage.permute(2, 0, 1).gather(1, at[..., None].expand(*at.shape, stages))
        seen.infected[row] = torch.where(later[..., None], of_stage, seen.infected[row])
        spent = when.clamp(max=times[:, -1:]).diff(dim=1).T * everyone[:-1]
        seen.burden[row] += spent.sum(0)
        seen.contacts[row] += (spent * s[:-1]).sum(0) / population
        now, susceptible, upto = when[:, -1], s[-1], below[-1].T
        ended = now >= times[:, -1]


def _chain(susceptible: Tensor, upto: Tensor, odds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw 64 events of each row: S before and after them (65, M), and infected up to each stage (65, L, M).

    Without infected nothing happens any more; what is drawn then has no meaning.
    """
    rows, stages = upto.shape
    unit = torch.rand((BLOCK, rows), generator=generator, dtype=torch.float64)
    needed = unit.div_(1 - unit).mul_(odds)
    s, infection = susceptible.new_empty((BLOCK + 1, rows)), susceptible.new_empty((BLOCK, rows))
    s[0] = susceptible
    for k in range(BLOCK):
        torch.gt(s[k], needed[k], out=infection[k])
        torch.sub(s[k], infection[k], out=s[k + 1])
    if stages == 1:
        events = torch.arange(BLOCK + 1, dtype=s.dtype)[:, None]
        return s, (upto[:, 0] + 2 * (susceptible - s) - events)[:, None]
    who = torch.rand((BLOCK, rows), generator=generator, dtype=torch.float64)
    below = s.new_empty((BLOCK + 1, stages, rows))
    below[0] = upto.T
    for k in range(BLOCK):
        chosen = (who[k] * below[k, -1] < below[k]).to(s.dtype)  # 0 .. 0 1 .. 1: the first 1 is at the stage
        chosen[1:] -= chosen[:-1].clone()
        torch.addcmul(below[k] + infection[k], chosen, infection[k] - 1, out=below[k + 1])
    return s, below
