"""check_gold finds what is wrong with gold, names it, and leaves clean gold alone: on 10,000 rows of two worlds."""

import json
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from sbi_core import (
    FunctionSimulator,
    GoldError,
    InputError,
    MissingGold,
    Parameter,
    Simulations,
    Simulator,
    check_gold,
    joint_log_ratio,
    joint_score,
    simulate,
)
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard, LinearGaussian

WORLDS = {"board": (GaltonBoard, (), 0.1), "gaussian": (LinearGaussian, (3,), 0.2)}
"""A class, its arguments, and how far theta is off."""


@lru_cache(maxsize=4)
def rows_of(name, seed):
    kind, arguments, _ = WORLDS[name]
    return simulate(kind(*arguments), 10_000, seed=seed, progress=False)


def wrong(name, change):
    """The world with another log_joint: `change(right, theta, x, z, design)`."""
    kind, arguments, _ = WORLDS[name]

    class Wrong(kind):
        def log_joint(self, theta, x, z, design):
            return change(super().log_joint, theta, x, z, design)

    return Wrong(*arguments)


def one_sign(right, theta, x, z, design):
    """The sign of the second parameter's part; of all of it where there is only one."""
    if theta.shape[1] == 1:
        return -right(theta, x, z, design)
    return right(theta, x, z, design) + 2 * (z[:, 1] - theta[:, 1]) ** 2 / 8


LOG_JOINTS = {
    "sign": lambda name: one_sign,
    "shuffled": lambda name: lambda right, theta, x, z, d: right(theta, x.roll(1, 0), z.roll(1, 0), d),
    "factor 0.9": lambda name: lambda right, theta, x, z, d: 0.9 * right(theta, x, z, d),
    "theta off": lambda name: lambda right, theta, x, z, d: right(theta + WORLDS[name][2], x, z, d),
}
"""A ratio swapped or off by a factor is no log_joint: the ratio of a log_joint is a difference."""


@lru_cache(maxsize=4)
def stored(name, seed):
    """The rows with gold in columns, and one contrast a row from the prior."""
    kind, arguments, off = WORLDS[name]
    world, rows = kind(*arguments), rows_of(name, seed)
    with seeded(seed + 1000):
        alt = world.prior.sample((len(rows), 1))
        order = torch.randperm(len(rows))
    ratio = joint_log_ratio(world, rows, rows.theta, alt[:, 0])[:, None]
    clean = replace(rows, theta_alt=alt, joint_log_ratio=ratio, joint_score=joint_score(world, rows))
    return clean, order, joint_score(world, rows, rows.theta + off)


def signed(score):
    one = min(1, score.shape[1] - 1)
    return torch.where(torch.arange(score.shape[1]) == one, -score, score)


def score_only(rows, score):
    return replace(rows, theta_alt=None, joint_log_ratio=None, joint_score=score)


def ratio_only(rows, ratio):
    return replace(rows, joint_score=None, joint_log_ratio=ratio)


COLUMNS = {
    "sign": lambda rows, order, off: score_only(rows, signed(rows.joint_score)),
    "shuffled": lambda rows, order, off: score_only(rows, rows.joint_score[order]),
    "factor 0.9": lambda rows, order, off: score_only(rows, 0.9 * rows.joint_score),
    "theta off": lambda rows, order, off: score_only(rows, off),
    "ratio swapped": lambda rows, order, off: ratio_only(rows, -rows.joint_log_ratio),
    "ratio 5% up": lambda rows, order, off: ratio_only(rows, rows.joint_log_ratio + torch.tensor(1.05).log()),
    "ratio 5% down": lambda rows, order, off: ratio_only(rows, rows.joint_log_ratio - torch.tensor(1.05).log()),
    "ratio shuffled": lambda rows, order, off: ratio_only(rows, rows.joint_log_ratio[order]),
}
HARD = ("factor 0.9", "ratio shuffled")
"""Columns alone tell these from clean gold too seldom; with the simulator at hand they are found exactly, see below."""

CASES = [("live", fault) for fault in LOG_JOINTS] + [("stored", fault) for fault in COLUMNS if fault not in HARD]


def check(name, how, fault, seed):
    """The check of one fault: in the simulator's log_joint, or in stored columns without a simulator."""
    if how == "live":
        return check_gold(wrong(name, LOG_JOINTS[fault](name)), rows_of(name, seed))
    return check_gold(None, COLUMNS[fault](*stored(name, seed)))


