import ast
from pathlib import Path

import newcomer_galton
import numpy as np
import pytest
import torch
from measures import z_of_mean
from newcomer_galton import NewcomerBoard
from toys import BOX, GlobalState, Shift, row_by_row, same_bits, shifted

from sbi_core import FunctionSimulator, InputError, MissingGold, Parameter, Simulator, UniformPrior, simulate
from sbi_core.gold import joint_log_ratio, joint_score
from sbi_core.simulators import GaltonBoard

ANGLE = Parameter("angle", 0, 10)


def lines_of_code(path):
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    text = Path(path).read_text()
    docs = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    numbered = enumerate(text.splitlines(), start=1)
    return sum(1 for k, line in numbered if k not in docs and line.strip() and not line.strip().startswith("#"))


def test_newcomer_writes_a_galton_board_in_under_40_lines(tmp_path):
    assert 10 < lines_of_code(newcomer_galton.__file__) < 40
    (tmp_path / "long.py").write_text("'''Doc.'''\n" + "x = 1\n" * 40)
    assert lines_of_code(tmp_path / "long.py") == 40, "saboteur: one line too many"


def test_newcomers_gold_is_the_galton_boards():
    newcomer, board = NewcomerBoard(), GaltonBoard()
    rows = simulate(newcomer, 300, seed=1, progress=False)
    near = (torch.tensor([-0.8]), torch.tensor([-0.6]))
    assert torch.allclose(joint_score(newcomer, rows), joint_score(board, rows), atol=1e-10)
    assert torch.allclose(joint_log_ratio(newcomer, rows, *near), joint_log_ratio(board, rows, *near), atol=1e-12)
    assert torch.equal(rows.x[:, 0], rows.z[:, -1])
    assert not torch.allclose(joint_score(newcomer, rows), joint_score(board, rows, rows.theta + 0.01), atol=1e-3)


def test_what_a_subclass_inherits():
    toy = GlobalState()
    assert (toy.name, toy.has_gold, toy.is_exact, toy.settings) == ("GlobalState", False, False, {})
    assert isinstance(toy.prior, UniformPrior) and toy.prior.event_shape == (2,)
    assert Shift().has_gold and Shift().is_exact
    with pytest.raises(MissingGold, match="'GlobalState' has no log_joint"):
        toy.log_joint(None, None, None, None)
    with pytest.raises(NotImplementedError, match="'GlobalState'"):
        toy.log_likelihood(None, None)


def test_sample_must_be_written():
    with pytest.raises(TypeError, match="sample"):
        type("Empty", (Simulator,), {})()


def test_observe_is_the_exact_likelihood():
    theta, x = torch.zeros(3, 1).double(), torch.ones(1).double()
    assert torch.equal(Shift().observe(x)(theta), Shift().log_likelihood(theta, x))


def test_settings_are_plain_and_tell_worlds_apart():
    one = FunctionSimulator(shifted, BOX, x_shape=(2,))
    assert one.settings["function"].startswith("shifted:") and "parameters" not in one.settings
    assert GaltonBoard(10, 21).settings == {"n_nails": 21, "n_rows": 10}


def test_vectorised_function_gets_all_rows_at_once():
    shapes = []

    def function(theta, rng):
        shapes.append(theta.shape)
        return shifted(theta, rng)

    rows = simulate(FunctionSimulator(function, BOX, rows_per_seed=20), 50, seed=1, progress=False)
    assert shapes == [(10, 2)] + 3 * [(20, 2)] + [(10, 2)], "a trial call at either end" and rows.x.shape == (50, 2)
    assert z_of_mean(rows.x - rows.theta) < 4 < z_of_mean(rows.x - rows.theta + 0.3)


def test_row_by_row_function_gets_one_row():
    shapes = []

    def function(theta, rng):
        shapes.append(theta.shape)
        return shifted(theta, rng)[:, None] * np.ones(3)

    rows = simulate(row_by_row(function), 4, seed=1, progress=False)
    assert shapes == 6 * [(2,)] and rows.x.shape == (4, 2, 3)


@pytest.mark.parametrize("vectorized", [True, False])
def test_function_takes_the_design_in_the_middle(vectorized):
    toy = FunctionSimulator(
        lambda theta, design, rng: theta[..., :1] * 0 + design, BOX, designs=[ANGLE], vectorized=vectorized
    )
    rows = simulate(toy, 5, design=torch.tensor([3.0]), seed=1, progress=False)
    assert rows.x.tolist() == rows.design.tolist() == 5 * [[3.0]] and rows.info.designs == (ANGLE,)
    varied = simulate(toy, 5, design=UniformPrior([ANGLE]), seed=1, progress=False)
    assert torch.equal(varied.x, varied.design) and len(varied.design.unique()) == 5
    with pytest.raises(InputError, match=r"\['angle'\].*design="):
        simulate(toy, 5, progress=False)


@pytest.mark.parametrize("vectorized", [True, False])
def test_numpy_generator_repeats(vectorized):
    toy = FunctionSimulator(shifted, BOX, vectorized=vectorized)
    runs = [simulate(toy, 30, seed=seed, progress=False) for seed in (1, 1, 2)]
    assert same_bits(runs[0], runs[1]) and not same_bits(runs[0], runs[2])
    assert len(runs[0].x.unique()) == 60


def careless(theta, rng):
    theta += 0.3 * rng.standard_normal(theta.shape)
    return theta


@pytest.mark.parametrize("vectorized", [True, False])
def test_function_that_overwrites_theta_spoils_nothing(vectorized):
    spoilt, clean = (
        simulate(FunctionSimulator(f, BOX, vectorized=vectorized), 20, seed=1, progress=False)
        for f in (careless, shifted)
    )
    assert same_bits(spoilt, clean)


def test_function_that_reuses_its_buffer_spoils_nothing():
    buffer = torch.zeros(5, 2)

    class Reuses(Shift):
        rows_per_seed = 5
        parameters = BOX

        def sample(self, theta, design, generator):
            return buffer.copy_(theta), None

    rows = simulate(Reuses(), 20, seed=1, progress=False)
    assert torch.equal(rows.x, rows.theta.float())
