"""Estimators on disk: weights as safetensors, everything else as JSON, and no code."""

import copy
import hashlib
import json
import os
import subprocess
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from sbi_core.errors import InputError, StoreError
from sbi_core.estimators.embeddings import Embedding, as_embedding
from sbi_core.estimators.estimator import Estimator
from sbi_core.inference.checks.familiar import Familiar
from sbi_core.parameters import Parameter
from sbi_core.store import package_versions

FORMAT = 1

FAMILIAR = "familiar/"
"""What the names of tensors begin with that say which x was simulated."""


def save_estimator(estimator: Estimator, folder: str | Path) -> Path:
    """Write an estimator: `model.json`, written last and atomically, names and hashes its weights file.

    Raises:
        StoreError: if a file cannot be written, to a full disk for instance; what the folder held before is intact.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    familiar = {} if estimator.familiar is None else estimator.familiar.state
    tensors = {**estimator.state_dict(), **{f"{FAMILIAR}{key}": value for key, value in familiar.items()}}
    weights = save({key: value.contiguous().cpu() for key, value in tensors.items()})
    digest = hashlib.sha256(weights).hexdigest()
    weights_name = f"weights-{digest[:16]}.safetensors"
    content = {
        "format": FORMAT,
        "estimator": estimator.describe(),
        "provenance": estimator.provenance,
        "packages": package_versions(),
        "git": _commit(),
        "answers": _answers(estimator),
        "weights": weights_name,
        "weights_sha256": digest,
    }
    new = not (folder / weights_name).exists()
    replace_file(folder / weights_name, weights)
    try:
        replace_file(folder / "model.json", json.dumps(content | {"sha256": _digest(content)}, indent=1).encode())
    except StoreError:
        if new:
            (folder / weights_name).unlink()
        raise
    for old in folder.glob("weights-*.safetensors"):
        if old.name != weights_name:
            old.unlink()
    return folder


def load_estimator(folder: str | Path, *, embedding: nn.Module | None = None) -> Estimator:
    """Read an estimator back, in evaluation mode on the CPU.

    Args:
        folder: where it was saved.
        embedding: a module like the one of your own that the estimator was built with, as no code is saved; its
            weights are read, and a copy is taken (for an ensemble, one for each member).

    Raises:
        StoreError: if a file is missing, truncated or altered, or of another format version.
        InputError: if a module of your own is missing, superfluous, or not the one that was trained.
    """
    folder = Path(folder)
    path = folder / "model.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        claimed = content.pop("sha256")
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{folder} holds no model: {path.name} is missing.") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StoreError(f"{path} is truncated or altered ({error}).") from None
    if content.get("format") != FORMAT:
        raise StoreError(f"{path}: format version found {content.get('format')}, supported {FORMAT}.")
    if claimed != _digest(content):
        raise StoreError(f"{path} was altered: its checksum is wrong.")
    weights_path = folder / content["weights"]
    weights = weights_path.read_bytes() if weights_path.is_file() else b""
    if hashlib.sha256(weights).hexdigest() != content["weights_sha256"]:
        raise StoreError(f"{weights_path} is missing, truncated or altered: its checksum is wrong.")
    estimator, tensors = _build(content["estimator"], embedding), load(weights)
    familiar = {key: tensors.pop(key) for key in list(tensors) if key.startswith(FAMILIAR)}
    if familiar:  # older files have none
        estimator.familiar = Familiar({key.removeprefix(FAMILIAR): value for key, value in familiar.items()})
    try:
        estimator.load_state_dict(tensors)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if embedding is None:
            raise StoreError(f"{weights_path} does not fit {path}: {said}") from None
        raise InputError(f"embedding {type(embedding).__name__} does not fit the weights in {folder}: {said}") from None
    _check_answers(estimator, content.get("answers", []), embedding)
    estimator.provenance = content["provenance"]
    return estimator.eval()


def _build(described: dict[str, Any], own: nn.Module | None) -> Estimator:
    known: dict[str, Any] = {cls.__name__: cls for cls in Estimator.__subclasses__()}
    if described["class"] not in known:
        raise InputError(f"unknown estimator class {described['class']!r}; known: {', '.join(sorted(known))}.")
    if "members" in described:
        members = [_build(member, own) for member in described["members"]]
        for member in members:
            member.trained.fill_(True)  # as their weights will say
        return known[described["class"]](members)
    options: dict[str, Any] = {"counted": True} if described.get("counted") else {}
    if "embedding" in described:
        options["embedding"] = _embedding(described["embedding"], described["x_shape"], own)
    return known[described["class"]](
        [Parameter(**p) for p in described["parameters"]],
        described["x_shape"],
        designs=[Parameter(**p) for p in described["designs"]],
        categories=described["categories"],
        **options,
        **described["options"],
    )


def _embedding(described: dict[str, Any], x_shape: list[int], own: nn.Module | None) -> Any:
    """What the constructor gets as embedding."""
    if "own" not in described:
        return described
    name = described["own"]
    if own is None:
        raise InputError(
            f"this estimator reads x with a module of your own, {name}, and no code was saved. Give an instance: "
            f"load_estimator(folder, embedding={name}(...))."
        )
    return as_embedding(copy.deepcopy(own), x_shape, symmetry=described["symmetry"], pooled=described["pooled"])


def _answers(estimator: Estimator) -> list[list[float]]:
    """What each module of the user's own, in evaluation mode, makes of a ramp from -3 to 3."""
    members = getattr(estimator, "members", getattr(estimator, "parts", [estimator]))
    found = []
    for embedding in (member.embedding for member in members):
        if isinstance(embedding, Embedding) and "own" in embedding.described:
            ramp = torch.linspace(-3, 3, prod(embedding.x_shape)).reshape(1, *embedding.x_shape)
            with torch.no_grad():
                found.append(copy.deepcopy(embedding).cpu().eval()(ramp)[0].tolist())
    return found


def _check_answers(estimator: Estimator, expected: list[list[float]], own: nn.Module | None) -> None:
    """Raise `InputError` unless a user's own module answers as the trained one did."""
    if own is None:
        return
    name, found = type(own).__name__, torch.tensor(_answers(estimator))
    if not len(found):
        raise InputError(f"embedding {name} is given, and this estimator was trained without a module of your own.")
    known = torch.tensor(expected)
    if not torch.allclose(found, known, rtol=1e-3, atol=1e-4 * float(known.abs().max()), equal_nan=True):
        raise InputError(f"embedding {name} has the weights of the one that was trained, and computes otherwise.")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, or leave what was there before as it was and raise `StoreError`."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written: {error}. It needs {len(content)} bytes; make room, or choose another folder. "
            "What was there before is as it was."
        ) from error


def _commit() -> str | None:
    """The checkout this code runs from, "-dirty" if files were changed; `None` for an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    ask = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