def at_fault(report):
    return {test.parameter for test in report.rows if test.passed is False}


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(("how", "fault"), CASES)
def test_a_fault_is_found(name, how, fault):
    report = check(name, how, fault, seed=1)
    assert not report.passed
    with pytest.raises(GoldError) as caught:
        report.raise_if_failed()
    assert str(caught.value) == report.verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(("how", "fault"), CASES)
def test_a_fault_is_found_with_19_of_20_seeds(name, how, fault):
    assert sum(not check(name, how, fault, seed).passed for seed in range(20)) >= 19


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_clean_gold_passes(name, seed):
    kind, arguments, _ = WORLDS[name]
    rows = stored(name, seed)[0]
    for simulator, table in ((kind(*arguments), rows_of(name, seed)), (None, rows), (kind(*arguments), rows)):
        report = check_gold(simulator, table)
        assert report.passed, report.verdict
        report.raise_if_failed()
        assert report.simulations == 10_000 and "passed, largest |z| = " in report.verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_clean_gold_passes_200_times(name):
    kind, arguments, _ = WORLDS[name]
    for seed in range(100, 300):
        for simulator, table in ((kind(*arguments), rows_of(name, seed)), (None, stored(name, seed)[0])):
            report = check_gold(simulator, table)
            assert report.passed, f"seed {seed}: {report.verdict}"


@pytest.mark.parametrize("how", ["live", "stored"])
def test_the_verdict_names_the_parameter(how):
    """Only the second of three has the wrong sign."""
    report = check("gaussian", how, "sign", seed=1)
    assert at_fault(report) == {"theta_2"}
    assert "contradicts the simulations for parameter theta_2: " in report.verdict and "score" in report.verdict
    rows = stored("gaussian", 1)[0]
    everything = check_gold(None, score_only(rows, -rows.joint_score))
    assert at_fault(everything) == {"theta_1", "theta_2", "theta_3"}, "saboteur: the sign of all three"


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("fault", ["ratio swapped", "ratio 5% up", "ratio 5% down"])
def test_the_verdict_names_the_ratio(name, fault):
    report = check(name, "stored", fault, seed=1)
    assert at_fault(report) == {"ratio"}
    assert report.verdict.startswith("the joint ratio contradicts the simulations for parameter ratio: ")
    assert at_fault(check(name, "stored", "theta off", seed=1)).isdisjoint({"ratio"})


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("fault", COLUMNS)
def test_columns_that_are_not_what_log_joint_says_are_found_exactly(name, fault):
    """With the simulator at hand the comparison is exact, on any number of rows."""
    kind, arguments, _ = WORLDS[name]
    report = check_gold(kind(*arguments), COLUMNS[fault](*stored(name, 1))[:200])
    exact = [test for test in report.rows if test.rows == 0 and "log_joint" in test.name]
    assert exact and any(test.passed is False for test in exact)


@pytest.mark.parametrize("name", WORLDS)
def test_a_normaliser_that_depends_on_theta_is_found(name):
    """A term of theta alone, forgotten or added: half a standard deviation of the joint score."""
    size = float(joint_score(WORLDS[name][0](*WORLDS[name][1]), rows_of(name, 1)).std())
    report = check_gold(
        wrong(name, lambda right, theta, x, z, d: right(theta, x, z, d) + 0.5 * size * theta[:, 0]), rows_of(name, 1)
    )
    assert at_fault(report) == {WORLDS[name][0](*WORLDS[name][1]).parameters[0].name}


@pytest.mark.parametrize("slope", [0.02, 0.08])
def test_a_world_that_says_little_is_tested_too(slope):
    """x ~ N(slope mu, 1): a step of a tenth of the score's unit leaves the prior, a shorter one does not."""

    class Faint(Simulator):
        parameters = (Parameter("mu", -1, 1),)

        def __init__(self, factor):
            self.factor = factor

        def sample(self, theta, design, generator):
            z = slope * theta + torch.randn(theta.shape, generator=generator, dtype=torch.float64)
            return z.float(), z

        def log_joint(self, theta, x, z, design):
            return -self.factor * (z - slope * theta).square().sum(1) / 2

    rows = simulate(Faint(1.0), 10_000, seed=1, progress=False)
    assert check_gold(Faint(1.0), rows, seed=1).passed
    found = check_gold(Faint(1.5), replace(rows, info=replace(rows.info, settings=Faint(1.5).settings)), seed=1)
    assert any("Fisher" in test.name and test.passed is False for test in found.rows)


