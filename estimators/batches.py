"""From rows to what losses read: contrasts, joint ratios and joint scores."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.errors import InputError, MissingGold
from sbi_core.estimators.losses import Batch, Loss
from sbi_core.gold import joint_score, log_joint
from sbi_core.gold_check import GoldCheck, check_gold
from sbi_core.parameters import names
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

MIN_ROWS = 20
"""Fewer simulations than this are refused."""

_NAMES = {"joint_log_ratio": "a joint log ratio", "joint_score": "a joint score", "theta_alt": "contrasts"}


@dataclass(frozen=True)
class Source:
    """Rows from which batches are made; `batch()` draws fresh contrasts where it can.

    Attributes:
        rows: N usable rows.
        wanted: columns that the loss reads.
        contrasts: contrasts per row, C.
        simulator: where joint ratios come from; `None` where stored contrasts must do.
        here: log p(x, z | theta) of each row at its own theta, (N,).
        pool: theta to draw contrasts from where the proposal is unknown, (M, D).
    """

    rows: Simulations
    wanted: tuple[str, ...]
    contrasts: int
    simulator: Simulator | None
    here: Tensor | None
    pool: Tensor
    score_scale: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, index: Tensor) -> "Source":
        """Some of the rows (m,), with contrasts and score scale from them alone."""
        rows = self.rows[index]
        scale = None if rows.joint_score is None else rows.joint_score.square().mean(0).sqrt().clamp(min=1e-300)
        here = None if self.here is None else self.here[index]
        return replace(self, rows=rows, here=here, pool=rows.theta, score_scale=scale)

    def batch(self) -> Batch:
        """All rows, with fresh contrasts; torch's global random state."""
        rows = self.rows
        alt, log_ratio = rows.theta_alt, rows.joint_log_ratio
        if "theta_alt" in self.wanted and (self.simulator is not None or alt is None):
            alt = self._draw()
            log_ratio = None
            if "joint_log_ratio" in self.wanted:
                assert self.simulator is not None and self.here is not None  # `prepare` made sure
                log_ratio = torch.stack([self.here - self._log_joint(alt[:, k]) for k in range(self.contrasts)], 1)
                if log_ratio.isnan().any():
                    raise InputError("joint_log_ratio is NaN: log_joint is infinite or NaN at a row's own theta.")
        score = rows.joint_score if "joint_score" in self.wanted else None
        return Batch(rows.theta, rows.x, rows.design, alt, log_ratio, score, self.score_scale)

    def _draw(self) -> Tensor:
        shape = torch.Size([len(self.rows), self.contrasts])
        proposal = self.rows.info.proposal
        if isinstance(proposal, Distribution):
            return proposal.sample(shape).to(torch.float64)
        return self.pool[torch.randint(len(self.pool), shape)]

    def _log_joint(self, theta: Tensor) -> Tensor:
        assert self.simulator is not None
        with torch.no_grad():
            return log_joint(self.simulator, self.rows, theta)


def check_rows(rows: Simulations, invalid: str) -> tuple[Simulations, list[str]]:
    """Return the usable rows, and what a reader should know about the others.

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
        if bool((rows.theta[:, k] == rows.theta[0, k]).all()):
            raise InputError(f"theta column {k} ('{name}') is constant at {float(rows.theta[0, k])}: nothing to learn.")
    return rows, flags


def prepare(
    loss: Loss, rows: Simulations, simulator: Simulator | None, *, contrasts: int, check: bool, seed: int
) -> tuple[Source, GoldCheck | None]:
    """Find what the loss needs, or say by name what is missing; test gold before it is believed."""
    function = loss.func if isinstance(loss, partial) else loss
    wanted: tuple[str, ...] = getattr(function, "needs", ("theta_alt",))
    live = simulator if simulator is not None and simulator.has_gold and rows.z is not None else None
    missing = [
        column
        for column in wanted
        if column in ("joint_log_ratio", "joint_score") and getattr(rows, column) is None and live is None
    ]
    name = getattr(function, "__name__", "this loss")
    if missing:
        needed = " and ".join(_NAMES[column] for column in missing)
        if simulator is None:
            why, cure = "neither the simulations nor a simulator give it", "pass fit(simulator=...)"
        elif not simulator.has_gold:
            why, cure = f"simulator '{simulator.name}' has no log_joint", "give the simulator a log_joint"
        else:
            why, cure = "the simulations were stored without z", "simulate again, keeping z"
        raise MissingGold(f"{name} needs {needed}, and {why}. Use loss=carl, or {cure}.")
    uses_gold = "joint_log_ratio" in wanted or "joint_score" in wanted
    report = None
    if uses_gold and check:
        report = check_gold(live, rows, seed=seed)
        report.raise_if_failed()
    if "joint_score" in wanted and rows.joint_score is None:
        assert live is not None
        rows = replace(rows, joint_score=joint_score(live, rows))
    here = None
    if live is not None and "joint_log_ratio" in wanted:
        with torch.no_grad():
            here = log_joint(live, rows, rows.theta)
    return Source(rows, wanted, contrasts, live, here, rows.theta, None), report
