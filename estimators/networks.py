"""Networks, built from declared shapes. All are smooth (SiLU), so that gradients in theta are usable scores."""

from collections.abc import Sequence
from itertools import pairwise
from math import nan, prod

import torch
from torch import Tensor, nn

from sbi_core.errors import InputError


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Return a multilayer perceptron with SiLU units (smooth, so that its gradient in theta is a usable score).

    Raises:
        InputError: if a hidden width is no whole number, or below 1.
    """
    check_widths(hidden)
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def residual_mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Return a multilayer perceptron of residual blocks, one to each hidden width: (*, inputs) -> (*, outputs).

    A block is h + W2 silu(W1 silu(h)), the form of He et al., arXiv:1603.05027, without normalisation; where the
    width changes, h passes through a linear map.

    Raises:
        InputError: if there is no hidden width, or one is no whole number, or below 1.
    """
    check_widths(hidden)
    if not hidden:
        raise InputError("hidden is empty: a residual network needs at least one width, such as hidden=(64, 64).")
    blocks = []
    for before, after in pairwise([hidden[0], *hidden]):
        skip = nn.Identity() if before == after else nn.Linear(before, after)
        blocks.append(Residual(skip, nn.SiLU(), nn.Linear(before, after), nn.SiLU(), nn.Linear(after, after)))
    return nn.Sequential(nn.Linear(inputs, hidden[0]), *blocks, nn.SiLU(), nn.Linear(hidden[-1], outputs))


def check_widths(hidden: Sequence[int]) -> None:
    """Raise `InputError` unless the widths of hidden layers are whole numbers of at least 1."""
    if isinstance(hidden, str) or not all(isinstance(width, int) and width >= 1 for width in hidden):
        raise InputError(f"hidden = {hidden!r}: expected whole numbers of at least 1, such as (64, 64).")


def cnn(shape: Sequence[int], width: int, outputs: int) -> nn.Sequential:
    """Return strided convolutions of an image (N, C, H, W) or a series (N, C, T), then an MLP: -> (N, outputs).

    Every convolution halves the sides; the last grid (4 by 4, or 8 steps) is flattened, not averaged, so that
    positions stay readable. Channels double from `width` to four times that. No normalisation: brightness is kept.
    """
    convolution = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    widths, cells = _stages(shape, width)
    layers: list[nn.Module] = []
    for before, after in pairwise([shape[0], *widths]):
        layers += [convolution(before, after, 3, stride=2, padding=1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), mlp(widths[-1] * cells, (4 * width,), outputs))


def resnet(shape: Sequence[int], width: int, outputs: int) -> nn.Sequential:
    """Return a residual network for images (N, C, H, W) -> (N, outputs).

    Pre-activated blocks (He et al., arXiv:1603.05027), one to each halving of the sides. Group normalisation (Wu & He,
    arXiv:1803.08494) acts in the branches only: the path of skips keeps the brightness, and no row sees another.
    """
    widths, cells = _stages(shape, width)
    layers: list[nn.Module] = [nn.Conv2d(shape[0], widths[0], 3, stride=2, padding=1)]
    for before, after in pairwise(widths):
        skip = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(before, after, 1))
        first = [nn.GroupNorm(1, before), nn.SiLU(), nn.Conv2d(before, after, 3, stride=2, padding=1)]
        second = [nn.GroupNorm(1, after), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1)]
        layers.append(Residual(skip, *first, *second))
    return nn.Sequential(*layers, nn.SiLU(), nn.Flatten(), nn.Linear(widths[-1] * cells, outputs))


class Residual(nn.Module):
    """skip(h) + branch(h).

    Args:
        skip: what h passes through beside the branch.
        branch: the layers of the branch.
    """

    def __init__(self, skip: nn.Module, *branch: nn.Module) -> None:
        super().__init__()
        self.skip = skip
        self.branch = nn.Sequential(*branch)

    def forward(self, h: Tensor) -> Tensor:
        """(N, ...) -> (N, ...)."""
        total: Tensor = self.skip(h) + self.branch(h)
        return total


class ChannelsFirst(nn.Module):
    """A series, as convolutions want it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) or (N, T, F) -> (N, F, T)."""
        return x[:, None] if x.ndim == 2 else x.transpose(1, 2)


