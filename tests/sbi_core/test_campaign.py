import json
import random
import runpy
from functools import cache

import numpy as np
import pytest
import torch
from torch import distributions as td
from toys import BOX, Fragile, GlobalState, Shift, row_by_row, run, same_bits, shifted

from sbi_core import (
    FunctionSimulator,
    InputError,
    Parameter,
    SimulatorError,
    Store,
    StoreError,
    UniformPrior,
    simulate,
)
from sbi_core.simulators import GaltonBoard, LinearGaussian

BLOCKS = {"galton": GaltonBoard(), "global": GlobalState()}
WIDE = UniformPrior([Parameter("mu", -3, 3)])


@cache
def straight(name, n):
    """The rows of one straight run in memory."""
    return run(BLOCKS[name] if name in BLOCKS else row_by_row(), n)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("chunk_rows", [1000, 2000, 10_000])
@pytest.mark.parametrize("name", BLOCKS)
def test_rows_do_not_depend_on_chunks(tmp_path, name, chunk_rows, stored):
    store = tmp_path / "run.zarr" if stored else None
    rows = run(BLOCKS[name], 12_345, store=store, chunk_rows=chunk_rows)
    assert len(rows) == 12_345
    assert same_bits(rows, straight(name, 12_345))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("chunk_rows", [7, 100, 1000])  # the last holds more rows than there are
def test_rows_of_row_by_row_code_do_not_depend_on_chunks(tmp_path, chunk_rows, stored):
    store = tmp_path / "run.zarr" if stored else None
    assert same_bits(run(row_by_row(), 250, store=store, chunk_rows=chunk_rows), straight("rows", 250))


@pytest.mark.parametrize(
    ("name", "n", "chunk_rows", "stored"),
    [
        pytest.param("galton", 12_345, 1000, False, marks=pytest.mark.slow),
        ("global", 12_345, 2000, True),
        ("rows", 250, 100, True),
        pytest.param("galton", 12_345, 10_000, True, marks=pytest.mark.slow),
        pytest.param("rows", 1234, 7, False, marks=pytest.mark.slow),
        pytest.param("rows", 2345, 1000, True, marks=pytest.mark.slow),
    ],
)
def test_rows_do_not_depend_on_workers(tmp_path, name, n, chunk_rows, stored):
    simulator = BLOCKS[name] if name in BLOCKS else row_by_row()
    store = tmp_path / "run.zarr" if stored else None
    rows = run(simulator, n, store=store, chunk_rows=chunk_rows, workers=2)
    assert same_bits(rows, straight(name, n))


@pytest.mark.parametrize("name", [*BLOCKS, "rows"])
def test_rows_depend_on_the_seed_and_on_nothing_that_came_before(name):
    simulator = BLOCKS[name] if name in BLOCKS else row_by_row()
    n, whole = (1100, straight(name, 12_345)) if name in BLOCKS else (60, straight(name, 250))
    assert same_bits(run(simulator, n), whole[:n])
    other = run(simulator, n, seed=1 + 2**32)
    assert not torch.equal(other.x, whole.x[:n]), "seeds with the same low 32 bits"
    assert not torch.equal(other.theta, whole.theta[:n])


@pytest.mark.parametrize("name", ["galton", "global"])
def test_blocks_share_no_noise(name):
    rows = straight(name, 12_345)
    assert len(rows.theta[:, 0].unique()) == 12_345
    if name == "global":
        noise = rows.x - rows.theta
        assert len(noise[:, 0].unique()) == 12_345


def test_generator_and_global_state_are_two_streams():
    class Both(Shift):
        def sample(self, theta, design, generator):
            return torch.cat([torch.rand(theta.shape, generator=generator), torch.rand(theta.shape)], 1), None

    x = run(Both(), 1000).x
    assert not torch.equal(x[:, 0], x[:, 1]) and abs(torch.corrcoef(x.T)[0, 1]) < 4 / 1000**0.5


def test_seeds_that_are_not_given_never_repeat():
    firsts = {float(simulate(Shift(), 1, progress=False).x) for _ in range(50)}
    assert len(firsts) == 50


def test_seed_that_is_not_given_is_recorded():
    rows = simulate(Shift(), 20, progress=False)
    assert same_bits(run(Shift(), 20, seed=rows.info.seed), rows)


@pytest.mark.parametrize("simulator", [GlobalState(), Shift(), row_by_row()], ids=lambda s: s.name)
def test_global_random_state_is_untouched(simulator):
    def state():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    before = state()
    run(simulator, 30)
    assert state() == before
    torch.rand(1)
    assert state() != before, "saboteur: one number drawn is seen"


