"""Simulations at chosen thetas and designs, with what is needed to learn from them rightly."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.columns import to_column
from sbi_core.design.choice import as_candidates
from sbi_core.design.explore import Explored
from sbi_core.errors import InputError
from sbi_core.estimators.losses import Loss, columns_of
from sbi_core.gold import joint_log_ratio, joint_score
from sbi_core.seeding import derived_seed, seeded
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

CONTRASTS = 24
"""Kept with each row where theta is chosen together with the design."""

CHOOSE, CHOSEN, PRIOR = 0, 1, 2
"""Seeds of a round: which thetas, their simulations, and those of the prior."""


class Labeller:
    """Simulates rows of one acquisition, and remembers where each came from.

    Losses that compare thetas need contrasts that could have been the row's own theta, given its design; others teach
    f a term of their own. Where theta is chosen alone, the thetas of all rows are such contrasts, and `fit` draws from
    them. Where theta is chosen together with the design (`jointly`) they are not: p(theta | design) is not the mean
    over designs. Then each row keeps thetas, drawn with its own from one density at that design, and joint
    ratios and scores in place of the latents, from which `fit` would draw others.

    Args:
        simulator: what is run.
        prior: of theta.
        loss: says which columns are needed.
        designs: density of the design, several (C, K), or `None`.
        jointly: whether designs are chosen.
        seed: fixes all.
        workers: processes.
        contrasts: how many thetas a row keeps where designs are chosen; `CONTRASTS` by default.
    """

    def __init__(
        self,
        simulator: Simulator,
        prior: Distribution,
        loss: Loss,
        designs: Any,
        jointly: bool,
        seed: int,
        workers: int,
        contrasts: int | None = None,
    ) -> None:
        if designs is not None and not simulator.designs:
            raise InputError(f"designs are given, but simulator '{simulator.name}' has none. Leave them out.")
        if designs is not None and not isinstance(designs, Distribution):
            rows = to_column("designs", designs)
            one = rows.ndim == 1 and len(simulator.designs) > 1
            designs = as_candidates(rows[None] if one else rows, simulator.designs, "designs")
        self.simulator, self.prior, self.designs, self.jointly = simulator, prior, designs, jointly
        self.needs = columns_of(loss)
        self.seed, self.workers, self.contrasts = seed, workers, contrasts or CONTRASTS
        self.parts: list[tuple[int, bool, Simulations]] = []

    def add_of_prior(self, n: int, number: int) -> None:
        """Simulate n draws of the prior in a round."""
        seed = derived_seed(self.seed, number, PRIOR)
        with seeded(derived_seed(seed, 0)):
            alt = self.prior.sample(torch.Size([n, self.contrasts])).double()
            design = self._dealt(n)
        rows = self._simulate(n, self.prior, design, seed)
        self._keep(rows, alt, number, True)

    def add_chosen(self, explored: Explored, exponent: float, n: int, number: int) -> None:
        """Simulate n rows at thetas, and designs, where there is disagreement."""
        theta, alt, design = self._choose(explored, exponent, n, derived_seed(self.seed, number, CHOOSE))
        rows = self._simulate(n, theta, design, derived_seed(self.seed, number, CHOSEN))
        self._keep(rows, alt, number, False)

    def all_rows(self) -> Simulations:
        """All rows, in the order of their making."""
        parts = [rows for *_, rows in self.parts]
        rows, asked = Simulations.concat(parts), [part.info.design for part in parts]
        return rows if all(one == asked[0] for one in asked) else replace(rows, info=replace(rows.info, design=None))

    def seen(self) -> Simulations:
        """Usable rows whose thetas are draws of the prior, and designs as they were asked for."""
        rows = Simulations.concat([rows for _, plain, rows in self.parts if plain])
        return rows[rows.valid]

    def origin(self) -> tuple[Tensor, Tensor]:
        """The round of each row, and whether its theta is a draw of the prior, (N,) each."""
        count = torch.tensor([len(rows) for *_, rows in self.parts])
        number, plain = (torch.tensor([part[k] for part in self.parts]) for k in (0, 1))
        return number.repeat_interleave(count), plain.repeat_interleave(count)

    def _choose(self, explored: Explored, exponent: float, n: int, seed: int) -> tuple[Tensor, Tensor, Any]:
        """Theta (n, D), contrasts (n, C, D), and the design."""
        theta = explored.cloud.theta
        with seeded(seed):
            if not self.jointly or explored.rows is None or explored.rows.design is None:
                weight = explored.weight(exponent)
                order = torch.multinomial(weight, n, replacement=int((weight > 0).sum()) < n)
                return theta[order], theta[:0], self._dealt(n)
            apart = explored.weights(exponent)
            which = torch.multinomial(apart.sum(1), n, replacement=True)
            index = torch.multinomial(apart[which], 1 + self.contrasts, replacement=True)
            return theta[index[:, 0]], theta[index[:, 1:]], explored.rows.design[which]

    def _dealt(self, n: int) -> Any:
        """The density of the design, or n of several, all as often, in an order that says nothing about theta."""
        if not isinstance(self.designs, Tensor):
            return self.designs
        many = len(self.designs)
        return self.designs[torch.randperm(many).repeat(-(-n // many))[:n][torch.randperm(n)]]

    def _simulate(self, n: int, proposal: Any, design: Any, seed: int) -> Simulations:
        options: dict[str, Any] = {"seed": seed, "workers": self.workers, "progress": False}
        rows: Simulations = simulate(self.simulator, n, proposal=proposal, design=design, **options)
        return rows

    def _keep(self, rows: Simulations, alt: Tensor, number: int, plain: bool) -> None:
        """Remember rows, with their contrasts where those are needed."""
        if self.jointly and "theta_alt" in self.needs:
            rows = replace(rows, theta_alt=alt)
            if "joint_log_ratio" in self.needs:
                each = [joint_log_ratio(self.simulator, rows, rows.theta, one) for one in alt.unbind(1)]
                rows = replace(rows, joint_log_ratio=torch.stack(each, 1))
            if "joint_score" in self.needs:
                rows = replace(rows, joint_score=joint_score(self.simulator, rows))
            rows = replace(rows, z=None)
        self.parts.append((number, plain, rows))
