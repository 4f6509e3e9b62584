"""One run of a Pyro program: what it draws, the densities of the draws, and where the rows stand in them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from sbi_core.errors import InputError, SimulatorError, nearest


class Draw(NamedTuple):
    """What a program did at one site.

    Attributes:
        fn: the distribution, expanded by the plates around it.
        value: what was drawn, without a gradient; what was computed at a `pyro.deterministic` site.
        mask: of `poutine.mask`; `None`, a bool, or a tensor that broadcasts to the distribution's batch shape.
        computed: whether the site is a `pyro.deterministic`.
    """

    fn: Any
    value: Tensor
    mask: Any
    computed: bool


Draws = dict[str, Draw]


class Recorder(Messenger):
    """Records every site of a program in order, puts given values in place of draws, and refuses what is no draw."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.draws: Draws = {}

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        raise SimulatorError(
            f"pyro.param '{msg['name']}' is a number that training moves, and gold needs a program that stays. Write "
            "it as a constant tensor, or make it one of the parameters."
        )

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if type(msg["fn"]).__name__ == "_Subsample":
            _refuse_subsample(msg)
        elif not isinstance(msg["fn"], TorchDistributionMixin):
            raise SimulatorError(
                f"site '{msg['name']}' draws from {type(msg['fn']).__name__}, expected one of pyro.distributions, "
                "whose log_prob gold is read from."
            )
        elif msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        name, reparametrised = msg["name"], msg["is_observed"] and getattr(msg["fn"], "_mask", None) is False
        computed = bool(msg["infer"].get("_deterministic")) or reparametrised
        if type(msg["fn"]).__name__ == "_Subsample":
            return
        if name in self.draws:
            raise SimulatorError(
                f"site '{name}' is there twice. Give each draw its own name: f'{name}_{{k}}' in a loop."
            )
        if not computed:
            _refuse(name, msg)
            msg["value"] = msg["value"].detach()  # a reparametrised draw would carry theta into what is drawn later
        self.draws[name] = Draw(msg["fn"], msg["value"], msg["mask"], computed)


def _refuse_subsample(msg: dict[str, Any]) -> None:
    size, taken = msg["fn"].size, msg["fn"].subsample_size
    taken = taken if msg["value"] is None else len(msg["value"])
    if taken is not None and taken != size:
        raise SimulatorError(
            f"plate '{msg['name']}' takes a subsample of {taken} of {size}, which scales log p. Use the whole plate."
        )


def _refuse(name: str, msg: dict[str, Any]) -> None:
    """Raise `SimulatorError` for a site that is not drawn from a density."""
    if type(msg["fn"]).__name__ == "Unit":
        raise SimulatorError(
            f"pyro.factor '{name}' leaves log p without its norm, and nothing is drawn from it. Draw from the "
            "distribution that is meant."
        )
    if msg["is_observed"]:
        raise SimulatorError(
            f"site '{name}' has obs=..., and a simulator draws everything. Leave obs out; a value that is only "
            f"computed is pyro.deterministic('{name}', ...)."
        )
    if any(isinstance(part, Delta) for part in chain(msg["fn"])):
        raise SimulatorError(
            f"site '{name}' is a Delta, computed and not drawn: held fixed, it would hide theta from what follows. "
            f"Write pyro.deterministic('{name}', ...), which is computed anew at each theta, or plain Python."
        )
    if isinstance(msg["scale"], Tensor) or msg["scale"] != 1:
        raise SimulatorError(
            f"site '{name}' has its log p scaled (poutine.scale), so it is not the density of what is drawn. Leave "
            "the scale out."
        )


def chain(fn: Any) -> Iterator[Any]:
    """A distribution and those it is built from."""
    while fn is not None:
        yield fn
        fn = getattr(fn, "base_dist", None)


