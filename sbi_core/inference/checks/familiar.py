"""What is remembered of the simulated x, so that a strange one is known when it comes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.crowd import KEPT, TESTS, Crowd
from sbi_core.inference.checks.features import features_of, names_of

MOST, NUMBERS = 20_000, 1e7
"""Rows that are looked at, and numbers in them, at most."""

FALSE_ALARM = 1e-3
"""Probability that simulated x are called strange, however many come at once."""

Reader = Callable[[Tensor, Tensor | None], Tensor]
"""x (N, *event) and n_events (N,) -> what an embedding makes of them, (N, F)."""


@dataclass(frozen=True)
class Familiar:
    """The crowd of simulated x, column by column or by what stands for them (see `features_of`), or the labels.

    Attributes:
        state: plain tensors, all there is, so that it is saved like weights are.
    """

    state: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        x: Tensor,
        n_events: Tensor | None = None,
        *,
        categories: int | None = None,
        seen: Reader | None = None,
        fresh: tuple[Tensor, Tensor | None] | None = None,
    ) -> Self:
        """Remember rows x (N, *event), of which n_events (N,) count; of more than 20,000 some that lie evenly.

        Args:
            x: finite.
            n_events: of runs of events.
            categories: x is a class label below this number.
            seen: an embedding, whose view of x is remembered too.
            fresh: x and n_events of rows that the embedding was not trained on; of those it was, it may make more.
        """
        most = max(KEPT, min(MOST, int(NUMBERS / max(1, math.prod(x.shape[1:])))))
        some = torch.linspace(0, len(x) - 1, min(len(x), most)).long()
        x, n_events = x[some].detach().cpu(), None if n_events is None else n_events[some].cpu()
        state = {"event": torch.tensor(x.shape[1:]).long(), "counted": torch.tensor(n_events is not None)}
        state["varies"] = torch.tensor(n_events is not None and bool((n_events < x.shape[1]).any()))
        if categories is not None:
            return cls({**state, "labels": torch.bincount(x.flatten().long(), minlength=categories)})
        state |= _prefixed("x", Crowd.of(features_of(x, x.shape[1:], n_events)))
        if seen is not None:
            others, count = fresh or (x, n_events)
            few = slice(2 * KEPT)
            state |= _prefixed("seen", Crowd.of(_read(seen, others[few], None if count is None else count[few])))
        return cls(state)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one x."""
        return tuple(self.state["event"].tolist())

    @property
    def categories(self) -> int | None:
        """Number of labels, if x is one."""
        return len(self.state["labels"]) if "labels" in self.state else None

    @property
    def needs_n_events(self) -> bool:
        """Whether the number of events varies from row to row."""
        return bool(self.state["varies"])

    def names(self) -> list[str]:
        """The names of `columns`."""
        return names_of(self.event, counted=bool(self.state["counted"]))

    def crowd(self, of: str = "x") -> Crowd:
        """The crowd of x, or of what the embedding has "seen" of it."""
        named = {name.removeprefix(f"{of}."): v for name, v in self.state.items() if name.startswith(f"{of}.")}
        return Crowd(named)

    def columns(self, x: Tensor, n_events: Tensor | None = None) -> Tensor:
        """What stands for x (N, *event) with n_events (N,), (N, C)."""
        if not bool(self.state["counted"]):
            n_events = None
        elif n_events is None:
            n_events = torch.full((len(x),), x.shape[1])
        return features_of(x.detach().cpu(), x.shape[1:], None if n_events is None else n_events.cpu())

    def check(
        self,
        x: Tensor,
        n_events: Tensor | None = None,
        *,
        seen: Reader | None = None,
        false_alarm: float = FALSE_ALARM,
    ) -> list[Check]:
        """Say whether rows x (N, *event), of which n_events (N,) count, lie where simulated ones did, each by itself.

        Args:
            x: finite.
            n_events: of runs of events; by default all count.
            seen: the embedding that was given to `of`.
            false_alarm: probability that one test or more fails for one or more of N simulated rows.
        """
        if "labels" in self.state:
            return [self._judge_labels(x, false_alarm)]
        deep = seen is not None and "seen.rows" in self.state
        level = false_alarm / (len(TESTS) + 2 * deep)
        found = self.crowd().check(self.columns(x, n_events), self.names(), level)
        if deep and seen is not None:
            also = self.crowd("seen").check(_read(seen, x, n_events), (), level, tests=TESTS[1:])
            found += [replace(check, name=f"{check.name} in the embedding") for check in also]
        return found

    def _judge_labels(self, x: Tensor, level: float) -> Check:
        """Labels that were never simulated: another one comes with probability p = (once + 1) / (N + 1), about.

        `once` are the labels that came once: Good, Biometrika 40 (1953) 237. That k of n are new has at most the
        probability n p / k, however they depend on each other (Markov).
        """
        count = self.state["labels"].double()
        rows, labels = int(count.sum()), x.flatten().long().cpu()
        new = labels[count[labels] == 0]
        share = float((count == 1).sum() + 1) / (rows + 1)
        if not len(new):
            return Check("labels", "", 1.0, (level, 1.0), True, f"all came among {rows} simulated rows")
        p = min(1.0, share * len(labels) / len(new))
        text = f"{sorted(set(new.tolist()))} never came in {rows} simulated rows; new ones are about {share:.2g} of all"
        return Check("labels", "", p, (level, 1.0), False if p < level else None, text)


def _prefixed(of: str, crowd: Crowd) -> dict[str, Tensor]:
    return {f"{of}.{name}": value for name, value in crowd.state.items()}


def _read(seen: Reader, x: Tensor, n_events: Tensor | None) -> Tensor:
    """What an embedding makes of x (N, *event), in parts, (N, F)."""
    parts = torch.arange(len(x)).split(500)
    with torch.no_grad():
        return torch.cat([seen(x[at], None if n_events is None else n_events[at]).cpu().double() for at in parts])


def reader(estimator: Any) -> Reader | None:
    """What an estimator's embedding makes of x (N, *event) and n_events (N,); `None` if it has none."""
    return estimator.seen if getattr(estimator, "embedding", None) is not None else None


def recognise(estimator: Any, x: Tensor, n_events: Tensor | None) -> tuple[str, str]:
    """Whether an estimator knows observations such as x (N, *event), of which n_events (N,) count: verdict and flag.

    The flag is empty if nothing is wrong, or nothing known.
    """
    known = getattr(estimator, "familiar", None)
    if known is None:
        return "unchecked", ""
    found = known.check(x, n_events, seen=reader(estimator))
    failed = [f"{check.name}: {check.text}" for check in found if check.passed is False]
    if failed:
        said = "; ".join(failed)
        return f"NOT inside: {said}", f"x_obs is not like what was simulated, so no answer can be trusted: {said}"
    if all(check.passed is None for check in found):
        return f"unchecked: {found[0].text}", ""
    return f"{'all inside' if len(x) > 1 else 'inside'}, by {', '.join(check.name for check in found)}", ""
