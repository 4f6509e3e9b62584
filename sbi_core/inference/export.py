"""Posteriors for ArviZ, of both its generations, and as netCDF files."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbi_core.errors import InputError
from sbi_core.inference.posterior import Posterior
from sbi_core.seeding import seeded

CHAINS, DRAWS = 4, 1000
"""As what independent draws are written, where the posterior is a grid or has weights."""


def to_datasets(posterior: Posterior) -> dict[str, Any]:
    """A posterior as named `xarray.Dataset`, arranged as ArviZ's schema wants it.

    Group "posterior" has one variable for each parameter, with the dimensions chain, draw and, of a batch, observation;
    "sample_stats" has `lp`, the log density in nats, where it is known; "observed_data" has x_obs. Draws of chains are
    written as they are. Of grids and weighted draws 4 times 1000 independent ones are drawn.

    Raises:
        InputError: without xarray.
    """
    xarray = _imported("xarray")
    draws = getattr(posterior, "draws", None)
    if draws is None or getattr(posterior, "log_weight", None) is not None:
        with seeded(posterior.seed or 0):
            draws = posterior.sample(torch.Size([CHAINS, DRAWS]))
    leading = ("chain", "draw", "observation")[: draws.ndim - 1]
    columns = {
        parameter.name: (leading, draws[..., k].numpy(force=True), {"units": parameter.unit, "latex": parameter.latex})
        for k, parameter in enumerate(posterior.parameters)
    }
    import sbi_core

    about = {
        "inference_library": "sbi-core",
        "inference_library_version": sbi_core.__version__,
        "seed": str(posterior.seed),
        "verdicts": json.dumps(dict(posterior.verdicts)),
        "flags": json.dumps(list(posterior.flags)),
    }
    found = {"posterior": xarray.Dataset(columns, attrs=about)}
    if posterior.has_density:
        with torch.no_grad():
            flat = draws.flatten(0, 1)
            density = torch.cat([posterior.log_prob(part) for part in flat.split(1000)]).reshape(draws.shape[:-1])
        found["sample_stats"] = xarray.Dataset({"lp": (leading, density.numpy(force=True))})
    if posterior.x_obs is not None:
        x_obs = np.asarray(posterior.x_obs)
        found["observed_data"] = xarray.Dataset({"x_obs": (tuple(f"x_{k}" for k in range(x_obs.ndim)), x_obs)})
    return found


def to_arviz(posterior: Posterior) -> Any:
    """An `arviz.InferenceData` (ArviZ below 1) or an `xarray.DataTree` (from 1 on) of `to_datasets`."""
    found, arviz = to_datasets(posterior), _imported("arviz")
    if hasattr(arviz, "InferenceData"):
        return arviz.InferenceData(**found)
    return _imported("xarray").DataTree.from_dict(found)


def to_netcdf(posterior: Posterior, path: str | Path) -> Path:
    """Write `to_datasets` as a netCDF4 file with one group each, which `arviz.from_netcdf` reads."""
    path = Path(path)
    found, xarray = to_datasets(posterior), _imported("xarray")
    for name in ("h5netcdf", "h5py"):
        _imported(name)
    partial = path.with_name(f"{path.name}.partial")
    xarray.DataTree.from_dict(found).to_netcdf(partial, engine="h5netcdf")
    partial.replace(path)
    return path


def _imported(name: str) -> Any:
    import importlib

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ announces its next generation whenever it is imported
            return importlib.import_module(name)
    except ImportError:
        raise InputError(f"this needs {name}, which is not installed: pip install 'sbi-core[arviz]'.") from None