@pytest.mark.parametrize(
    ("name", "chunk_rows", "sizes"),
    [("galton", 2000, (1500, 2500, 7001)), ("rows", 100, (1, 30, 100, 230)), ("rows", 7, (7, 8, 50))],
)
def test_finished_campaign_is_extended(tmp_path, name, chunk_rows, sizes):
    simulator = BLOCKS[name] if name in BLOCKS else row_by_row()
    for number, n in enumerate(sizes):
        seed = 1 if number == 0 else None
        store = run(simulator, n, seed=seed, store=tmp_path / "run.zarr", chunk_rows=chunk_rows)
        assert len(store) == n and same_bits(store, run(simulator, n))


def test_campaign_that_is_done_costs_no_call(tmp_path):
    store = tmp_path / "run.zarr"
    run(Shift(), 30, store=store)
    idle = type("Shift", (Shift,), {"sample": lambda *arguments: 1 / 0})()
    assert len(run(idle, 30, store=store)) == len(run(idle, 20, store=store)) == 30
    with pytest.raises(SimulatorError, match="ZeroDivisionError"):
        run(idle, 31, store=store)


def renamed(**changes):
    return type("Shift", (Shift,), changes)()


@pytest.mark.parametrize(
    ("simulator", "options", "words"),
    [
        (Shift(), {"seed": 2}, ["seed: found 1, asked 2"]),
        (renamed(version="2"), {}, ["version: found '1', asked '2'"]),
        (renamed(parameters=(Parameter("nu", -1, 1),)), {}, ["parameters", "'mu'", "'nu'"]),
        (Fragile(), {}, ["simulator: found 'Shift', asked 'Fragile'"]),
        (Shift(), {"proposal": WIDE}, ["proposal", "-3"]),
        (Shift(), {"proposal": torch.tensor([0.5])}, ["proposal", "settings"]),
    ],
)
def test_other_campaign_in_the_same_folder_is_refused(tmp_path, simulator, options, words):
    store = run(Shift(), 20, store=tmp_path / "run.zarr")
    with pytest.raises(StoreError) as caught:
        run(simulator, 30, store=store.path, **options)
    assert all(word in str(caught.value) for word in [*words, "run.zarr", "another campaign"])
    assert len(Store(store.path)) == 20
    assert len(run(Shift(), 30, store=store.path)) == 30


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    run(LinearGaussian(), 20, store=tmp_path / "run.zarr")
    with pytest.raises(StoreError, match=r"settings: .*noise_std': 1.0.*noise_std': 1.5"):
        run(LinearGaussian(noise_std=1.5), 30, store=tmp_path / "run.zarr")


def contrasted(theta, alt, rng):
    return {"x": theta, "joint_log_ratio": 0 * alt[:, :, 0]}


