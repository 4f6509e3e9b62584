import json

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal
from toys import BOX, reference, same_bits, shifted, table

from sbi_core import InputError, Parameter, Simulations, UniformPrior, simulate
from sbi_core.simulations import INVALID, OK, Info
from sbi_core.simulators import LinearGaussian

A, B = BOX


def gold_table(n=6):
    """A table with every column, each number telling its row and its axis."""
    k = np.arange(n)[:, None]
    theta = k + np.array([0.1, 0.2])
    return Simulations.from_arrays(
        theta,
        10 * theta,
        parameters=BOX,
        designs=[Parameter("angle", 0, 100)],
        design=k,
        z=theta[:, :1].astype(np.float32),
        n_events=k[:, 0],
        theta_alt=theta[:, None] + [[100.0, 200.0]],
        joint_log_ratio=k * 1.0,
        joint_score=-theta,
    )


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (-1, [5]),
        (np.int64(2), [2]),
        (slice(1, 5, 2), [1, 3]),
        (slice(4, None), [4, 5]),
        (slice(0, 0), []),
        (torch.tensor([3, 0, 3]), [3, 0, 3]),
        (np.array([4, 1]), [4, 1]),
        ([2], [2]),
        (torch.tensor([True, False, False, True, False, False]), [0, 3]),
    ],
)
def test_rows_by_number_slice_index_and_mask(index, rows):
    whole = gold_table()
    part = whole[index]
    assert part.row.tolist() == rows and len(part) == len(rows)
    assert part.info is whole.info
    for name, column in part.columns().items():
        assert torch.equal(column, getattr(whole, name)[torch.tensor(rows, dtype=torch.long)]), name


@pytest.mark.parametrize("index", [6, -7])
def test_row_that_is_not_there(index):
    with pytest.raises(IndexError):
        gold_table()[index]


def test_iteration_ends():
    assert [part.row.tolist() for part in gold_table(3)] == [[0], [1], [2]]


def test_table_is_frozen():
    with pytest.raises(AttributeError):
        table().theta = torch.zeros(3, 2)


@pytest.mark.parametrize(("n", "fraction", "second"), [(50, 0.2, 10), (7, 0.5, 4), (5, 0.0, 0)])
def test_split_is_disjoint_and_complete(n, fraction, second):
    first, held_out = table(n).split(fraction, seed=3)
    assert len(held_out) == second
    assert sorted([*first.row.tolist(), *held_out.row.tolist()]) == list(range(n))
    assert same_bits(held_out, table(n).split(fraction, seed=3)[1])
    if second > 5:
        assert not same_bits(held_out, table(n).split(fraction, seed=4)[1])


def test_moving_to_a_device_keeps_everything():
    moved = gold_table().to("meta")
    assert {column.device.type for column in moved.columns().values()} == {"meta"}
    assert same_bits(gold_table().to("cpu"), gold_table())


def test_concat_stacks_rows_made_elsewhere():
    both = Simulations.concat([table(4, seed=1), table(3, seed=2)])
    assert len(both) == 7 and both.row.unique().tolist() == sorted(both.row.tolist())
    assert torch.equal(both.x, torch.cat([table(4, seed=1).x, table(3, seed=2).x]))


def test_concat_matches_parameters_by_name():
    one = gold_table()
    other = one.reordered([B, A])
    assert [p.name for p in other.info.parameters] == ["b", "a"]
    both = Simulations.concat([one, other])
    for name in ("theta", "theta_alt", "joint_score", "x"):
        column = getattr(both, name)
        assert torch.equal(column[:6], column[6:]), name
    assert not torch.equal(other.theta, one.theta), "saboteur: stacked as they lie, the columns would differ"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (table()[:0], None),
        (Simulations.from_arrays(*reference(5), parameters=[A, Parameter("c", 0, 1)]), ["no parameter 'b'"]),
        (Simulations.from_arrays(reference(5)[0], np.zeros((5, 1)), parameters=BOX), ["x", "(5, 1)", "(n, 2)"]),
        (Simulations.from_arrays(*reference(5), parameters=BOX, z=np.zeros((5, 1))), ["batch 1", "'z'"]),
    ],
)
def test_concat_refuses_what_does_not_fit(other, words):
    if words is None:
        assert len(Simulations.concat([table(), other])) == 50
        return
    with pytest.raises(InputError) as caught:
        Simulations.concat([table(), other])
    assert all(word in str(caught.value) for word in words)


