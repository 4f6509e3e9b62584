"""Estimators on disk: weights as safetensors, everything else as JSON, and no code."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from sbi_core.errors import InputError, StoreError
from sbi_core.estimators.estimator import Estimator
from sbi_core.parameters import Parameter
from sbi_core.store import package_versions

FORMAT = 1


def save_estimator(estimator: Estimator, folder: str | Path) -> Path:
    """Write an estimator: `model.json`, written last and atomically, names and hashes its weights file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({key: value.contiguous().cpu() for key, value in estimator.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    weights_name = f"weights-{digest[:16]}.safetensors"
    content = {
        "format": FORMAT,
        "estimator": estimator.describe(),
        "provenance": estimator.provenance,
        "packages": package_versions(),
        "weights": weights_name,
        "weights_sha256": digest,
    }
    _replace(folder / weights_name, weights)
    _replace(folder / "model.json", json.dumps(content | {"sha256": _digest(content)}, indent=1).encode())
    for old in folder.glob("weights-*.safetensors"):
        if old.name != weights_name:
            old.unlink()
    return folder


def load_estimator(folder: str | Path) -> Estimator:
    """Read an estimator back, in evaluation mode on the CPU.

    Raises:
        StoreError: if a file is missing, truncated or altered, or of another format version.
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
    estimator = _build(content["estimator"])
    estimator.load_state_dict(load(weights))
    estimator.provenance = content["provenance"]
    return estimator.eval()


def _build(described: dict[str, Any]) -> Estimator:
    known: dict[str, Any] = {cls.__name__: cls for cls in Estimator.__subclasses__()}
    if described["class"] not in known:
        raise InputError(f"unknown estimator class {described['class']!r}; known: {', '.join(sorted(known))}.")
    if "members" in described:
        members = [_build(member) for member in described["members"]]
        for member in members:
            member.trained.fill_(True)  # as their weights will say
        return known[described["class"]](members)
    return known[described["class"]](
        [Parameter(**p) for p in described["parameters"]],
        described["x_shape"],
        designs=[Parameter(**p) for p in described["designs"]],
        categories=described["categories"],
        **described["options"],
    )


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
