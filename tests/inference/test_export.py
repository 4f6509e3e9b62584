import json
import sys
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch

from sbi_core import InputError, infer
from sbi_core.simulators import LinearGaussian

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it announces its next generation
    import arviz

xarray = pytest.importorskip("xarray")
WORLD = LinearGaussian(2)
X = torch.tensor([1.0, -2.0])
NAMES = [p.name for p in WORLD.parameters]


def posterior(method="hmc", **options):
    return infer(WORLD, WORLD.prior, X, method=method, seed=1, **options)


def groups(data):
    """Group name -> dataset, of either generation."""
    if hasattr(data, "groups") and callable(data.groups):
        return {name: getattr(data, name) for name in data.groups()}
    return {name: node.to_dataset() for name, node in data.children.items()}


def test_chains_keep_their_draws():
    found = posterior(n=50, chains=6)
    data = groups(found.to_arviz())
    assert dict(data["posterior"].sizes) == {"chain": 6, "draw": 50}
    assert np.array_equal(data["posterior"][NAMES[1]], found.draws[..., 1].numpy())
    assert np.allclose(data["sample_stats"]["lp"], found.log_prob(found.draws).numpy())
    assert np.array_equal(data["observed_data"]["x_obs"], X)
    about = data["posterior"].attrs
    assert json.loads(about["verdicts"]) == dict(found.verdicts) and json.loads(about["flags"]) == list(found.flags)
    assert about["seed"] == "1" and about["inference_library"] == "sbi-core"


@pytest.mark.parametrize("method", ["grid", "importance"])
def test_what_has_no_equal_draws_is_drawn(method):
    found = posterior(method)
    data = groups(found.to_arviz())["posterior"]
    assert dict(data.sizes) == {"chain": 4, "draw": 1000}
    for k, name in enumerate(NAMES):
        z = (float(data[name].mean()) - float(found.mean[k])) / float(found.stddev[k]) * 4000**0.5
        assert abs(z) < 5.6, "draws of draws: sqrt(2) times the error"
        assert float(data[name].std()) == pytest.approx(float(found.stddev[k]), rel=4 / 8000**0.5 * 1.5)


def test_a_batch_and_a_marginal():
    many = infer(WORLD, WORLD.prior, torch.stack([X, X, -X]), batch=True, method="hmc", n=20, chains=2, seed=1)
    assert dict(groups(many.to_arviz())["posterior"].sizes) == {"chain": 2, "draw": 20, "observation": 3}
    alone = groups(many.marginal(NAMES[1:]).to_arviz())
    assert list(alone["posterior"]) == NAMES[1:] and "sample_stats" not in alone


def test_what_arviz_says_is_what_we_say():
    found = posterior(chains=20)
    table = arviz.summary(found.to_arviz())
    said = found.verdicts["chains"]
    assert f"{table['r_hat'].max():.2f}" == said.split("R-hat ")[1][:4]
    assert table["ess_bulk"].min() == pytest.approx(float(said.split("draws ")[1].split()[0]), rel=0.02)


def test_files_are_read_by_both_generations(tmp_path):
    found = posterior(n=50, chains=6)
    path = found.to_netcdf(tmp_path / "posterior.nc")
    assert [entry.name for entry in tmp_path.iterdir()] == ["posterior.nc"]
    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        assert np.array_equal(tree["posterior"][NAMES[0]], found.draws[..., 0].numpy())
        assert json.loads(tree["posterior"].attrs["verdicts"]) == dict(found.verdicts)
    again = arviz.from_netcdf(str(path))
    assert np.array_equal(groups(again)["posterior"][NAMES[0]], found.draws[..., 0].numpy())


def test_the_next_generation_gets_a_tree(monkeypatch):
    from arviz_stats import summary

    monkeypatch.setitem(sys.modules, "arviz", ModuleType("arviz"))
    tree = posterior(n=50, chains=6).to_arviz()
    assert isinstance(tree, xarray.DataTree)
    assert list(summary(tree).index) == NAMES


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(InputError, match=r"xarray, which is not installed: pip install 'sbi-core\[arviz\]'"):
        posterior(n=10, chains=2).to_arviz()
