"""One run of a Pyro program: what it draws, and the densities of the draws."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, transform_to

from sbi_core.errors import SimulatorError


class Draw(NamedTuple):
    """What a program did at one site, taken down at once: a program may change its tensors in place afterwards.

    Attributes:
        fn: the distribution, expanded by the plates around it.
        value: what was drawn or computed, without a gradient.
        computed: whether the site is a `pyro.deterministic`.
        counted: which numbers of the value count in log p, a bool of its shape; `None` if nothing is masked.
        log_p: of the value, 0 where masked, in the batch shape; `None` unless it was asked for.
        inside: whether the distribution allows the value, or it is masked; broadcasts to the batch shape.
        bounds: ends of the support, where it states them; each broadcasts to the value.
    """

    fn: Any
    value: Tensor
    computed: bool
    counted: Tensor | None = None
    log_p: Tensor | None = None
    inside: Tensor | None = None
    bounds: tuple[Tensor, ...] = ()


Draws = dict[str, Draw]

DENSITIES, SUPPORTS, DRAWN = 1, 2, 3
"""What is taken down at each site beside the value; with `DRAWN` masked draws are kept as they were given."""


class Recorder(Messenger):
    """Records every site of a program in order, puts given values in place of draws, and refuses what is no draw."""

    def __init__(self, values: Mapping[str, Tensor], depth: int) -> None:
        super().__init__()
        self.values = values
        self.depth = depth
        self.draws: Draws = {}

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        raise SimulatorError(
            f"pyro.param '{msg['name']}' is a number that training moves, and gold needs a program that stays. Write "
            "it as a constant tensor, or make it one of the parameters."
        )

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if type(msg["fn"]).__name__ == "_Subsample":
            size, taken = msg["fn"].size, msg["fn"].subsample_size if msg["value"] is None else len(msg["value"])
            if taken not in (None, size):
                text = f"plate '{msg['name']}' takes a subsample of {taken} of {size}, which scales log p."
                raise SimulatorError(f"{text} Use the whole plate.")
        elif not isinstance(msg["fn"], TorchDistributionMixin):
            raise SimulatorError(
                f"site '{msg['name']}' draws from {type(msg['fn']).__name__}, expected one of pyro.distributions, "
                "whose log_prob gold is read from."
            )
        elif msg["name"] in self.values and not msg["is_observed"]:
            value = self.values[msg["name"]]
            counted = None if self.depth == DRAWN else _counted(msg["fn"], msg["mask"], value)
            msg["value"] = value if counted is None else torch.where(counted, value, _possible(msg["fn"], value))

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        name, reparametrised = msg["name"], msg["is_observed"] and getattr(msg["fn"], "_mask", None) is False
        computed = bool(msg["infer"].get("_deterministic")) or reparametrised
        if type(msg["fn"]).__name__ == "_Subsample":
            return
        if name in self.draws:
            raise SimulatorError(f"site '{name}' is there twice. Give each its own name: f'{name}_{{k}}' in a loop.")
        value = msg["value"].detach()
        if computed:
            self.draws[name] = Draw(msg["fn"], value.clone(), computed)
            return
        _refuse(name, msg)
        msg["value"] = value.clone()  # a reparametrised draw would carry theta into what is drawn later
        draw = Draw(msg["fn"], value, computed, _counted(msg["fn"], msg["mask"], value))
        if self.depth >= DENSITIES:
            log_p = msg["fn"].log_prob(value)
            log_p = log_p if msg["mask"] is None else torch.where(torch.as_tensor(msg["mask"]), log_p, 0.0)
            draw = draw._replace(log_p=log_p)
        if self.depth >= SUPPORTS:
            inside = _inside(msg["fn"], value)
            inside = inside if msg["mask"] is None else inside | ~torch.as_tensor(msg["mask"])
            draw = draw._replace(inside=inside, bounds=_bounds(msg["fn"]))
        self.draws[name] = draw


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
    kinds = [type(part).__name__ for part in chain(msg["fn"])]
    if any(kind.startswith("Relaxed") and kind.endswith("StraightThrough") for kind in kinds):
        raise SimulatorError(
            f"site '{name}' draws from {type(msg['fn']).__name__}, which rounds its value and forgets what it was, so "
            "it has no density. Draw from the same without StraightThrough, or from Bernoulli or OneHotCategorical."
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


def trace(
    model: Callable[..., Any], arguments: Sequence[Tensor], values: Mapping[str, Tensor] | None = None, depth: int = 0
) -> Draws:
    """Run a program once, on copies; sites named in `values` take these instead of drawing."""
    with Recorder(values or {}, depth) as recorder:
        model(*(argument.clone() for argument in arguments))
    return recorder.draws


def values_of(draws: Draws) -> dict[str, Tensor]:
    """What was drawn, by site."""
    return {name: draw.value for name, draw in draws.items() if not draw.computed}


@contextmanager
def unvalidated() -> Iterator[None]:
    """Without checks of arguments and values: what is impossible is for log p to say."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def log_density(draw: Draw, axis: int | None) -> Tensor:
    """log p of a draw, summed over all but the row axis: (M,), or (1,) without a row axis; float64."""
    assert draw.log_p is not None  # as it was asked for
    value = draw.log_p.to(torch.float64)
    if axis is None:
        return value.sum().reshape(1)
    others = [k for k in range(value.ndim) if k != axis]
    return value.sum(others) if others else value


