import math
from dataclasses import FrozenInstanceError, replace

import pytest

from sbi_core import InputError
from sbi_core.design.gain import Gain, bracketed

SOUND = Gain(0.5, 0.01, "lower", "sPCE", ceiling=math.log(1025), simulations=1024, evaluations=10, seconds=2.0)
ABOVE = Gain(0.52, 0.01, "upper", "nested Monte Carlo")


def test_record_keeps_what_it_is_told():
    assert (SOUND.value, SOUND.error, SOUND.direction, SOUND.ceiling) == (0.5, 0.01, "lower", math.log(1025))
    assert SOUND.flags == () and SOUND.excess is None and ABOVE.ceiling == math.inf
    with pytest.raises(FrozenInstanceError):
        SOUND.value = 0.6


@pytest.mark.parametrize(("side", "text"), [("lower", ">= 0.5"), ("upper", "<= 0.5"), ("none", "0.5")])
def test_text_says_which_side(side, text):
    assert str(replace(SOUND, direction=side)) == f"{text} +- 0.01 (sPCE)"


WRONG = {
    "NaN": ({"value": math.nan}, "is nan"),
    "error NaN": ({"error": math.nan}, "not finite"),
    "infinite": ({"value": math.inf, "ceiling": math.inf}, "is inf"),
    "negative": ({"value": -0.031}, "below zero"),
    "ceiling": ({"value": math.log(1025) - 0.69}, "ceiling"),
}
RIGHT = {
    "negative within errors": {"value": -0.029},
    "zero to rounding": {"value": -1e-15, "error": 1e-17},
    "below the ceiling": {"value": math.log(1025) - 0.70},
    "no ceiling": {"value": 30.0, "ceiling": math.inf},
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_flag(change, words):
    (flag,) = replace(SOUND, **change).flags
    assert flag.startswith("EIG bound 'sPCE'") and words in flag


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_no_flag(change):
    assert replace(SOUND, **change).flags == ()


def test_flags_are_kept_and_come_once():
    told = replace(SOUND, value=-1.0, flags=("the first",))
    assert told.flags[0] == "the first" and len(told.flags) == 2 and replace(told, seconds=3.0).flags == told.flags


def test_bracket():
    assert bracketed(SOUND, ABOVE) == (SOUND, ABOVE)
    assert bracketed(replace(SOUND, value=0.56), ABOVE)[0].flags == (), "within errors"
    exact = [Gain(value, 0.0, side, "exact") for value, side in ((1e-16, "lower"), (0.0, "upper"))]
    assert bracketed(*exact)[0].flags == (), "to rounding"
    for one in bracketed(replace(SOUND, value=0.57, flags=("the first",)), ABOVE):
        assert "EIG bound: the lower one, 0.57" in one.flags[-1] and "above the upper one, 0.52" in one.flags[-1]
    assert bracketed(replace(SOUND, value=0.57, flags=("the first",)), ABOVE)[0].flags[0] == "the first"


@pytest.mark.parametrize("pair", [(ABOVE, SOUND), (SOUND, SOUND), (replace(SOUND, direction="none"), ABOVE)])
def test_bracket_needs_both_sides(pair):
    with pytest.raises(InputError, match="expected a lower and an upper bound, got"):
        bracketed(*pair)