def test_concat_refuses_the_same_rows_twice():
    rows = simulate(LinearGaussian(), 30, seed=1, progress=False)
    assert same_bits(Simulations.concat([rows[:10], rows[10:]]), rows)
    with pytest.raises(InputError, match=r"duplicate rows.*seed 1"):
        Simulations.concat([rows, rows[3:5]])


def test_concat_of_two_campaigns_forgets_what_they_do_not_share():
    wide = Independent(Normal(torch.zeros(1).double(), 2.0), 1)
    runs = [
        simulate(LinearGaussian(), 5, seed=seed, proposal=prior, progress=False)
        for seed, prior in [(1, None), (2, None), (2, wide)]
    ]
    assert Simulations.concat(runs[:2]).info.proposal is not None
    mixed = Simulations.concat([runs[0], runs[2]]).info
    assert mixed.proposal is None and mixed.seed is None


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda x: np.asarray(x, dtype=np.float64), torch.float64),
        (lambda x: np.asarray(x, dtype=np.float32), torch.float32),
        (lambda x: torch.tensor(x, dtype=torch.float64), torch.float64),
        (lambda x: x.tolist(), torch.float64),
        (lambda x: x.astype(">f8"), torch.float64),
        (lambda x: np.broadcast_to(x[:, :1], x.shape), torch.float64),
        (lambda x: np.ascontiguousarray(x[:, ::-1])[:, ::-1], torch.float64),
        (lambda x: np.asarray(x, dtype=np.int32), torch.float64),
        (lambda x: np.asarray(abs(x), dtype=np.uint32), torch.float64),
        (lambda x: x > 0, torch.float64),
    ],
)
def test_numbers_of_every_kind_are_kept(make, dtype):
    theta, x = reference(20)
    given = make(100 * x)
    rows = Simulations.from_arrays(
        make(100 * theta).__class__(theta.tolist()) if isinstance(given, list) else theta, given
    )
    assert rows.x.dtype == dtype and rows.theta.dtype == torch.float64
    assert np.array_equal(rows.x.numpy(), np.asarray(given))


def test_table_does_not_change_with_the_array_it_came_from():
    theta, x = reference(20)
    rows = Simulations.from_arrays(theta, x)
    x[:] = 0
    theta[:] = 0
    assert rows.x.abs().min() > 0 and rows.theta.abs().min() > 0


@pytest.mark.parametrize("number", [2**24 + 1, 2**53 - 1, -(2**53) + 1])
def test_whole_numbers_are_kept_exactly(number):
    rows = Simulations.from_arrays(reference(1)[0], np.array([[number]]))
    assert int(rows.x) == number


@pytest.mark.parametrize("number", [2**53 + 1, -(2**63), 2**63 - 1])
def test_whole_numbers_that_would_be_rounded_are_refused(number):
    with pytest.raises(InputError, match=r"x has whole numbers of 2\*\*53 or more"):
        Simulations.from_arrays(reference(1)[0], np.array([[number]]))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"latents": [1, 2]}, ["unknown columns ['latents']", "joint_score"]),
        ({"joint_score": np.zeros((4, 3))}, ["joint_score", "(4, 3)", "(4, 2)"]),
        ({"joint_log_ratio": np.zeros((4, 1))}, ["theta_alt", "belong together"]),
        ({"theta_alt": np.zeros((4, 2)), "joint_log_ratio": np.zeros((4, 1))}, ["theta_alt", "(4, 2)"]),
        ({"z": np.zeros((3, 1))}, ["z has 3 rows", "theta has 4"]),
        ({"z": [["a"]] * 4}, ["z", "numbers"]),
        ({"z": [[1], [1, 2], [1], [1]]}, ["z", "numbers"]),
        ({"categories": 3}, ["x", "(4, 2)", "class label", "(n, 1)"]),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, words):
    with pytest.raises(InputError) as caught:
        table(4, **columns)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("label", [-1, 3, 0.5, np.inf])
def test_class_label_out_of_range_names_the_row(label):
    x = np.array([[0.0], [2], [np.nan], [label]])
    with pytest.raises(InputError, match=r"row 3 is .*label from 0 to 2"):
        Simulations.from_arrays(reference(4)[0], x, categories=3)
    assert Simulations.from_arrays(reference(3)[0], x[:3], categories=3).valid.tolist() == [True, True, False]


def test_status_tells_what_is_usable():
    theta, x = reference(4)
    x[1, 0], x[2, 1] = np.nan, np.inf
    rows = Simulations.from_arrays(theta, x)
    assert rows.status.tolist() == [OK, INVALID, INVALID, OK]
    assert rows[rows.valid].row.tolist() == [0, 3]


