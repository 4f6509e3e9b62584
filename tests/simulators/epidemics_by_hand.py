"""An epidemic written out state by state: the matrix of all rates, and its exponential."""

from itertools import product

import numpy as np
from scipy.linalg import expm
from scipy.stats import betabinom, binom


def states(population, infected, stages):
    """All (S, C_1, .., C_L) that can be."""
    rows = product(range(population - infected + 1), *[range(population + 1)] * stages)
    return [row for row in rows if sum(row) <= population]


def rates(population, infected, stages, beta, gamma):
    """Matrix of the rates, and that of infections alone."""
    known = states(population, infected, stages)
    place = {state: k for k, state in enumerate(known)}
    matrix, infections = np.zeros((len(known),) * 2), np.zeros((len(known),) * 2)
    for state, k in place.items():
        s, ill = state[0], sum(state[1:])
        if s and ill:
            to = (s - 1, state[1] + 1, *state[2:])
            infections[k, place[to]] = beta * s * ill / population
        for stage in range(stages):
            if state[1 + stage]:
                to = list(state)
                to[1 + stage] -= 1
                if stage + 1 < stages:
                    to[2 + stage] += 1
                matrix[k, place[tuple(to)]] += stages * gamma * state[1 + stage]
    matrix += infections
    return matrix - np.diag(matrix.sum(1))


def counted(x, n, reporting, dispersion):
    """Probability that x of n are counted."""
    if dispersion and reporting < 1:
        both = 1 / dispersion - 1
        return betabinom.pmf(x, n, reporting * both, (1 - reporting) * both)
    return binom.pmf(x, n, reporting)


def probability(world, theta, x, times):
    """p(x | theta, times) by matrix products over all paths of states at the times."""
    known = states(world.population, world.infected, world.stages)
    matrix = rates(world.population, world.infected, world.stages, *theta)
    s, ill = np.array([row[0] for row in known]), np.array([sum(row[1:]) for row in known])
    begin = (world.population - world.infected, world.infected, *[0] * (world.stages - 1))
    p = np.zeros(len(known))
    p[known.index(begin)] = 1.0
    for count, wait in zip(x, np.diff([0.0, *times]), strict=True):
        jump = expm(matrix * wait)
        if world.observed == "incidence":
            new = np.maximum(s[:, None] - s[None], 0)  # where S grows, the jump has no probability
            p = p @ (jump * counted(count, new, world.reporting, world.dispersion))
        else:
            p = (p @ jump) * counted(count, ill, world.reporting, world.dispersion)
    return p.sum()


def gillespie(theta, population, infected, times, rng, until="its own last time"):
    """One path a row, one event after the other: S and I at the times (M, K), and n_i, n_r, A, B until something."""
    beta, gamma = theta.T
    s, ill = np.full(len(theta), float(population - infected)), np.full(len(theta), float(infected))
    now, seen = np.zeros(len(theta)), np.zeros((2, *times.shape))
    known = np.zeros((4, len(theta)))
    last = times[:, -1] if until != "the longest time" else np.full(len(theta), times.max())
    while True:
        with np.errstate(divide="ignore"):
            wait = rng.exponential(size=len(theta)) / (ill * (beta * s / population + gamma))
        after = now + wait
        here = (times >= now[:, None]) & (times < after[:, None])
        seen[:, here] = np.broadcast_to(np.stack([s, ill])[..., None], seen.shape)[:, here]
        spent = np.minimum(after, last) - np.minimum(now, last)
        if until == "the last event":
            spent[after > last] = 0.0
        known[2] += spent * np.where(ill > 0, s * ill / population, 0)
        known[3] += np.where(ill > 0, spent * ill, 0)
        going = ill > 0
        if not (going & (after <= times.max())).any():
            return seen, known.T
        infection = going & (rng.random(len(theta)) < beta * s / (beta * s + population * gamma))
        recovery = going & ~infection
        known[0] += infection & (after <= times[:, -1])
        known[1] += recovery & (after <= times[:, -1])
        s, ill, now = s - infection, ill + infection - recovery, after