def test_x_where_z_belongs_is_found():
    """The score written with the observation instead of the latent."""
    report = check_gold(wrong("gaussian", lambda right, theta, x, z, d: right(theta, x, x, d)), rows_of("gaussian", 1))
    assert not report.passed


def test_plain_data():
    for report in (check("gaussian", "stored", "sign", seed=1), check_gold(GaltonBoard(), rows_of("board", 1))):
        plain = json.loads(json.dumps(report.to_json()))
        assert plain["passed"] is report.passed and plain["verdict"] == report.verdict
        assert plain["simulations"] == 10_000 and len(plain["tests"]) == len(report.rows)
        assert set(plain["tests"][0]) == {"name", "parameter", "statistic", "z", "rows", "passed", "text"}
        assert [test["passed"] for test in plain["tests"]] == [test.passed for test in report.rows]


def test_too_few_rows_are_said_to_be_too_few():
    report = check_gold(GaltonBoard(), rows_of("board", 1)[:40])
    assert any(test.passed is None for test in report.rows) and "too few rows to count" in report.verdict
    with pytest.raises(InputError, match="1 valid rows, expected at least 2"):
        check_gold(GaltonBoard(), rows_of("board", 1)[:1])


def test_rows_that_failed_are_left_out():
    x = rows_of("gaussian", 1).x.clone()
    x[::2] = torch.nan
    rows = rows_of("gaussian", 1)
    broken = replace(rows, x=x, status=torch.isfinite(x).all(1).to(rows.status.dtype) + 2 * torch.isnan(x).any(1))
    broken = replace(broken, status=broken.status.to(rows.status.dtype))
    report = check_gold(LinearGaussian(3), broken)
    assert report.passed and report.simulations == 5000


def test_rows_are_made_if_none_are_given():
    assert check_gold(GaltonBoard(), seed=3).simulations == 10_000
    with pytest.raises(InputError, match="check_gold needs a simulator"):
        check_gold(None)


def test_a_check_is_reproducible_and_leaves_the_random_state_alone():
    rows = rows_of("gaussian", 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (
        torch.tensor([test.z for test in check_gold(LinearGaussian(3), rows, seed=seed).rows]) for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(first, again, rtol=1e-3, atol=1e-9), "up to the rounding of the linear algebra"
    assert not torch.allclose(first, other, rtol=1e-3, atol=1e-9), "saboteur: another seed"


def test_rows_at_one_theta_get_the_same_answer_each_time():
    world = LinearGaussian(10)
    for seed in range(8):
        rows = simulate(world, 400, seed=seed, progress=False, proposal=torch.zeros(10).double())
        first, again = (check_gold(world, rows) for _ in range(2))
        assert first.passed, first.verdict
        both = [torch.tensor([test.z for test in report.rows]) for report in (first, again)]
        assert torch.allclose(*both, rtol=1e-3, atol=1e-9)
        counted = [test for test in first.rows if test.name == "score mean"]
        assert all(test.rows > 60 for test in counted), "weights that theta cannot explain would eat the rows"


def test_parameters_are_matched_by_name():
    world = LinearGaussian(matrix=[[1.0, 0.0], [1.0, 3.0]])
    rows = simulate(world, 2000, seed=1, progress=False)
    rows = replace(rows, joint_score=joint_score(world, rows))
    turned = rows.reordered(world.parameters[::-1])
    assert check_gold(world, turned).passed
    assert not check_gold(world, replace(rows, joint_score=turned.joint_score)).passed, "saboteur: columns exchanged"


def test_missing_gold():
    toy = FunctionSimulator(lambda theta, rng: theta + rng.standard_normal(theta.shape), [Parameter("mu", -1, 1)])
    with pytest.raises(MissingGold, match="simulator 'FunctionSimulator' has no log_joint"):
        check_gold(toy)
    rows = rows_of("board", 1)
    bare = Simulations.from_arrays(rows.theta, rows.x, parameters=rows.info.parameters)
    with pytest.raises(MissingGold, match="no simulator"):
        check_gold(None, bare)
    with pytest.raises(MissingGold, match="nothing to check"):
        check_gold(GaltonBoard(), bare)
