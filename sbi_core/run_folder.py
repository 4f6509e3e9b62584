"""The folder of one run: what it was asked, what is done already, and which requests would contradict it."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sbi_core.errors import InputError, StoreError
from sbi_core.settings import MANNER, RUN, Program

FORMAT = 1


def read_record(program: Program, folder: Path) -> dict[str, Any] | None:
    """Read `run.json`: plain data, written by `write_record`; `None` if the folder holds no run.

    Raises:
        StoreError: if it is broken, of another format or program, or the folder holds something else.
    """
    path = folder / "run.json"
    if not path.is_file():
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise StoreError(f"run_dir = {folder} is no run folder (it has no run.json); choose a new one.")
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, settings = record["format"], record["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is truncated or altered ({error}).") from None
    if found != FORMAT or not isinstance(settings, dict):
        raise StoreError(f"{path}: format version found {found}, supported {FORMAT}.")
    if (name := record.get("program", RUN.name)) != program.name:
        raise StoreError(f"run_dir = {folder} is a run of {name}, not of {program.name}; choose another.")
    return record


def write_record(program: Program, folder: Path, record: Mapping[str, Any]) -> None:
    """Write `run.json` atomically."""
    write_json(folder / "run.json", {"format": FORMAT, "program": program.name, **record})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data atomically; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays atomically as a NumPy archive."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        np.savez_compressed(file, **{name: np.asarray(value) for name, value in arrays.items()})  # type: ignore[arg-type]
    partial.replace(path)


def recall(
    program: Program, settings: Mapping[str, Any], asked: Mapping[str, Any], given: Collection[str], folder: Path
) -> dict[str, Any]:
    """Return the settings of a run folder, changed where a request may change them.

    Args:
        program: whose settings these are.
        settings: what the folder records.
        asked: the new request, with all its defaults.
        given: the keys that the request names itself, `study` or `training.max_epochs` for instance.
        folder: for the message.

    Raises:
        InputError: naming the key, if the request asks for something else than what was learned.
    """
    new = {key: asked[key] for key in program.observed if key in asked}  # that an older version did not have
    merged = {**new, **settings, **{key: asked[key] for key in MANNER if key in asked}}
    for key in sorted(given):
        root = "name" if key == "study" else key.split(".")[0]
        if root in program.observed:
            merged[root] = _overlaid(merged.get(root), asked.get(root), key.split(".")[1:])
        if root in (*program.observed, *MANNER):
            continue
        for name, found, wanted in _leaves(root, settings.get(root), asked.get(root)):
            if found != wanted and (key == "study" or f"{name}.".startswith(f"{key}.")):
                name = name.removesuffix("._target_")
                raise InputError(
                    f"{name} = {wanted} contradicts run_dir = {folder}, which was made with {name} = {found}. Choose "
                    "another run_dir, or leave the setting out."
                )
    return merged


def _overlaid(kept: Any, wanted: Any, path: list[str]) -> Any:
    """A setting, changed where a request names it: as a whole, by another `_target_`, or one option."""
    if not path or not isinstance(kept, Mapping) or not isinstance(wanted, Mapping):
        return wanted
    if path == ["_target_"]:
        return kept if kept.get("_target_") == wanted.get("_target_") else wanted
    return {**kept, path[0]: wanted.get(path[0])}


def _leaves(name: str, found: Any, wanted: Any) -> list[tuple[str, Any, Any]]:
    """Pair two settings, option by option."""
    if not isinstance(found, Mapping) or not isinstance(wanted, Mapping):
        return [(name, found, wanted)]
    keys = dict.fromkeys([*found, *wanted])
    return [leaf for key in keys for leaf in _leaves(f"{name}.{key}", found.get(key), wanted.get(key))]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
