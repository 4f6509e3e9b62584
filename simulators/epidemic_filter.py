"""The exact filter of a small epidemic: the probability of every state, from one time of counting to the next."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDE = 400.0
"""Mean number of steps that are summed at once: exp(-400) is a number still."""

Place = tuple[slice, ...]
Move = tuple[Tensor, Tensor, int, tuple[Place, Place]]
"""One thing that can happen: its rate in each state over r and over theta, theta, the slope, from where to where."""


@dataclass(frozen=True)
class Filter:
    """All states (F, S, C_1, .., C_L) of an epidemic: new infections since the last time, susceptible, in each stage.

    Attributes:
        population: individuals N.
        infected: at time 0, all in the first stage.
        stages: L.
        by_interval: whether infections since the last time are counted; else F is always 0.
    """

    population: int
    infected: int
    stages: int
    by_interval: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that holds one number for every state."""
        susceptible = self.population - self.infected + 1
        return (susceptible if self.by_interval else 1, susceptible, *[self.population + 1] * self.stages)

    @property
    def states(self) -> int:
        """Numbers in that array; about half of the states, or fewer, can be reached."""
        return math.prod(self.shape)

    def number(self, axis: int) -> Tensor:
        """The number that an axis of the states counts, broadcasting to (F, S, ...)."""
        shape = [1] * len(self.shape)
        shape[axis] = self.shape[axis]
        return torch.arange(self.shape[axis], dtype=torch.float64).reshape(shape)

    def everyone(self) -> Tensor:
        """Infected, in all stages, of each state, broadcasting to (F, S, ...)."""
        return sum((self.number(3 + stage) for stage in range(self.stages - 1)), self.number(2))

    def fastest(self, beta: Tensor, gamma: Tensor) -> Tensor:
        """Largest rate of leaving a state, max over S of (N - S) (beta S / N + L gamma): beta (B,), gamma (B,)."""
        s = torch.arange(self.shape[1], dtype=torch.float64)
        rate = beta[:, None] * s / self.population + self.stages * gamma[:, None]
        return ((self.population - s) * rate).amax(1).clamp(min=1e-300)

    def start(self, rows: int, *, slopes: bool = False) -> Tensor:
        """Probability 1 of the state at time 0, (T, B, F, S, ...).

        T is 1, or 3 with `slopes`: then the derivatives of all probabilities by beta and by gamma follow.
        """
        p = torch.zeros((3 if slopes else 1, rows, *self.shape), dtype=torch.float64)
        begin: tuple[int | slice, ...] = (0, slice(None), 0, -1, self.infected, *[0] * (self.stages - 1))
        p[begin] = 1.0
        return p

    def wait(self, p: Tensor, beta: Tensor, gamma: Tensor, days: Tensor) -> Tensor:
        """Let days (B,) pass: p exp(Q days), p (T, B, F, S, ...), beta (B,), gamma (B,).

        By uniformisation (Jensen, Skand. Aktuarietidskr. 36 (1953) 87): with r the largest rate of leaving a state, the
        sum over n of Poisson(n; r days) p (1 + Q / r)^n, in which probabilities only add. What is left out is below
        1e-13.
        """
        fastest = self.fastest(beta.detach(), gamma.detach())
        parts = max(1, math.ceil(float((fastest * days).max()) / STRIDE))
        mean = (fastest * days / parts)[:, None]
        most = float(mean.max())
        count = torch.arange(math.ceil(most + 8 * math.sqrt(most) + 20), dtype=torch.float64)
        weights = (torch.special.xlogy(count, mean) - mean - torch.lgamma(count + 1)).exp()
        moves = self._moves(beta, gamma, fastest)
        stay = 1 - torch.stack(torch.broadcast_tensors(*(rate * chance for chance, rate, _, _ in moves))).sum(0)
        for _ in range(parts):
            total = self.lift(weights[:, 0]) * p
            for n in range(1, len(count)):
                p = _step(p, stay, moves)
                total = total + self.lift(weights[:, n]) * p
            p = total
        return p

    def forget(self, p: Tensor) -> Tensor:
        """Begin a new interval: sum p (T, B, F, S, ...) over new infections, and call them none."""
        if not self.by_interval:
            return p
        return torch.cat([p.sum(2, keepdim=True), torch.zeros_like(p[:, :, 1:])], 2)

    def lift(self, values: Tensor) -> Tensor:
        """One number for each row (B,), broadcasting to (B, F, S, ...)."""
        return values.reshape(-1, *[1] * len(self.shape))

    def _moves(self, beta: Tensor, gamma: Tensor, fastest: Tensor) -> list[Move]:
        """All that can happen: an infection, and leaving each of the stages."""
        infect = self.number(1) * self.everyone() / (self.population * self.lift(fastest))
        new = {2: 1} if self.by_interval else {}
        moves: list[Move] = [(infect, self.lift(beta), 1, _slices({**new, 3: -1, 4: 1}, 4 + self.stages))]
        for stage in range(self.stages):
            chance = self.stages * self.number(2 + stage) / self.lift(fastest)
            onward = {5 + stage: 1} if stage < self.stages - 1 else {}
            moves.append((chance, self.lift(gamma), 2, _slices({4 + stage: -1, **onward}, 4 + self.stages)))
        return moves


def _step(p: Tensor, stay: Tensor, moves: list[Move]) -> Tensor:
    """p (1 + Q / r), p (T, B, F, S, ...), and by the product rule its derivatives."""
    after = stay * p
    for chance, rate, slope, (here, there) in moves:
        flow = rate * chance * p
        if len(p) > 1:
            extra = chance * p[0]
            flow[slope] += extra
            after[slope] -= extra
        after[there] += flow[here]
    return after


def _slices(change: Mapping[int, int], axes: int) -> tuple[Place, Place]:
    """Where those states are that a change of some axes by one, up or down, leads out of, and into."""
    halves = {
        0: (slice(None), slice(None)),
        1: (slice(None, -1), slice(1, None)),
        -1: (slice(1, None), slice(None, -1)),
    }
    pairs = [halves[change.get(axis, 0)] for axis in range(axes)]
    return tuple(here for here, _ in pairs), tuple(there for _, there in pairs)


def forward(
    states: Filter,
    theta: Tensor,
    x: Tensor,
    times: Tensor,
    log_count: Callable[[Tensor, Tensor], Tensor],
    *,
    slopes: bool = False,
) -> tuple[Tensor, Tensor]:
    """The forward algorithm: log p(x | theta) (B,) for theta (B, 2), x (B, K), times (B, K), and its gradient (B, 2).

    Args:
        states: of the epidemic.
        theta: beta and gamma per day.
        x: counts.
        times: of counting, ascending, in days.
        log_count: (x, n) -> log probability that x of n are counted, broadcasting.
        slopes: whether the gradient is wanted too; else it is empty, (B, 0).
    """
    waits = torch.cat([times[:, :1], times.diff(dim=1)], 1)
    true = states.number(0) if states.by_interval else states.everyone()
    p, log_p = states.start(len(theta), slopes=slopes), torch.zeros(len(theta), dtype=torch.float64)
    for k in range(x.shape[1]):
        p = states.wait(p, theta[:, 0], theta[:, 1], waits[:, k])
        p = p * log_count(states.lift(x[:, k]), true).exp()
        chance = p[0].flatten(1).sum(1)
        log_p = log_p + chance.log()
        p = states.forget(p / states.lift(torch.where(chance > 0, chance, 1.0)))
    return log_p, p[1:].flatten(2).sum(2).T
