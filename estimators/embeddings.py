"""Networks that read an observation: scaled x (N, *x_shape) -> (N, features). Theta and design join afterwards.

By name from the declared shape, or a user's own module in one line:
>>> embedding("cnn", (64, 64), features=16, symmetry="dihedral").features
16
>>> as_embedding(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 4)).features
5
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sbi_core.errors import InputError, nearest
from sbi_core.estimators.counts import check_count
from sbi_core.estimators.networks import Attention, ChannelsFirst, Moments, Sets, cnn, mlp, residual_mlp, resnet
from sbi_core.estimators.symmetries import SYMMETRIES, check_copies, check_pooled, check_symmetry, copied


class Embedding(nn.Module):
    """A network averaged over a group's copies of x, hence invariant: (N, *x_shape) -> (N, features), a pass for each.

    With `copies` below the group's size a row passes, in training, as so many copies that are drawn at random.

    Args:
        network: maps x (N, *x_shape) to (N, F); a keyword `n_events` of its forward receives a tensor (N,).
        x_shape: shape of one observation.
        symmetry: a name in `SYMMETRIES`.
        pooled: axes of x along which the network treats all numbers alike, so that they share one scale.
        described: plain data that say how it was built.
        copies: of each row in training; all of the group by default.

    Attributes:
        features: width F of the output.
        mixed_precision: whether products are taken in bfloat16 on a CUDA device; `fit` sets it while it trains.
        takes_n_events: whether the network reads the number of events in each row.
    """

    def __init__(
        self,
        network: nn.Module,
        x_shape: tuple[int, ...],
        symmetry: str = "none",
        pooled: tuple[int, ...] = (),
        described: Mapping[str, Any] | None = None,
        copies: int | None = None,
    ) -> None:
        super().__init__()
        check_pooled(pooled, symmetry, x_shape)
        self.network = network
        self.copies = len(SYMMETRIES[symmetry]) if copies is None else copies
        self.x_shape, self.symmetry, self.pooled = x_shape, symmetry, pooled
        self.described = dict(described or {})
        self.mixed_precision = False
        self.takes_n_events = "n_events" in inspect.signature(network.forward).parameters
        self.features = _features(self)

    def forward(self, x: Tensor, n_events: Tensor | None = None) -> Tensor:
        """Scaled x (N, *x_shape), and events in each row (N,), `None` if all rows are full -> (N, features).

        Raises:
            InputError: if x or n_events has the wrong shape, type or range, or if the network does not read n_events.
        """
        if x.ndim == 0 or x.shape[1:] != self.x_shape:
            raise InputError(f"x has shape {tuple(x.shape)}, expected (N, {', '.join(map(str, self.x_shape))}).")
        rows, options, copies = len(x), {}, self.copies if self.training else len(SYMMETRIES[self.symmetry])
        if self.takes_n_events:
            if n_events is None:
                n_events = torch.full((rows,), self.x_shape[0], device=x.device)
            else:
                check_count(n_events, rows, self.x_shape[0])
            options["n_events"] = n_events.repeat(copies)
        elif n_events is not None:
            name = type(self.network).__name__
            raise InputError(f"n_events is given, and {name} does not read it. Use embedding('sets', x_shape).")
        x = copied(x, self.symmetry, copies)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.mixed_precision and x.is_cuda):
            seen: Tensor = self.network(x, **options)
        seen = seen.to(x.dtype) if self.mixed_precision else seen
        return seen.unflatten(0, (copies, rows)).mean(0) if copies > 1 else seen


def as_embedding(
    module: nn.Module, x_shape: Sequence[int], *, symmetry: str = "none", pooled: Sequence[int] | None = None
) -> Embedding:
    """Wrap a user's own module, tried on two rows of zeros in evaluation mode; lazy layers find their widths.

    x is scaled before the module sees it, to about unit size. By default each number of x (W,) has a scale of its own;
    the numbers of a row (T, F), or of one in which events are counted, have one for each feature; images (C, H, W) have
    one for each channel, and images (H, W), which x of two axes is if the module holds a `Conv2d` or turns, one in all.

    Args:
        module: maps scaled x (N, *x_shape), float32, to (N, F). If its forward has an argument `n_events`, it receives
            the number of events in each row (N,); x_shape is then (n_max, ...).
        x_shape: shape of one observation.
        symmetry: average over a group of copies of x: "flips", "rotations", "dihedral" or "reversal".
        pooled: axes of x along which all numbers share one scale, where the default does not fit.

    Raises:
        InputError: if the module fails on zeros, its output is not (N, F), or the group does not fit x_shape.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"embedding is {type(module).__name__}, expected an nn.Module or a name in EMBEDDINGS.")
    shape = _checked_shape(x_shape)
    if isinstance(module, Embedding):
        if module.x_shape != shape:
            raise InputError(f"the embedding was built for x_shape = {module.x_shape}, and x has shape {shape}.")
        return module
    check_symmetry(symmetry, shape, tuple(SYMMETRIES))
    axes = _pooled(module, len(shape), symmetry) if pooled is None else _checked_axes(pooled, shape)
    described = {"own": type(module).__name__, "symmetry": symmetry, "pooled": list(axes)}
    return Embedding(module, shape, symmetry, axes, described)