def without_block_sizes(path):
    """Make a store one of those that do not know how their rows were drawn."""
    meta = json.loads((path / "zarr.json").read_text())
    for name in ("rows_per_seed", "contrasts"):
        del meta["attributes"]["sbi_core"]["info"][name]
    (path / "zarr.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("old", [False, True])
def test_rows_drawn_in_other_blocks_do_not_continue_a_campaign(tmp_path, old):
    path = tmp_path / "run.zarr"
    run(row_by_row(rows_per_seed=10), 40, store=path, chunk_rows=20)
    if old:
        without_block_sizes(path)
        assert len(run(row_by_row(rows_per_seed=10), 50, store=path)) == 50, "what is not known is taken as given"
    with pytest.raises(StoreError, match="rows_per_seed = 15" if old else "rows_per_seed: found 10, asked 15"):
        run(row_by_row(rows_per_seed=15), 60, store=path)
    rows = run(row_by_row(rows_per_seed=10), 60, store=path)[:]
    assert len(rows.theta[:, 0].unique()) == 60, "no row comes twice"


def test_other_contrasts_do_not_continue_a_campaign(tmp_path):
    run(FunctionSimulator(contrasted, BOX, contrasts=2), 40, store=tmp_path / "run.zarr")
    with pytest.raises(StoreError, match="contrasts: found 2, asked 3"):
        run(FunctionSimulator(contrasted, BOX, contrasts=3), 60, store=tmp_path / "run.zarr")


@pytest.mark.parametrize("other", [1.0, 2.0])
def test_proposal_without_a_name_is_known_by_its_draws(tmp_path, other):
    def mixture(shift):
        parts = td.Independent(td.Normal(torch.tensor([[0.0], [shift]]), torch.ones(2, 1)), 1)
        return td.MixtureSameFamily(td.Categorical(torch.ones(2)), parts)

    run(Shift(), 20, store=tmp_path / "run.zarr", proposal=mixture(1.0))
    if other == 1.0:
        assert len(run(Shift(), 30, store=tmp_path / "run.zarr", proposal=mixture(other))) == 30
    else:
        with pytest.raises(StoreError, match="proposal"):
            run(Shift(), 30, store=tmp_path / "run.zarr", proposal=mixture(other))


def test_unbounded_parameters_are_recorded(tmp_path):
    class Unbounded(Shift):
        parameters = (Parameter("mu", float("-inf"), float("inf")),)
        prior = td.Independent(td.Normal(torch.zeros(1).double(), 1.0), 1)

    run(Unbounded(), 20, store=tmp_path / "run.zarr")
    assert Store(tmp_path / "run.zarr").info.parameters[0].high == float("inf")
    assert len(run(Unbounded(), 30, store=tmp_path / "run.zarr")) == 30


@pytest.mark.parametrize("proposal", [torch.tensor([0.5]), torch.linspace(-1, 1, 25)[:, None]])
def test_thetas_may_be_given(proposal):
    rows = run(Shift(), 25, proposal=proposal)
    assert torch.equal(rows.theta, proposal.double().expand(25, 1)) and rows.info.proposal is None
    assert len(rows.x.unique()) == 25


def test_designs_may_be_drawn_fixed_or_given():
    board = GaltonBoard()
    given = torch.tensor([[3.0, 20.0], [15.0, 4.0]])
    assert run(board, 10, design=given[0]).design.tolist() == 10 * [[3.0, 20.0]]
    assert torch.equal(run(board, 2, design=given).design, given.double())
    drawn = run(board, 500, design=UniformPrior(board.designs))
    assert len(drawn.design[:, 0].unique()) == 31 and drawn.info.designs == board.designs
    assert run(board, 10).design is None and run(board, 10).info.designs == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, ["simulations", "n = 0", "at least 1"]),
        ({"n": 2.5}, ["n = 2.5", "at least 1"]),
        ({"seed": -1}, ["seed = -1"]),
        ({"seed": 0.5}, ["seed = 0.5"]),
        ({"workers": 0}, ["workers = 0"]),
        ({"chunk_rows": 1500}, ["chunk_rows = 1500", "rows_per_seed = 1000"]),
        ({"proposal": torch.zeros(3)}, ["proposal", "(3,)", "(1,) or (10, 1)", "['mu']"]),
        ({"proposal": UniformPrior(BOX)}, ["proposal", "event shape (1,)"]),
        ({"design": torch.zeros(2)}, ["design", "'Shift' has none"]),
        ({"simulator": shifted}, ["simulator", "function", "FunctionSimulator"]),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, words):
    arguments = {"simulator": Shift(), "n": 10, "progress": False} | options
    with pytest.raises(InputError) as caught:
        simulate(arguments.pop("simulator"), arguments.pop("n"), **arguments)
    assert all(word in str(caught.value) for word in words)


def test_an_edited_function_does_not_continue_an_old_campaign(tmp_path):
    """Two functions of one name; comments and layout do not count."""
    text = "def toy(theta, rng):{comment}\n    return theta + {sd} * rng.standard_normal(theta.shape)\n"

    def version(name, **parts):
        (tmp_path / f"{name}.py").write_text(text.format(**parts))
        return FunctionSimulator(runpy.run_path(str(tmp_path / f"{name}.py"))["toy"], BOX)

    first, same, edited = (
        version("a", sd=1, comment=""),
        version("b", sd=1, comment="  # x"),
        version("c", sd=2, comment=""),
    )
    run(first, 20, store=tmp_path / "run.zarr")
    assert len(run(same, 30, store=tmp_path / "run.zarr")[:]) == 30
    with pytest.raises(StoreError, match="settings"):
        run(edited, 40, store=tmp_path / "run.zarr")


def test_numpy_whole_numbers_are_numbers():
    assert same_bits(run(Shift(), np.int64(10), seed=np.int64(1)), run(Shift(), 10))


def test_bar_counts_to_the_end(tmp_path, capsys):
    simulate(Shift(), 1500, store=tmp_path / "run.zarr", seed=1)
    assert "Shift: 100%" in capsys.readouterr().err
    simulate(Shift(), 2500, store=tmp_path / "run.zarr")
    assert "2500/2500" in capsys.readouterr().err
    run(Shift(), 10)
    assert capsys.readouterr().err == ""
