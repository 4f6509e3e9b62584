"""From rows to what losses read: contrasts, joint ratios and joint scores."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.errors import InputError, MissingGold
from sbi_core.estimators.losses import LARGEST_LOG_RATIO, Batch, Loss, columns_of, function_of, name_of
from sbi_core.estimators.reference import at_reference
from sbi_core.estimators.scaling import ScoreScale
from sbi_core.gold import joint_score, log_joint
from sbi_core.gold_check import GoldCheck, check_gold
from sbi_core.parameters import names
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

MIN_ROWS = 20
"""Fewer simulations than this are refused."""

CHECKED = 100_000
"""Rows whose gold is checked, at most."""

_NAMES = {"joint_log_ratio": "a joint log ratio", "joint_score": "a joint score", "theta_alt": "contrasts"}


@dataclass
class Source:
    """Rows from which batches are made; `batch()` draws fresh contrasts where it can.

    Where the simulator gives joint ratios, a visit also draws again which of the row's 1 + C thetas is its own, with
    probability proportional to p(x, z | theta). Given the set, that is the probability that each of them made (x, z),
    so rows stay distributed as theta ~ proposal, (x, z) ~ p(. | theta), and tuples stay exchangeable; but over the
    epochs a row teaches about every theta that could have made it, not about the one that happened to.

    Attributes:
        rows: N usable rows.
        wanted: columns that the loss reads.
        contrasts: contrasts per row, C.
        simulator: where joint ratios come from; `None` where stored contrasts must do.
        theta: each row's own theta at the latest visit, (N, D).
        here: log p(x, z | theta) there, (N,).
        score_scale: unit of the score term.
        own_scale: whether it was measured on these rows.
        clips: whether the loss clips joint ratios.
        clipped: most rows at one visit with a joint ratio that was clipped.
        weight: of each row (N,), where all stand for one theta and were simulated elsewhere (see `at_reference`).
        flags: what a reader should know about the weights.
    """

    rows: Simulations
    wanted: tuple[str, ...]
    contrasts: int
    simulator: Simulator | None
    theta: Tensor
    here: Tensor | None
    score_scale: ScoreScale | None = None
    own_scale: bool = True
    clips: bool = False
    clipped: int = 0
    weight: Tensor | None = None
    flags: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, index: Tensor | slice, scale: ScoreScale | None = None) -> "Source":
        """Some of the rows (m,), with a score scale from them alone unless one is given."""
        rows = self.rows[index]
        own = scale is None
        here, weight = (None if value is None else value[index] for value in (self.here, self.weight))
        if own and rows.joint_score is not None:
            scale = ScoreScale.of(rows.theta, rows.joint_score, weight)
        return replace(self, rows=rows, theta=rows.theta, here=here, weight=weight, score_scale=scale, own_scale=own)

    @property
    def draws(self) -> bool:
        """Whether two batches differ."""
        return self.here is not None or ("theta_alt" in self.wanted and self.rows.theta_alt is None)

    def steps(self, batch_size: int) -> int:
        """Batches in one pass."""
        return math.ceil(len(self) / batch_size)

    def parts(self) -> Iterator["Source"]:
        """One pass over all rows: they are all in memory."""
        yield self

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep of the visits so far."""
        return {"theta": self.theta} | ({} if self.here is None else {"here": self.here})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.theta, self.here = state["theta"], state.get("here")

    def batch(self) -> Batch:
        """All rows, with fresh contrasts; reads torch's global random state."""
        rows, theta, alt, log_ratio = self.rows, self.theta, self.rows.theta_alt, self.rows.joint_log_ratio
        score = rows.joint_score if "joint_score" in self.wanted else None
        if self.here is not None or ("theta_alt" in self.wanted and (self.simulator is not None or alt is None)):
            alt, log_ratio = self._draw(), None
        if self.here is not None:
            assert alt is not None and self.simulator is not None  # `prepare` made sure
            theta, alt, log_ratio = self._exchange(alt)
            if score is not None:
                score = joint_score(self.simulator, rows, theta)
        if "theta_alt" not in self.wanted:
            alt, log_ratio = None, None
        if self.clips and log_ratio is not None:
            self.clipped = max(self.clipped, int((-log_ratio > LARGEST_LOG_RATIO).any(1).sum()))
        batch = Batch(theta, rows.x, rows.design, alt, log_ratio, score, n_events=rows.n_events)
        if score is None or self.score_scale is None:
            return batch
        weight = self.score_scale.weight(theta, own=self.own_scale)
        if self.weight is not None:
            weight = weight * self.weight
        return replace(batch, score_weight=weight, whitening=self.score_scale.whitening)

    def _draw(self) -> Tensor:
        shape = torch.Size([len(self.rows), self.contrasts])
        proposal = self.rows.info.proposal
        if isinstance(proposal, Distribution):
            return proposal.sample(shape).to(torch.float64)
        return self.rows.theta[torch.randint(len(self.rows), shape)]

    def _exchange(self, alt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Own theta (N, D), contrasts (N, C, D) and log ratios (N, C) after the labels were drawn again."""
        assert self.simulator is not None and self.here is not None  # `prepare` made sure
        with torch.no_grad():
            there = [log_joint(self.simulator, self.rows, alt[:, k]) for k in range(alt.shape[1])]
        value = torch.stack([self.here, *there], 1)
        if value.isnan().any() or not torch.isfinite(self.here).all():
            raise InputError("log_joint is NaN, or not finite at a row's own theta.")
        own = torch.multinomial(torch.softmax(value, 1), 1)
        order = torch.arange(value.shape[1]).repeat(len(value), 1)
        order = torch.where(order == own, 0, order)
        order[:, :1] = own
        value = value.gather(1, order)
        together = torch.cat([self.theta[:, None], alt], 1)
        together = together.gather(1, order[..., None].expand_as(together))
        self.theta, self.here = together[:, 0], value[:, 0]
        return self.theta, together[:, 1:], value[:, :1] - value[:, 1:]


def check_rows(rows: Simulations, invalid: str, *, spread: bool = True) -> tuple[Simulations, list[str]]:
    """Return the usable rows, and what a reader should know about the others; `spread` says that theta must vary.

    Raises:
        InputError: for too few rows, rows that are not finite (unless `invalid` is "drop"), or theta without spread.
    """
    if invalid not in ("error", "drop"):
        raise InputError(f"invalid = {invalid!r}, expected 'error' or 'drop'.")
    if len(rows) < MIN_ROWS:
        raise InputError(f"simulations: {len(rows)} rows, expected at least {MIN_ROWS}.")
    valid = int(rows.valid.sum())
    flags = []
    if valid < len(rows):
        first = rows.row[~rows.valid][:5].tolist()
        lost = f"x is not finite (NaN or inf) in {len(rows) - valid} of {len(rows)} rows"
        count = f"{lost}, {valid} valid (first rows {first})"
        if valid < MIN_ROWS:
            raise InputError(f"{count}: expected at least {MIN_ROWS} valid rows.")
        if invalid == "error":
            raise InputError(f"{count}. Choose the policy invalid='drop' to train without them.")
        flags.append(f"{count}; they were left out")
        rows = rows[rows.valid]
    for k, name in enumerate(names(rows.info.parameters)):
        if spread and bool((rows.theta[:, k] == rows.theta[0, k]).all()):
            raise InputError(f"theta column {k} ('{name}') is constant at {float(rows.theta[0, k])}: nothing to learn.")
    return rows, flags


def prepare(
    loss: Loss,
    rows: Simulations,
    simulator: Simulator | None,
    *,
    contrasts: int,
    check: bool = False,
    seed: int,
    theta_ref: Tensor | None = None,
) -> tuple[Source, GoldCheck | None]:
    """Find what the loss needs, or say by name what is missing; test gold before it is believed.

    With `theta_ref` (D,) the rows stand for that theta, weighted where they were simulated elsewhere.
    """
    function = function_of(loss)
    wanted = columns_of(loss)
    clips: bool = getattr(function, "clips", False)
    live = simulator if simulator is not None and simulator.has_gold and rows.z is not None else None
    missing = [
        column
        for column in wanted
        if column in ("joint_log_ratio", "joint_score") and getattr(rows, column) is None and live is None
    ]
    name = name_of(loss)
    if missing:
        if simulator is None:
            why, cure = "neither the simulations nor a simulator give it", "pass fit(simulator=...)"
        elif not simulator.has_gold:
            why, cure = f"simulator '{simulator.name}' has no log_joint", "give the simulator a log_joint"
        else:
            why, cure = "the simulations were stored without z", "simulate again, keeping z"
        raise MissingGold(f"{name} needs {_NAMES[missing[-1]]}, and {why}. Use loss=carl, or {cure}.")
    uses_gold = "joint_log_ratio" in wanted or "joint_score" in wanted
    report = None
    if uses_gold and check:
        report = check_gold(live, rows[:CHECKED], seed=seed)
        report.raise_if_failed()
    if theta_ref is not None:
        rows, weight, flags = at_reference(rows, live, theta_ref, seed=seed)
        source = Source(rows, wanted, contrasts, None, rows.theta, None, clips=clips, weight=weight, flags=tuple(flags))
        return source, report
    if "joint_score" in wanted and rows.joint_score is None:
        assert live is not None
        rows = replace(rows, joint_score=joint_score(live, rows))
    here = None
    if live is not None and uses_gold:
        with torch.no_grad():
            here = log_joint(live, rows, rows.theta)
    return Source(rows, wanted, contrasts, live, rows.theta, here, clips=clips), report