def _counted(fn: Any, mask: Any, value: Tensor) -> Tensor | None:
    levels = [(mask, fn.event_dim)]
    levels += [(getattr(part, "_mask", None), len(part.event_shape)) for part in chain(fn)]
    found = None
    for some, width in levels:
        if some is not None:
            which = torch.as_tensor(some)
            which = which.reshape(which.shape + (1,) * width).expand_as(value)
            found = which.clone() if found is None else found & which
    return found


def without_masked(draw: Draw) -> Tensor:
    """The value of a draw, 0 where it is masked: what is not counted must not be told either."""
    return draw.value if draw.counted is None else torch.where(draw.counted, draw.value, 0)


def _possible(fn: Any, value: Tensor) -> Tensor:
    """Something a distribution allows, like a value, for where it is masked: its slope must not be 0 times infinity."""
    if isinstance(fn, TransformedDistribution):
        shape = value.shape
        for transform in reversed(fn.transforms):
            shape = transform.inverse_shape(shape)
        found = _possible(fn.base_dist, value.new_zeros(shape))
        for transform in fn.transforms:
            found = transform(found)
        return found.detach()
    if hasattr(fn, "base_dist"):
        return _possible(fn.base_dist, value)
    try:
        support: Any = fn.support
    except NotImplementedError:
        return torch.zeros_like(value)
    while support is not None:
        try:
            transform = transform_to(support)
            return transform(torch.zeros(transform.inverse_shape(value.shape)).to(value)).detach().to(value)
        except NotImplementedError:  # not for whole numbers, of which 0 will do, nor for mixtures
            support = getattr(support, "base_constraint", None)
    return torch.zeros_like(value)


def _bounds(fn: Any) -> tuple[Tensor, ...]:
    try:
        support: Any = fn.support
    except NotImplementedError:
        return ()
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    found = (getattr(support, end, None) for end in ("lower_bound", "upper_bound"))
    ends = (torch.as_tensor(end, dtype=torch.float64).clone() for end in found if end is not None)
    return tuple(end.reshape(end.shape + (1,) * support.event_dim) for end in ends)


def _inside(fn: Any, value: Tensor) -> Tensor:
    """Which draws lie in the support of their distribution; masked ones always do."""
    if isinstance(fn, TransformedDistribution):  # its own support forgets what it was made of
        for transform in reversed(fn.transforms):
            value = transform.inv(value)
    base = getattr(fn, "base_dist", None)
    if base is None:
        try:
            return torch.as_tensor(fn.support.check(value))
        except (NotImplementedError, ValueError):  # a support that depends on what is not known
            return torch.ones(fn.batch_shape, dtype=torch.bool)
    found = _inside(base, value)
    found = found if getattr(fn, "_mask", None) is None else found | ~torch.as_tensor(fn._mask)
    return found.flatten(len(fn.batch_shape)).all(-1) if found.ndim > len(fn.batch_shape) else found
