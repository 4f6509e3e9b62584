import math
from dataclasses import FrozenInstanceError

import pytest

from sbi_core import InputError, Parameter
from sbi_core.errors import nearest
from sbi_core.parameters import match, names

A, B, C = (Parameter(name, 0, 1) for name in "abc")


@pytest.mark.parametrize("name", ["", "../../x", "/abs", "nul\0", "x" * 101, "two words", "1st", 3])
def test_unusable_name_is_refused(name):
    with pytest.raises(InputError, match="name"):
        Parameter(name, 0, 1)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (math.nan, 1), (0, math.nan)])
def test_empty_range_is_refused(low, high):
    with pytest.raises(InputError, match="'mass': low = "):
        Parameter("mass", low, high)


def test_parameter_is_frozen():
    with pytest.raises(FrozenInstanceError):
        A.low = 3


@pytest.mark.parametrize(
    ("options", "label"), [({}, "m"), ({"unit": "GeV"}, "m [GeV]"), ({"latex": r"\mu", "unit": "GeV"}, r"$\mu$ [GeV]")]
)
def test_label(options, label):
    assert Parameter("m", 0, 1, **options).label == label


def test_match_is_by_name():
    assert match([A, B, C], [C, A, B], "the file") == [1, 2, 0]
    assert names([A, C]) == ["a", "c"]


@pytest.mark.parametrize(
    ("wanted", "given", "words"),
    [
        ([A, B], [A, C], ["the file", "no parameter 'b'", "Known: a, c"]),
        ([A], [A, B], ["the file", "['b']", "beyond", "['a']"]),
    ],
)
def test_match_names_the_odd_one(wanted, given, words):
    with pytest.raises(InputError) as caught:
        match(wanted, given, "the file")
    assert all(word in str(caught.value) for word in words)


def test_nearest_guesses_only_what_is_near():
    assert nearest("alise", ["alice", "carl"]).startswith("did you mean 'alice'?")
    assert nearest("xyz", ["alice", "carl"]) == "Known: alice, carl."