def embedding(
    name: str,
    x_shape: Sequence[int],
    *,
    features: int = 32,
    symmetry: str | None = None,
    copies: int | None = None,
    pooled: Sequence[int] | None = None,
    **options: Any,
) -> Embedding:
    """Build an embedding from the shape of one observation.

    | name | x_shape | options | symmetry |
    |---|---|---|---|
    | mlp, residual | any | hidden=(64, 64) | none |
    | cnn | (H, W) or (C, H, W) | width=16 | none, flips, rotations, dihedral |
    | resnet | (H, W) or (C, H, W) | width=32 | none, flips, rotations, dihedral |
    | sets | (n_max, F) | width=64 | permutation |
    | attention | (n_max, F) | width=64, heads=4, queries=4 | permutation |
    | series | (T,) or (T, F) | width=32 | none, reversal |

    Args:
        name: a name in `EMBEDDINGS`.
        x_shape: shape of one observation.
        features: width of the output.
        symmetry: what leaves the output as it is; by default the first of the list.
        copies: passes of a row in training, as copies drawn at random from the group; by default the whole group.
        pooled: axes of x along which all numbers share one scale, by default those of pixels, events or steps; with
            pooled=() each pixel has its own, which shows the details of images that look alike.
        options: see the table.

    Raises:
        InputError: for an unknown name or option, or a shape that the network cannot read.
    """
    if name not in EMBEDDINGS:
        raise InputError(f"unknown embedding {name!r}: {nearest(name, EMBEDDINGS)}")
    recipe, shape = EMBEDDINGS[name], _checked_shape(x_shape)
    if recipe.axes and len(shape) not in recipe.axes:
        fitting = [other for other, known in EMBEDDINGS.items() if not known.axes or len(shape) in known.axes]
        raise InputError(
            f"embedding '{name}': x_shape = {shape}, expected {recipe.expects}. "
            f"Reshape x in the simulator, or choose one of {', '.join(fitting)}."
        )
    symmetry = recipe.symmetries[0] if symmetry is None else symmetry
    check_symmetry(symmetry, shape, recipe.symmetries)
    _check_options(name, recipe.build, {"features": features, **options})
    group = "none" if symmetry == "permutation" else symmetry
    check_copies(copies, group)
    axes = recipe.pooled if pooled is None else _checked_axes(pooled, shape)
    network = recipe.build(shape, features, **options)
    described = {"name": name, "features": features, "symmetry": symmetry, **options}
    given = {"copies": copies, "pooled": None if pooled is None else list(axes)}
    described |= {key: value for key, value in given.items() if value is not None}
    return Embedding(network, shape, group, axes, described, copies)


def chosen(choice: Any, x_shape: Sequence[int]) -> Embedding:
    """Build what an estimator's argument `embedding` says.

    Args:
        choice: a name in `EMBEDDINGS`, a mapping with `name` and the options of `embedding`, or a user's own module, of
            which a copy is taken.
        x_shape: shape of one observation.

    Raises:
        InputError: for anything else, and wherever `embedding` and `as_embedding` do.
    """
    if isinstance(choice, str):
        return embedding(choice, x_shape)
    if isinstance(choice, Mapping):
        if not isinstance(choice.get("name"), str):
            raise InputError(f"embedding = {dict(choice)}, expected a name in it: {{'name': 'cnn', ...}}.")
        return embedding(choice["name"], x_shape, **{key: value for key, value in choice.items() if key != "name"})
    return as_embedding(copy.deepcopy(choice), x_shape)


def _pooled(module: nn.Module, axes: int, symmetry: str) -> tuple[int, ...]:
    """Axes of x that share one scale if nobody says otherwise."""
    if "n_events" in inspect.signature(module.forward).parameters:
        return (0,)
    if axes == 2:
        convolves = any(isinstance(part, nn.Conv2d | nn.LazyConv2d) for part in module.modules())
        return (0, 1) if convolves or symmetry in ("rotations", "dihedral") else (0,)
    return tuple(range(1, axes))


def _mlp(x_shape: tuple[int, ...], features: int, *, hidden: Sequence[int] = (64, 64)) -> nn.Module:
    return nn.Sequential(nn.Flatten(), mlp(prod(x_shape), hidden, features))


def _residual(x_shape: tuple[int, ...], features: int, *, hidden: Sequence[int] = (64, 64)) -> nn.Module:
    return nn.Sequential(nn.Flatten(), residual_mlp(prod(x_shape), hidden, features))


