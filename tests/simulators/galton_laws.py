"""What every Galton board must satisfy, mined by hand or written in Pyro, each with a saboteur's angle."""

import math

import torch
from measures import z_of_mean
from scipy.stats import chi2

from sbi_core import joint_score, simulate


def at(*theta):
    return torch.tensor(theta, dtype=torch.float64)


def design(pair):
    return None if pair is None else at(*pair)


def walk(board, theta, pair, turns):
    """Slot and probability of one path, straight from the rules; turns are True for left."""
    position, rows = pair or ((board.n_nails - 1) // 2, board.n_rows)
    chance = 1.0
    for row, left in zip(range(rows), turns, strict=False):
        tilt = math.sin(math.pi * row / (board.n_rows - 1))
        side = 2 * position / (board.n_nails - 1) - 1
        p_left = (1 - tilt) / 2 + tilt / (1 + math.exp(-10 * theta * side))
        if row % 2 == 1 and position == 0:
            p_left = 0.0
        if row % 2 == 1 and position == board.n_nails:
            p_left = 1.0
        chance *= p_left if left else 1 - p_left
        position += -left if row % 2 == 1 else not left
    return position, chance


def p_value(board, exact, theta, pair, against, n=20_000):
    """Chi-square test of sampled slots against the exact ones at `against`, rare slots pooled."""
    rows = simulate(board, n, seed=5, proposal=at(theta), design=design(pair), progress=False)
    counts = torch.bincount(rows.x[:, 0].long(), minlength=exact.n_nails + 1).double()
    wanted = n * exact.log_probabilities(at(against), design(pair)).exp()
    assert (counts[wanted == 0] == 0).all()
    often = wanted > 10
    counts, wanted = (torch.cat([v[often], v[~often].sum()[None]]) for v in (counts, wanted))
    statistic = float(((counts - wanted) ** 2 / wanted.clamp(min=1e-9))[wanted > 0].sum())
    return chi2.sf(statistic, int((wanted > 0).sum()) - 1)


def slots_off(board, exact, pair, shift, n=12_000):
    """How far mean joint scores at frequent slots are from the exact score at a shifted theta, in standard errors."""
    rows = simulate(board, n, seed=2, proposal=at(-0.3), design=design(pair), progress=False)
    joint, score = joint_score(board, rows)[:, 0], exact.score(rows.theta + shift, rows.x, rows.design)[:, 0]
    often = [slot for slot in rows.x.unique() if (rows.x[:, 0] == slot).sum() > 100]
    assert len(often) >= 3
    return max(z_of_mean((joint - score)[rows.x[:, 0] == slot]) for slot in often)