class Sets(nn.Module):
    """rho(pooled phi(event)), whatever the order of the events and whatever the padding holds.

    Zaheer et al., arXiv:1703.06114, theorem 2; rho also sees log((1 + n) / (1 + n_max)).

    Args:
        n_max: most events in a row.
        inputs: numbers that describe an event, F.
        pool: maps events (N, n_max, W) and which of them are present (N, n_max) to (N, P).
        outputs: width of the output.
    """

    def __init__(self, n_max: int, inputs: int, pool: "Moments | Attention", outputs: int) -> None:
        super().__init__()
        self.n_max = n_max
        self.phi = residual_mlp(inputs, (pool.width,), pool.width)
        self.pool = pool
        self.rho = residual_mlp(pool.outputs + 1, (pool.width,), outputs)

    def forward(self, x: Tensor, n_events: Tensor) -> Tensor:
        """Events x (N, n_max, F), of which the first n_events (N,) count -> (N, outputs)."""
        present = torch.arange(self.n_max, device=x.device) < n_events[:, None]
        x = torch.where(present[..., None], x, 0.0)  # before any arithmetic: 0 times NaN is NaN
        count = torch.log((1.0 + n_events.to(x.dtype)) / (1.0 + self.n_max))
        seen: Tensor = self.rho(torch.cat([self.pool(self.phi(x), present), count[:, None]], -1))
        return seen


class Moments(nn.Module):
    """Mean of the events that are present, and their sum over n_max, so that sums over events are linear in it.

    Args:
        width: numbers that describe an event, W.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.outputs = 2 * width

    def forward(self, events: Tensor, present: Tensor) -> Tensor:
        """(N, n_max, W), (N, n_max) -> (N, 2 W); zero where no event is present."""
        total = torch.where(present[..., None], events, 0.0).sum(1)
        return torch.cat([total / present.sum(1, keepdim=True).clamp(min=1), total / present.shape[1]], -1)


class Attention(nn.Module):
    """Multi-head attention of learned queries to the events (Lee et al., arXiv:1810.00825, section 3.2).

    Args:
        width: numbers that describe an event, W.
        heads: parts into which they are split, each with weights of its own.
        queries: number of learned queries, Q.
    """

    def __init__(self, width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.width = width
        self.outputs = queries * width
        self.queries = nn.Parameter(torch.empty(queries, heads, width // heads))
        self.key = nn.Linear(width, width, bias=False)  # a bias would shift all scores of a query alike
        self.value = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new queries."""
        nn.init.normal_(self.queries)

    def forward(self, events: Tensor, present: Tensor) -> Tensor:
        """(N, n_max, W), (N, n_max) -> (N, Q W); zero where no event is present."""
        key, value = (part(events).unflatten(-1, self.queries.shape[1:]) for part in (self.key, self.value))
        absent = ~present[:, None, None]
        scores = torch.einsum("qhd,nehd->nqhe", self.queries, key) / self.queries.shape[-1] ** 0.5
        weights = scores.masked_fill(absent, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(absent, 0.0)
        return torch.einsum("nqhe,nehd->nqhd", weights, value).flatten(1)


def reset(module: nn.Module) -> None:
    """Redraw all trainable parameters below `module`, from torch's global random state.

    Calls `reset_parameters` of every part, the inner parts first. Frozen parameters (`requires_grad` False, such as
    those of a pretrained embedding) stay as they are.

    Raises:
        InputError: if a parameter was not redrawn; all then have their former values.
    """
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.fill_(nan)  # so that what nobody redraws is seen
        module.apply(_redraw)
        kept = [name for name, p in module.named_parameters() if p.requires_grad and bool(p.isnan().any())]
        for name, p in module.named_parameters():
            if kept or not p.requires_grad:
                p.copy_(before[name])
    if kept:
        raise InputError(
            f"{type(module).__name__}: no reset_parameters() redraws {', '.join(kept)}. Give the module that holds "
            "them a method reset_parameters(), or freeze them with requires_grad_(False)."
        )


def _redraw(part: nn.Module) -> None:
    if any(p.requires_grad for p in part.parameters()):
        # torch's own attention and transformers spell it with an underscore
        getattr(part, "reset_parameters", getattr(part, "_reset_parameters", lambda: None))()


def _stages(shape: Sequence[int], width: int) -> tuple[list[int], int]:
    """Return the channels after each halving of the sides of (C, ...), and the number of cells left."""
    sides, widths = list(shape[1:]), list[int]()
    while not widths or max(sides) > (8 if len(sides) == 1 else 4):
        widths.append(width * min(2 ** len(widths), 4))
        sides = [(side + 1) // 2 for side in sides]
    return widths, prod(sides)