def _cnn(x_shape: tuple[int, ...], features: int, *, width: int = 16) -> nn.Module:
    return nn.Sequential(_one_channel(x_shape), cnn((1, *x_shape)[-3:], width, features))


def _resnet(x_shape: tuple[int, ...], features: int, *, width: int = 32) -> nn.Module:
    return nn.Sequential(_one_channel(x_shape), resnet((1, *x_shape)[-3:], width, features))


def _series(x_shape: tuple[int, ...], features: int, *, width: int = 32) -> nn.Module:
    return nn.Sequential(ChannelsFirst(), cnn((prod(x_shape[1:]), x_shape[0]), width, features))


def _sets(x_shape: tuple[int, ...], features: int, *, width: int = 64) -> nn.Module:
    return Sets(x_shape[0], x_shape[1], Moments(width), features)


def _attention(
    x_shape: tuple[int, ...], features: int, *, width: int = 64, heads: int = 4, queries: int = 4
) -> nn.Module:
    if width % heads:
        raise InputError(f"embedding 'attention': width = {width} is no multiple of heads = {heads}.")
    return Sets(x_shape[0], x_shape[1], Attention(width, heads, queries), features)


def _one_channel(x_shape: tuple[int, ...]) -> nn.Module:
    return nn.Unflatten(1, (1, x_shape[0])) if len(x_shape) == 2 else nn.Identity()


@dataclass(frozen=True)
class Recipe:
    """How to build an embedding.

    Attributes:
        build: (x_shape, features, **options) -> network.
        expects: the shapes of x that it reads, in words.
        axes: how many axes they have; empty for any.
        symmetries: names of the symmetries on offer, the default first.
        pooled: axes of x along which weights are shared, and so is the scale: what is left are channels or features.
    """

    build: Callable[..., nn.Module]
    expects: str = "any shape"
    axes: tuple[int, ...] = ()
    symmetries: tuple[str, ...] = ("none",)
    pooled: tuple[int, ...] = ()


_IMAGES = ("(H, W) or (C, H, W)", (2, 3), ("none", "flips", "rotations", "dihedral"), (-2, -1))
_EVENTS = ("(n_max, F)", (2,), ("permutation",), (0,))

EMBEDDINGS: dict[str, Recipe] = {
    "mlp": Recipe(_mlp),
    "residual": Recipe(_residual),
    "cnn": Recipe(_cnn, *_IMAGES),
    "resnet": Recipe(_resnet, *_IMAGES),
    "sets": Recipe(_sets, *_EVENTS),
    "attention": Recipe(_attention, *_EVENTS),
    "series": Recipe(_series, "(T,) or (T, F)", (1, 2), ("none", "reversal"), (0,)),
}


def _features(wrapped: Embedding) -> int:
    """Try the network on two rows of zeros, in evaluation mode, and return the width of its output."""
    network, name = wrapped.network, type(wrapped.network).__name__
    modes = [(part, part.training) for part in network.modules()]
    place = next((p.device for p in [*network.parameters(), *network.buffers()]), None)
    try:
        with torch.no_grad():
            network.eval()
            seen = wrapped(torch.zeros(2, *wrapped.x_shape, device=place))
    except Exception as error:
        shape = (2, *wrapped.x_shape)
        raise InputError(f"{name} fails on x of zeros {shape}, float32: {error}. Expected (N, F) from it.") from error
    finally:
        for part, mode in modes:
            part.training = mode
    if not isinstance(seen, Tensor) or seen.ndim != 2 or len(seen) != 2 or not seen.shape[1]:
        got = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
        raise InputError(f"{name} gives {got} for 2 rows, expected (2, F). End it with nn.Flatten() or nn.Linear.")
    return seen.shape[1]


def _checked_shape(x_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(x_shape)
    if not shape or not all(isinstance(side, int) and side > 0 for side in shape):
        raise InputError(f"x_shape = {shape}, expected one or more positive integers, such as (5,).")
    return shape


def _checked_axes(pooled: Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    axes = tuple(pooled)
    if not all(isinstance(axis, int) and -len(shape) <= axis < len(shape) for axis in axes):
        raise InputError(f"pooled = {pooled}, expected axes of x_shape = {shape}, from 0 to {len(shape) - 1}.")
    return axes


def _check_options(name: str, build: Callable[..., nn.Module], options: dict[str, Any]) -> None:
    known = {key: p.default for key, p in inspect.signature(build).parameters.items() if key != "x_shape"}
    for key, value in options.items():
        if key not in known:
            raise InputError(f"embedding '{name}' has no option {key!r}: {nearest(key, known)}")
        several = isinstance(known[key], tuple)
        numbers = value if isinstance(value, list | tuple) else [value]
        if isinstance(value, list | tuple) != several or not all(isinstance(n, int) and n > 0 for n in numbers):
            expected = f"positive integers, such as {known[key]}" if several else "a positive integer"
            raise InputError(f"embedding '{name}': {key} = {value!r}, expected {expected}.")
