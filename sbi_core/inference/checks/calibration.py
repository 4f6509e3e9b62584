"""All checks that need no more than truths with posterior draws beside them."""

from torch import Tensor

from sbi_core.inference.checks.coverage import coverage, information, reference_ranks
from sbi_core.inference.checks.diagnosis import Diagnosis
from sbi_core.inference.checks.pairs import Pairs
from sbi_core.inference.checks.ranks import compared, credibility, normal_scores, ranks
from sbi_core.inference.checks.repair import Recalibration
from sbi_core.inference.checks.two_sample import classifier, moments, scored
from sbi_core.parameters import names
from sbi_core.seeding import one_thread, seeded

FALSE_ALARM = 0.002
"""Probability that right posteriors fail any check of a run."""

KINDS = 6
"""Of checks made here, with equal shares of it: information, ranks, coverage, TARP, moments, classifier."""


def calibrate(
    pairs: Pairs,
    *,
    seed: int = 0,
    false_alarm: float = FALSE_ALARM,
    more: int = 0,
    x_obs: Tensor | None = None,
    local: Tensor | None = None,
) -> Diagnosis:
    """Judge pairs by every check that reads nothing else (see `diagnose`).

    Args:
        pairs: N truths with L draws each.
        seed: of ranks among ties, random reference points, exchanges and the classifier.
        false_alarm: probability that right posteriors fail any check of the run.
        more: kinds of checks that are made elsewhere, and take their share.
        x_obs: where the two-sample test is also made locally, (*event).
        local: draws of the posterior there, (M, D).
    """
    share, about = false_alarm / (KINDS + more), names(pairs.parameters)
    with seeded(seed), one_thread():
        each = ranks(pairs.theta, pairs.draws)
        level, near = credibility(pairs), reference_ranks(pairs)
        by_rank, rank_curves = compared("ranks", about, each, share / 2)
        by_point, point_curves = compared("TARP", ("",), near[:, None], share)
        _, level_curves = compared("credibility", ("",), level[:, None], share)
        data = scored(pairs, x_obs, local)
        checks = (
            information(pairs, share),
            *by_rank,
            *normal_scores(about, each, share / 2),
            *coverage(level, share),
            *by_point,
            *moments(data, share),
            classifier(data, share),
        )
    return Diagnosis(
        checks=checks,
        curves=(*rank_curves, *level_curves, *point_curves),
        ranks=each,
        credibility=level,
        pairs=len(pairs),
        recalibration=Recalibration(level.sort().values),
        false_alarm=false_alarm,
        seed=seed,
    )