def trace(model: Callable[..., Any], arguments: Sequence[Tensor], values: Mapping[str, Tensor] | None = None) -> Draws:
    """Run a program once; sites named in `values` take these instead of drawing."""
    with Recorder(values or {}) as recorder:
        model(*arguments)
    return recorder.draws


def values_of(draws: Draws) -> dict[str, Tensor]:
    """What was drawn, by site."""
    return {name: draw.value for name, draw in draws.items() if not draw.computed}


@contextmanager
def unvalidated() -> Iterator[None]:
    """Without checks of arguments and values: a replay may leave the prior, and then log p says so."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def log_density(draw: Draw, axis: int | None) -> Tensor:
    """log p of a draw, summed over all but the row axis: (M,), or (1,) without a row axis; float64; 0 if masked."""
    value = draw.fn.log_prob(draw.value)
    if draw.mask is not None and draw.mask is not True:
        value = torch.where(torch.as_tensor(draw.mask), value, 0.0)
    if axis is None:
        return value.to(torch.float64).sum().reshape(1)
    others = [k for k in range(value.ndim) if k != axis]
    value = value.to(torch.float64)
    return value.sum(others) if others else value


def counted(draw: Draw) -> Tensor | None:
    """Which numbers of a draw's value count in log p: a bool of the value's shape, or `None` if nothing is masked."""
    levels = [(draw.mask, draw.fn.event_dim)]
    levels += [(getattr(part, "_mask", None), len(part.event_shape)) for part in chain(draw.fn)]
    found = None
    for mask, width in levels:
        if mask is not None and not draw.computed:
            mask = torch.as_tensor(mask)
            mask = mask.reshape(mask.shape + (1,) * width).expand_as(draw.value)
            found = mask if found is None else found & mask
    return found


def without_masked(draw: Draw, filling: Tensor | float) -> Tensor:
    """The value of a draw, with `filling` where it is masked: what is not counted must not be told either."""
    which = counted(draw)
    return draw.value if which is None else torch.where(which, draw.value, filling)


def inside(draw: Draw) -> Tensor:
    """Which draws lie in the support of their distribution; masked ones always do. Broadcasts to its batch shape."""
    found = _inside(draw.fn, draw.value)
    return found if draw.mask is None else found | ~torch.as_tensor(draw.mask)


def _inside(fn: Any, value: Tensor) -> Tensor:
    if isinstance(fn, TransformedDistribution):  # its own support forgets what it was made of
        for transform in reversed(fn.transforms):
            value = transform.inv(value)
    base = getattr(fn, "base_dist", None)
    if base is None:
        try:
            return torch.as_tensor(fn.support.check(value))
        except NotImplementedError:
            return torch.ones(fn.batch_shape, dtype=torch.bool)
    found = _inside(base, value)
    found = found if getattr(fn, "_mask", None) is None else found | ~torch.as_tensor(fn._mask)
    return found.flatten(len(fn.batch_shape)).all(-1) if found.ndim > len(fn.batch_shape) else found


@dataclass(frozen=True)
class Site:
    """One site of a vectorised program.

    Attributes:
        name: its name.
        axis: which axis of its value the rows are.
        shape: of one row's value.
        dtype: of its value.
        column: "x" or "z".
        computed: whether it is a `pyro.deterministic`.
        distribution: what it draws from.
        filling: what is stored where it is masked, a value that its distribution allows; of one row.
    """

    name: str
    axis: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    column: str
    computed: bool
    distribution: str
    filling: Tensor

    @property
    def numbers(self) -> int:
        """Numbers a row."""
        return math.prod(self.shape)

    def flat(self, draw: Draw) -> Tensor:
        """Its value without what is masked, rows first, all else flattened: (M, numbers)."""
        value = without_masked(draw, self.filling.unsqueeze(self.axis))
        return value.movedim(self.axis, 0).reshape(value.shape[self.axis], self.numbers)

    def unflat(self, rows: Tensor) -> Tensor:
        """The value that `flat` made rows (M, numbers) of, in its own type and order of axes, (..., M, ...)."""
        return rows.reshape(len(rows), *self.shape).movedim(0, self.axis).to(self.dtype)


@dataclass(frozen=True)
class Layout:
    """The sites of a vectorised program that are stored: those of z in the program's order, those of x in that asked.

    Attributes:
        latents: columns of z.
        observed: columns of x.
    """

    latents: tuple[Site, ...]
    observed: tuple[Site, ...]

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one observation: its own if there is one site, flat if there are several."""
        if len(self.observed) == 1:
            return self.observed[0].shape or (1,)
        return (sum(site.numbers for site in self.observed),)

    @property
    def axes(self) -> dict[str, int]:
        """Where the rows stand in each site."""
        return {site.name: site.axis for site in (*self.latents, *self.observed)}

    def columns(self, draws: Draws, rows: int) -> tuple[Tensor, Tensor | None]:
        """x (M, ...) and z (M, Z) of a run; z is `None` if nothing is latent."""
        self.check(draws, rows)
        x = _side_by_side(self.observed, draws).reshape(rows, *self.x_shape)
        return x, _side_by_side(self.latents, draws) if self.latents else None

    def values(self, x: Tensor, z: Tensor | None) -> dict[str, Tensor]:
        """The value of each site that is drawn, from x (M, ...) and z (M, Z)."""
        found: dict[str, Tensor] = {}
        for name, column, sites in (("x", x, self.observed), ("z", z, self.latents)):
            width = sum(site.numbers for site in sites)
            flat = None if column is None else column.flatten(1)
            if sites and (flat is None or flat.shape[1] != width):
                came = "None" if flat is None else f"{flat.shape[1]} numbers a row"
                raise InputError(f"{name} has {came}, expected {width} for the sites {[site.name for site in sites]}.")
            if flat is not None:
                parts = flat.split([site.numbers for site in sites], 1) if sites else ()
                found |= {s.name: s.unflat(part) for s, part in zip(sites, parts, strict=True) if not s.computed}
        return found

    def check(self, draws: Draws, rows: int) -> None:
        """Raise `SimulatorError` unless a run has these sites, in these shapes."""
        want = {s.name: (*s.shape[: s.axis], rows, *s.shape[s.axis :]) for s in (*self.latents, *self.observed)}
        have = {name: tuple(d.value.shape) for name, d in draws.items() if name in want or not d.computed}
        if have != want:
            name = next(name for name in [*want, *have] if have.get(name) != want.get(name))
            raise other_sites(name, have.get(name), want.get(name), rows)

    def __str__(self) -> str:
        """A table of the sites."""
        lines = [f"{'site':24s}{'column':8s}{'numbers':>8s}  distribution"]
        for site in (*self.latents, *self.observed):
            lines.append(f"{site.name:24s}{site.column:8s}{site.numbers:8d}  {site.distribution}")
        return "\n".join(lines)


def _side_by_side(sites: Sequence[Site], draws: Draws) -> Tensor:
    """Values of sites, flat, beside each other; float32 only where all are."""
    parts = [site.flat(draws[site.name]) for site in sites]
    return torch.cat([part if part.is_floating_point() else part.to(torch.float64) for part in parts], 1)


def find_observed(draws: Draws, observed: Sequence[str]) -> None:
    """Raise `SimulatorError` unless the observed sites are there."""
    for name in observed:
        if name not in draws:
            raise SimulatorError(
                f"there is no site '{name}' to observe; {nearest(name, draws)} Draw it with pyro.sample('{name}', "
                "...), or say observed=..."
            )


def other_sites(name: str, have: Any, want: Any, rows: int) -> SimulatorError:
    """What to raise for a site (shape or `None`) that one run has and another not."""
    return SimulatorError(
        f"site '{name}' has shape {have} in a run of {rows} rows, expected {want}: every run needs the same sites. "
        "Draw to the longest loop, under poutine.mask; or say vectorized=False."
    )