def test_few_rows_without_names_are_not_called_transposed():
    assert len(Simulations.from_arrays(*reference(1)).info.parameters) == 2


def test_invented_parameters_hold_the_data():
    theta, x = reference(30)
    theta[:, 1] = 7
    low_high = [(p.low, p.high) for p in Simulations.from_arrays(theta, x).info.parameters]
    assert low_high[0] == (theta[:, 0].min(), theta[:, 0].max())
    assert low_high[1][0] == 7 < low_high[1][1]


def test_proposal_lends_its_names():
    rows = Simulations.from_arrays(*reference(5), proposal=UniformPrior(BOX))
    assert rows.info.parameters == BOX and rows.info.proposal is not None


def test_npz_returns_every_column(tmp_path):
    gold_table().to_npz(tmp_path / "rows.npz")
    back = Simulations.from_npz(tmp_path / "rows.npz", parameters=BOX, designs=[Parameter("angle", 0, 100)])
    assert same_bits(back, gold_table()) and back.info == gold_table().info


def test_npz_without_x_is_refused(tmp_path):
    np.savez(tmp_path / "rows.npz", theta=np.zeros((3, 1)))
    with pytest.raises(InputError, match=r"rows.npz has no array \['x'\]; found \['theta'\]"):
        Simulations.from_npz(tmp_path / "rows.npz")


def test_csv_columns_are_matched_by_name(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("x1, b,angle,x2 ,a\n1,2,3,4,5\n\n6,7,8,nan,10\n")
    rows = Simulations.from_csv(file, parameters=BOX, designs=[Parameter("angle", 0, 100)])
    assert rows.theta.tolist() == [[5, 2], [10, 7]] and rows.design.tolist() == [[3], [8]]
    assert rows.x[0].tolist() == [1, 4] and rows.valid.tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2\n3,4\n", ["first line must name the columns"]),
        ("", ["first line must name the columns"]),
        ("a,b,x\n1,2,3\n1,2\n", ["line 3", "expected 3 numbers"]),
        ("a,b,x\n1,2,three\n", ["line 2", "three"]),
        ("a,x\n1,2\n", ["['b']", "header"]),
    ],
)
def test_csv_errors_name_file_and_line(tmp_path, text, words):
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        Simulations.from_csv(file, parameters=BOX)
    assert all(word in str(caught.value) for word in [*words, "rows.csv"])


def test_reordered_is_by_name_and_drops_the_proposal():
    rows = Simulations.from_arrays(*reference(5), proposal=UniformPrior(BOX))
    swapped = rows.reordered([B, A])
    assert torch.equal(swapped.theta, rows.theta[:, [1, 0]]) and swapped.info.proposal is None
    assert rows.reordered(BOX) is rows


def test_designs_are_matched_by_name_too():
    depth, angle = Parameter("depth", 0, 9), Parameter("angle", 0, 100)
    theta, x = reference(5)
    pair = np.stack([np.arange(5.0), np.arange(50.0, 55.0)], 1)
    kinds = {"parameters": BOX, "designs": [depth, angle], "proposal": UniformPrior(BOX)}
    one = Simulations.from_arrays(theta, x, design=pair, **kinds)
    other = one.reordered(BOX, [angle, depth])
    assert torch.equal(other.design, one.design.flip(1)) and other.info.designs == (angle, depth)
    assert other.info.proposal is one.info.proposal and torch.equal(other.theta, one.theta)
    both = Simulations.concat([one, other])
    assert torch.equal(both.design, one.design.repeat(2, 1)) and one.reordered(BOX, [depth, angle]) is one
    with pytest.raises(InputError, match="angel"):
        one.reordered(BOX, [depth, Parameter("angel", 0, 1)])


def test_info_returns_from_plain_data():
    info = Info(
        BOX, (Parameter("k", 0, 3, integer=True, latex=r"\kappa"),), UniformPrior(BOX), 3, "Toy", "2", {"n": 3}, 2**62
    )
    back = Info.from_json(json.loads(json.dumps(info.to_json())))
    assert back.to_json() == info.to_json() and back.parameters == BOX and back.seed == 2**62
    theta = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert torch.equal(back.proposal.log_prob(theta), info.proposal.log_prob(theta))


def test_toy_is_what_it_says():
    theta, x = reference(4000)
    assert abs((x - theta).std() - 0.3) < 0.01 and shifted(theta, np.random.default_rng(1)).shape == x.shape
