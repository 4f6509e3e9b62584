"""Runs of independent events of one simulator."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.errors import InputError, MissingGold, SimulatorError
from sbi_core.priors import UniformPrior
from sbi_core.seeding import seeded
from sbi_core.simulator import LogLikelihood, Simulator

_TRIALS = 4096

_HALVINGS = 12
"""How often the designs' ranges are halved, all axes together, to find the largest number of events."""


class Events(Simulator):
    """A run of independent events at one theta and design: n of them, a known n(design), or a Poisson number.

    log p(run | theta) = sum_i log p(x_i, z_i | theta), plus -mu + n log mu with mu = luminosity * rate(theta, design)
    if the number of events is random (the extended likelihood; Barlow, Nucl. Instrum. Meth. A 297 (1990) 496). A row
    is x (n_max, ...), zero-padded, with the column `n_events`; z (n_max, Z + 1) holds each event's latents,
    flattened, and a last number that is 1 where there is an event.

    Args:
        simulator: what makes one event.
        n: events in every run; or a function of the design (M, K), float64, that returns whole numbers (M,), for runs
            whose number of events is set by the design and says nothing about theta.
        luminosity: expected events per unit of `simulator.rate(theta, design)`, instead of n.
        n_max: room for events in a row. By default, of a random number so much that a draw beyond it has a probability
            below 1e-9; of a function its largest value on an even lattice of designs, ends and middles included.

    Raises:
        InputError: unless exactly one of n and luminosity is given.

    Example:
        >>> from sbi_core import simulate
        >>> from sbi_core.simulators import GaltonBoard
        >>> simulate(Events(GaltonBoard(), 7), 3, seed=1, progress=False).x.shape
        torch.Size([3, 7, 1])
        >>> balls = Events(GaltonBoard(), n=lambda design: 100 // design[:, 1])
        >>> simulate(balls, 3, design=torch.tensor([15, 20]), seed=1, progress=False).n_events
        tensor([5, 5, 5])
    """

    def __init__(
        self,
        simulator: Simulator,
        n: int | Callable[[Tensor], Tensor] | None = None,
        *,
        luminosity: float | None = None,
        n_max: int | None = None,
    ) -> None:
        if (n is None) == (luminosity is None):
            raise InputError("Events needs either n (events in every run) or luminosity=..., and not both.")
        if callable(n) and not simulator.designs:
            raise InputError(f"n is a function of the design, but simulator '{simulator.name}' has none.")
        if n is not None and not callable(n) and n < 1:
            raise InputError(f"n = {n}, expected at least 1 event.")
        if luminosity is not None and not hasattr(simulator, "rate"):
            raise InputError(f"luminosity needs simulator.rate(theta, design), which '{simulator.name}' does not have.")
        self.simulator = simulator
        self.n = n
        self.luminosity = luminosity
        self.parameters = simulator.parameters
        self.designs = simulator.designs
        self.design_score = simulator.design_score
        self.rows_per_seed = max(1, simulator.rows_per_seed // 100)
        self.n_max = n_max or self._room() if n is None or callable(n) else n

    @property
    def name(self) -> str:
        """What it is a run of."""
        return f"Events({self.simulator.name})"

    @property
    def prior(self) -> Distribution:
        """The prior of one event, event shape (D,)."""
        return self.simulator.prior

    @property
    def has_gold(self) -> bool:
        """Whether one event has gold."""
        return self.simulator.has_gold

    @property
    def is_exact(self) -> bool:
        """Whether one event has an exact likelihood."""
        return self.simulator.is_exact

    @property
    def needs_n_events(self) -> bool:
        """Whether the number of events varies, so that x alone does not say it."""
        return self.luminosity is not None or callable(self.n)

    @property
    def x_event(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self.simulator.x_shape or tuple(self._event[0].shape[1:])

    def mean_events(self, theta: Tensor, design: Tensor | None) -> Tensor:
        """Expected number of events mu (*), for theta (*, D)."""
        return self.luminosity * self.simulator.rate(theta, design)  # type: ignore[attr-defined]

    def sample(self, theta: Tensor, design: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw runs at theta (M, D): x (M, n_max, ...), z (M, n_max, Z + 1)."""
        rows = len(theta)
        if self.n is not None:
            count = self._known(design).expand(rows)
        else:
            count = self._fitting(torch.poisson(self.mean_events(theta, design), generator=generator).long())
        present = torch.arange(self.n_max) < count[:, None]
        run = torch.repeat_interleave(torch.arange(rows), count)
        if len(run):
            x, z = self.simulator.sample(theta[run], None if design is None else design[run], generator)
        else:
            x, z = self._event
            x, z = x[:0], None if z is None else z[:0]
        if not isinstance(x, Tensor) or x.ndim < 2 or len(x) != len(run):
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise SimulatorError(f"simulator '{self.simulator.name}': x is {shape}, expected ({len(run)}, ...).")
        padded = x.new_zeros((rows, self.n_max, *x.shape[1:]))
        padded[present] = x
        width = 0 if z is None else z.flatten(1).shape[1]
        latents = torch.zeros((rows, self.n_max, width + 1), dtype=torch.float32 if z is None else z.dtype)
        latents[..., -1] = present.to(latents)
        if z is not None:
            latents[..., :-1][present] = z.flatten(1)
        return padded, latents

    def count(self, z: Tensor | None) -> Tensor | None:
        """Number of events (M,) in each row of z (M, n_max, Z + 1)."""
        return None if z is None else z[..., -1].sum(1).round().long()

    def check_rows(self, n: int, proposal: Distribution | Tensor) -> None:
        """Let the simulator of one event warn of n runs of n_max events, at theta (D,), (n, D) or from a density."""
        self.simulator.check_rows(n * self.n_max, proposal)

    def log_joint(self, theta: Tensor, x: Tensor, z: Tensor | None, design: Tensor | None) -> Tensor:
        """Sum over events of log p(x_i, z_i | theta), plus the Poisson term; theta (M, D), result (M,)."""
        if z is None:
            raise MissingGold(f"simulator '{self.name}': the simulations were stored without z.")
        present = z[..., -1] > 0.5
        run = present.nonzero()[:, 0]
        latents = z[..., :-1][present] if z.shape[-1] > 1 else None
        if latents is not None:
            latents = latents.reshape(-1, *self._event[1].shape[1:])
        each = self.simulator.log_joint(theta[run], x[present], latents, None if design is None else design[run])
        return self._sum(each, run, len(theta)) + self._poisson(theta, design, present.sum(1))

    def log_likelihood(
        self, theta: Tensor, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Tensor:
        """Exact log p(run | theta, design), theta (*, D), x (*, n_max, ...), as (*).

        `n_events` (*) says how many events of x are real; it is needed where their number is random, and is n of the
        design by default where n is a function.
        """
        return self.observe(x, design, n_events=n_events)(theta)

    def observe(self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None) -> LogLikelihood:
        """Look once: theta (*, D) -> exact log p(run | theta, design) (*); arguments as in `log_likelihood`."""
        return self.observe_with(self.simulator, x, design, n_events=n_events)

    def observe_with(
        self, estimator: Any, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> LogLikelihood:
        """What an estimator of one event says about runs x (*, n_max, ...): theta (*, D) -> log p(run | theta), (*).

        The sum of its f over the events, and the Poisson term where their number is random. Arguments as in
        `log_likelihood`.

        Raises:
            InputError: for x of another shape, more events than it has room for, or none told where they must be.
        """
        if n_events is None:
            if self.luminosity is not None:
                raise InputError("n_events is needed: the number of events is random, and zero-padding hides it.")
            n_events = self._known(design)
        run, most = (self.n_max, *self.x_event), max([1, *n_events.flatten().tolist()])
        axis = x.ndim - len(run)
        if x.shape[max(axis, 0) :] != run or most > self.n_max:
            expected = f"(*, {', '.join(map(str, run))}) and no more events"
            raise InputError(f"x has shape {tuple(x.shape)}, with up to {most} events: expected {expected}.")
        present = torch.arange(most, device=x.device) < n_events[..., None]
        full = bool(present.all())
        look = estimator.observe(x.narrow(axis, 0, most), None if design is None else design[..., None, :])

        def log_likelihood(theta: Tensor) -> Tensor:
            each = torch.broadcast_tensors(look(theta[..., None, :]), present)[0]
            each = each if full else torch.where(present, each, 0.0)
            return each.sum(-1, dtype=torch.float64) + self._poisson(theta, design, n_events)

        return log_likelihood

    def _poisson(self, theta: Tensor, design: Tensor | None, count: Tensor) -> Tensor:
        if self.luminosity is None:
            return theta.new_zeros(())
        mean = self.mean_events(theta, design)
        return count * torch.log(mean) - mean

    @staticmethod
    def _sum(each: Tensor, run: Tensor, rows: int) -> Tensor:
        return each.new_zeros(rows).index_add(0, run, each)

    @cached_property
    def _event(self) -> tuple[Any, Any]:
        """One event, whose shapes are what matters: x (1, ...) and z (1, ...) or `None`.

        Its design is the lowest corner, which is allowed where designs must be in order.
        """
        with seeded(0):
            theta = self.prior.sample(torch.Size([1])).double()
            corner = torch.tensor([[axis.low for axis in self.designs]], dtype=torch.float64)
            return self.simulator.sample(theta, corner if self.designs else None, torch.Generator())

    def _some_designs(self, rows: int) -> Tensor | None:
        return UniformPrior(self.designs).sample(torch.Size([rows])) if self.designs else None

    def _known(self, design: Tensor | None) -> Tensor:
        """Events in a run, () or at design (*, K) as (*), where their number is not random."""
        if not callable(self.n):
            return torch.full((), self.n_max)
        if design is None:
            raise InputError(f"design is needed: in '{self.name}' n is a function of it. Give design=...")
        return self._fitting(self._function_of(design.reshape(-1, design.shape[-1]))).reshape(design.shape[:-1])

    def _function_of(self, design: Tensor) -> Tensor:
        count = torch.as_tensor(self.n(design.to(torch.float64)))  # type: ignore[misc, operator]
        if count.shape != design.shape[:1] or bool(((count < 0) | (count != count.round())).any()):
            raise InputError(
                f"n: the function returned shape {tuple(count.shape)} with {count.flatten()[:5].tolist()}, expected "
                f"whole numbers from 0 up, {tuple(design.shape[:1])} for design {tuple(design.shape)}. Round them."
            )
        return count.long()

    def _fitting(self, count: Tensor) -> Tensor:
        if bool((count > self.n_max).any()):
            raise SimulatorError(f"a run has {int(count.max())} events, more than n_max = {self.n_max}. Raise n_max.")
        return count

    def _lattice(self) -> Tensor:
        """Designs (R, K) that fill their ranges evenly, ends and middles among them."""
        ends = torch.tensor([[axis.low, axis.high] for axis in self.designs], dtype=torch.float64)
        if len(ends) > _HALVINGS or not bool(ends.isfinite().all()):
            raise InputError(
                f"n_max is needed: with {len(ends)} designs from {ends[:, 0].tolist()} to {ends[:, 1].tolist()} the "
                f"largest n cannot be found; that takes finite ranges, of {_HALVINGS} designs at most. Give n_max=..."
            )
        places = 2 ** (_HALVINGS // len(ends)) + 1
        lines = [torch.linspace(low, high, places, dtype=torch.float64) for low, high in ends.tolist()]
        whole = torch.tensor([axis.integer for axis in self.designs])
        design = torch.cartesian_prod(*lines).reshape(-1, len(ends))
        return torch.where(whole, design.round(), design)

    def _room(self) -> int:
        if callable(self.n):
            return max(1, int(self._function_of(self._lattice()).max()))
        with seeded(0):
            theta = self.prior.sample(torch.Size([_TRIALS])).double()
            largest = 1.2 * float(self.mean_events(theta, self._some_designs(_TRIALS)).max())
        return math.ceil(largest + 6.5 * math.sqrt(largest) + 10)


class RunLikelihood:
    """An estimator of one event, as one of runs of them: `infer`, `limits` and `diagnose` read it like any other.

    Args:
        events: what a run is.
        estimator: of one event of `events.simulator`.

    Example:
        >>> from sbi_core.simulators import GaltonBoard
        >>> board = GaltonBoard()
        >>> runs = RunLikelihood(Events(board, 3), board)
        >>> round(float(runs.log_likelihood(torch.tensor([-0.5]).double(), torch.full((3, 1), 12.0))), 3)
        -7.832
    """

    categories: int | None = None

    def __init__(self, events: Events, estimator: Any) -> None:
        self.events = events
        self.estimator = estimator
        self.parameters = getattr(estimator, "axes", None) or estimator.parameters
        self.designs = events.designs
        self.x_shape = (events.n_max, *events.x_event)
        self.n_max = events.n_max
        self.needs_n_events = events.needs_n_events

    @property
    def trained(self) -> bool:
        """Whether the estimator is."""
        return bool(getattr(self.estimator, "trained", True))

    @property
    def members(self) -> "list[RunLikelihood]":
        """Those of an ensemble, each of runs: what is mixed are their posteriors."""
        return [RunLikelihood(self.events, member) for member in getattr(self.estimator, "members", ())]

    @property
    def caveat(self) -> str:
        """Where the estimator can be believed; empty if it says nothing."""
        return getattr(self.estimator, "caveat", "")

    def observe(self, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None) -> LogLikelihood:
        """Look at runs x (*, n_max, ...) once: theta (*, D) -> log p(run | theta, design) in nats, (*)."""
        return self.events.observe_with(self.estimator, x, design, n_events=n_events)

    def log_likelihood(
        self, theta: Tensor, x: Tensor, design: Tensor | None = None, *, n_events: Tensor | None = None
    ) -> Tensor:
        """log p(run | theta, design) in nats, up to a term without theta; theta (*, D), x (*, n_max, ...), as (*)."""
        return self.observe(x, design, n_events=n_events)(theta)
