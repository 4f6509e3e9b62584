"""What tells two programs apart, and what does not: in one process and in another."""

import copy
import functools
import json
import logging
import os
import subprocess
import sys
import threading
import time
import types
from collections import Counter, deque
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from toys import BOX, run

from sbi_core import FunctionSimulator, Simulator, StoreError
from sbi_core.identity import identity
from sbi_core.simulators import LinearGaussian

SOURCE = """
import functools
import math
from dataclasses import dataclass

import numpy as np
import torch

import {name}_part as part
from {name}_part import outer

NUMBER = 2.0
ARRAY = np.arange({size}.0)
OBJECTS = np.array([1, "two"], dtype=object)
TABLE = {{"a": [1.0, 2.0], "b": {{"deep", "set", "of", "words"}}}}
UNUSED = 5
torch.manual_seed(1)
NET = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(0.1)).double()
count = 0


class Base:
    level = 1.0

    def up(self):
        return self.level + 1


@dataclass
class Shape(Base):
    width: float = 1.0

    @property
    def area(self):
        return self.width**2

    @staticmethod
    def half(x):
        return x / 2


SHAPE = Shape(3.0)


@functools.lru_cache
def cached(x):
    return x + 1


def helper(x, power=2):
    return x**power if x.sum() < 1e9 else recursive(x)


def recursive(x):
    return helper(x / 2)


def simulate(theta, rng):
    "What it does."
    global count
    count += 1
    inner = lambda y: y * ARRAY[0] + NUMBER  # noqa
    with torch.no_grad():
        net = NET(torch.from_numpy(theta)).numpy()[:, :2]
    x = helper(inner(theta)) + TABLE["a"][0] + net + part.shift(theta) + outer(theta) + part.CONSTANT
    return x + Shape.half(SHAPE.area) + cached(1) + len(OBJECTS) + math.pi + np.sin(theta)
"""
PART = """
CONSTANT = 3.0


def shift(theta):
    return theta + _offset()


def _offset():
    return 1.0


def outer(theta):
    return 2 * theta
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Import the module above, changed, as a user's own file; each time under a folder of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(change=(), part=()):
        source, other = SOURCE, PART
        for old, new in change:
            assert old in source
            source = source.replace(old, new)
        for old, new in part:
            assert old in other
            other = other.replace(old, new)
        for name in ("world", "world_part"):
            sys.modules.pop(name, None)
        made = {}
        (tmp_path / "world_part.py").write_text(other)
        (tmp_path / "world.py").write_text(source.format(name="world", size=10))
        for name in ("world_part", "world"):
            made[name] = sys.modules[name] = types.ModuleType(name)
            made[name].__file__ = str(tmp_path / f"{name}.py")
            exec(compile((tmp_path / f"{name}.py").read_text(), made[name].__file__, "exec"), vars(made[name]))
        return made["world"]

    yield load
    for name in ("world", "world_part"):
        sys.modules.pop(name, None)


CHANGES = {
    "own code": [("math.pi", "math.e")],
    "attribute of a library": [("np.sin", "np.cos")],
    "nested function": [("y * ARRAY", "y / ARRAY")],
    "global number": [("NUMBER = 2.0", "NUMBER = 2.5")],
    "global array": [("np.arange({size}.0)", "np.arange({size}.0) + 1")],
    "array of objects": [('"two"', '"three"')],
    "global table": [("[1.0, 2.0]", "[1.0, 2.1]")],
    "set in a table": [('"words"', '"sentences"')],
    "weights": [("manual_seed(1)", "manual_seed(2)")],
    "part of a network": [("Dropout(0.1)", "Dropout(0.2)")],
    "helper": [("return x**power", "return -(x**power)")],
    "default": [("power=2", "power=3")],
    "helper of a helper": [("x / 2)", "x / 3)")],
    "object": [("Shape(3.0)", "Shape(4.0)")],
    "method": [("return x / 2\n", "return x / 4\n")],
    "property": [("self.width**2", "self.width**3")],
    "base class": [("level = 1.0", "level = 2.0")],
    "under a cache": [("return x + 1\n", "return x + 2\n")],
}
PARTS = {
    "imported function": [("2 * theta", "3 * theta")],
    "function of an imported module": [("theta + _offset", "theta - _offset")],
    "helper in an imported module": [("return 1.0", "return 1.5")],
    "constant of an imported module": [("CONSTANT = 3.0", "CONSTANT = 4.0")],
}


def test_what_a_function_uses_is_part_of_it(module):
    found = {"as it is": identity(module().simulate)}
    assert identity(module().simulate) == found["as it is"]
    found |= {name: identity(module(change).simulate) for name, change in CHANGES.items()}
    found |= {name: identity(module(part=change).simulate) for name, change in PARTS.items()}
    same = [names for names, n in Counter(found.values()).items() if n > 1]
    assert not same, [name for name, value in found.items() if value in same]


@pytest.mark.parametrize(
    "change",
    [
        [("UNUSED = 5", "UNUSED = 6")],
        [("    count += 1\n", "    # counted\n    count += 1\n\n")],
        [("count = 0", "count = 7")],
        [("return self.level + 1", "return (self.level + 1)")],
        [("What it does.", "What it does, in other words.")],
    ],
    ids=["unused", "comment", "what it writes itself", "layout", "docstring"],
)
def test_what_makes_no_difference_is_not(module, change):
    assert identity(module().simulate) == identity(module(change).simulate)


def test_running_a_function_does_not_change_it(module):
    world = module()
    before = identity(world.simulate)
    world.simulate(np.zeros((3, 2)), None)
    assert world.count == 1 and world.cached.cache_info().currsize == 1 and identity(world.simulate) == before


def test_it_is_the_same_in_every_process(module, tmp_path):
    here = identity(module().simulate)
    for seed in ("0", "1"):
        text = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import world\n"
        text += "from sbi_core.identity import identity; print(identity(world.simulate))"
        done = subprocess.run(
            [sys.executable, "-c", text],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here


def test_lambdas_closures_and_partials():
    def scaled(scale):
        return lambda theta, rng: theta * scale

    made = [scaled(1.0), scaled(2.0), lambda t, r: t, lambda t, r: -t, functools.partial(scaled, 1.0)]
    made += [functools.partial(scaled, 2.0), functools.partial(scaled, scale=2.0), scaled(None), scaled(np.float32(1))]
    made += [scaled(torch.ones(2, dtype=torch.bfloat16)), scaled(torch.ones(2)), scaled(torch.ones(2).to_sparse())]
    assert len({identity(one) for one in made}) == len(made) - 1, "a sparse tensor is its numbers"
    assert identity(scaled(1.0)) == identity(scaled(1.0))
    assert identity(scaled(numbers := [1, 2])) == identity(scaled(list(numbers)))


def test_what_libraries_make_of_a_function_is_known_by_it():
    plus, minus = (lambda x: x + 1), (lambda x: x - 1)
    for wrap in (np.vectorize, torch.func.vmap, functools.lru_cache, functools.cache, staticmethod):
        assert identity(wrap(plus)) == identity(wrap(plus)) != identity(wrap(minus))
    board = LinearGaussian(1)
    assert identity(board.sample) != identity(LinearGaussian(2).sample) != identity(board.mine)
    assert identity(np.exp) != identity(np.log) and identity(len) != identity(sum)


class Own:
    """Holds what it may: a lock, a log, a cache, itself."""

    def __init__(self, scale):
        self.scale, self.me, self.log, self.lock = scale, self, logging.getLogger("own"), threading.Lock()
        self._cache = [time.time()]

    def __call__(self, theta, rng):
        return theta * self.scale


@dataclass(frozen=True, slots=True)
class Slotted:
    scale: float

    def __call__(self, theta, rng):
        return theta * self.scale


@pytest.mark.parametrize("kind", [Own, Slotted])
def test_objects(kind):
    assert identity(kind(1.0)) == identity(kind(1.0)) != identity(kind(2.0))
    bound = [kind(1.0).__call__, kind(1.0).__call__, kind(2.0).__call__]
    assert identity(bound[0]) == identity(bound[1]) != identity(bound[2])


def test_large_networks_are_quick():
    """10^6 weights in milliseconds; the shortest of five, as others use the processor too."""
    net = torch.nn.Linear(1000, 1000)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        first = identity(net)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1
    with torch.no_grad():
        net.weight[500, 500] += 1e-3
    assert identity(net) != first


class Holder:
    """Holds the simulator that calls it, as objects around an experiment do."""

    def __init__(self, scale):
        self.scale = scale
        self.simulator = FunctionSimulator(self.run, BOX)

    def run(self, theta, rng):
        return self.scale * rng.standard_normal(theta.shape)


class Shortcut(LinearGaussian):
    def __init__(self, dims):
        super().__init__(dims)
        self.step = self.sample


_CACHE = {}


def around(theta, rng):
    _CACHE[len(_CACHE)] = os.environ.get("HOME"), sys.path
    return theta


def test_what_holds_itself_ends():
    assert Holder(1.0).simulator.settings == Holder(1.0).simulator.settings != Holder(2.0).simulator.settings
    assert Shortcut(1).settings == Shortcut(1).settings and identity(Shortcut(1)) != identity(Shortcut(2))
    deep = []
    for _ in range(5000):
        deep = [deep, None]
    assert len(identity(deep)) == 16


def test_caches_and_what_surrounds_the_process_are_left_out(monkeypatch):
    before = identity(around)
    around(np.zeros(1), None)
    monkeypatch.setenv("SOMETHING", "else")
    monkeypatch.syspath_prepend("/elsewhere")
    assert identity(around) == before


@pytest.mark.parametrize(
    "pair",
    [
        (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
        (range(3), range(4)),
        (Fraction(1, 3), Fraction(1, 4)),
        (torch.float32, torch.float64),
        (deque([1, 2]), deque([2, 1])),
    ],
)
def test_small_things_are_known_by_value(pair):
    first, second = pair
    assert identity(copy.deepcopy(first)) == identity(first) != identity(second)


SIGMA = 0.3


def blurred(theta, rng):
    return theta + SIGMA * rng.standard_normal(theta.shape)


class Mine(Simulator):
    parameters = BOX

    def __init__(self, function):
        self.function = function

    def sample(self, theta, design, generator):
        return torch.from_numpy(self.function(theta.numpy(), np.random.default_rng(0))), None


@pytest.mark.parametrize("wrap", [lambda f: FunctionSimulator(f, BOX), Mine], ids=["FunctionSimulator", "subclass"])
def test_a_store_made_with_other_constants_is_not_continued(wrap, tmp_path, monkeypatch):
    run(wrap(blurred), 20, store=tmp_path / "s")
    json.dumps(wrap(blurred).settings)
    run(wrap(blurred), 30, store=tmp_path / "s")
    monkeypatch.setitem(globals(), "SIGMA", 0.4)
    with pytest.raises(StoreError, match="belongs to another campaign"):
        run(wrap(blurred), 40, store=tmp_path / "s")
