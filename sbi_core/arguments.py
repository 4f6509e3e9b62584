"""The command line: what was given, checked before anything is run or written, and passed on to Hydra."""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sbi_core.errors import InputError, nearest
from sbi_core.settings import Program

CONFIG = "pkg://sbi_core.conf"
QUOTED = tuple("'\"[{$")


@dataclass(frozen=True)
class Request:
    """A checked command line.

    Attributes:
        arguments: what Hydra is to be called with.
        configs: the configuration of each job; empty if the command line only asks for help or information.
        given: the keys that the command line names itself.
        multirun: whether each job gets its own subfolder.
    """

    arguments: list[str]
    configs: list[DictConfig]
    given: frozenset[str]
    multirun: bool


def read_arguments(program: Program, arguments: Sequence[str]) -> Request:
    """Check the command line of a program.

    Raises:
        InputError: for a misspelt key, a value that is not among a group's files, or what Hydra cannot compose.
    """
    arguments = [_quoted(argument, program.paths) for argument in arguments]
    parsed = get_args_parser().parse_args(arguments)
    overrides: list[str] = list(parsed.overrides)
    flags = _without(arguments, overrides)
    if parsed.experimental_rerun or parsed.config_path:
        raise InputError("--experimental-rerun and --config-path are not supported; add a folder with --config-dir.")
    if parsed.help or parsed.hydra_help or parsed.cfg or parsed.info or parsed.shell_completion:
        return Request(arguments, [], frozenset(), False)
    if parsed.config_dir and not os.path.isdir(parsed.config_dir):
        raise InputError(f"--config-dir: there is no folder '{parsed.config_dir}'.")
    with _searching(program, parsed.config_dir) as groups:
        given = _parse(overrides, multirun=parsed.multirun)
        keys = frozenset(str(override.key_or_group) for override in given)
        given += _parse(_implied(program, given), multirun=False)
        _check(program, given, groups)
        passed = [text for override in given for text in _passed_on(program, override)]
        jobs = _jobs(_parse(passed, multirun=parsed.multirun))
        name = parsed.config_name or program.config
        configs = [_compose(name, job) for job in jobs]
    if parsed.multirun:
        passed += _subfolders(given)
    return Request([*flags, *passed], configs, keys, parsed.multirun)


@contextmanager
def command_line(program: Program, arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra see these arguments, which it takes from `sys.argv`, for a block of code."""
    before = sys.argv
    sys.argv = [program.name, *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _searching(program: Program, config_dir: str | None) -> Iterator[dict[str, list[str]]]:
    """Open the search path as Hydra will; yield the files of each group, but no studies of another program."""
    search = create_config_search_path(CONFIG)
    if config_dir is not None:
        folder = f"file://{Path(config_dir).resolve()}"
        search.prepend(provider="command-line", path=folder, anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2(program.name, search)
    try:
        loader: Any = hydra.config_loader
        groups = {group: loader.get_group_options(group) for group in (*program.groups, "study")}
        yield groups | {"study": [name for name in groups["study"] if _may_read(program, loader, name)]}
    finally:
        GlobalHydra.instance().clear()


def _may_read(program: Program, loader: Any, study: str) -> bool:
    """Whether a study is this program's, or broken, which is told when it is used."""
    try:
        return program.may_read(loader.repository.load_config(f"study/{study}").config)
    except (HydraException, OmegaConfBaseException, YAMLError):
        return True


def _jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Overrides of each job, one for every combination of the values that are swept over."""
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in overrides
    ]
    return [list(job) for job in itertools.product(*choices)]


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    try:
        return compose(name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise InputError(_first_line(error)) from error


def _parse(overrides: Sequence[str], *, multirun: bool) -> list[Override]:
    found: list[Override] = []
    for text in overrides:
        try:
            found += OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            cure = "" if "=" in text else " Expected key=value."
            raise InputError(f"'{text}' cannot be read ({_first_line(error)}).{cure}") from error
        if found[-1].is_sweep_override() and not multirun:
            raise InputError(f"'{text}' names several values; add -m to run one job each.")
        if found[-1].is_sweep_override() and not found[-1].is_discrete_sweep():
            raise InputError(f"'{text}': list the values, {found[-1].key_or_group}=first,second.")
    return found


def _check(program: Program, overrides: Sequence[Override], groups: dict[str, list[str]]) -> None:
    for override in overrides:
        key = str(override.key_or_group)
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            continue
        program.check_key(key)
        if key not in groups or override.is_delete():
            continue
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
        for value in values:
            if isinstance(value, dict) or (value is None and key in ("simulator", "cost")):
                continue
            if str(value) not in groups[key]:
                known = nearest(str(value), groups[key]) if groups[key] else f"say {key}._target_=my_module.{value}."
                raise InputError(f"{key}={value}: {known}")


def _implied(program: Program, given: Sequence[Override]) -> list[str]:
    """What a request means without saying so: another world is not that of the default study."""
    values = {str(override.key_or_group): override.value() for override in given}
    named = "simulator" in values or "simulator._target_" in values
    implied = []
    if values.get("data") is not None and not named:
        implied.append("simulator=null")
    other = values.get("simulator", program.world) != program.world or "simulator._target_" in values
    if "study" not in values and (other or implied):
        implied.append("study=own")
    return implied


def _passed_on(program: Program, override: Override) -> list[str]:
    """An option of a group may be new to Hydra: `build` checks it against the constructor. Values by name replace."""
    text = str(override.input_line)
    key = str(override.key_or_group)
    one = not override.is_sweep_override() and not override.is_delete()
    if key in (*program.groups, "study") and one and override.value() is None:
        return [f"~{key}"]
    if key in program.rules and one and isinstance(override.value(), dict):
        return [f"{key}=null", f"++{text.lstrip('+')}"]
    free = key.split(".")[0] in program.groups and "." in key and not override.is_delete()
    return [f"++{text.lstrip('+')}" if free else text]


def _subfolders(given: Sequence[Override]) -> list[str]:
    """Name each job's folder after the values it has to itself, `loss=carl` for instance."""
    swept = [override for override in given if override.is_sweep_override()]
    if any("/" in str(value) for override in swept for value in override.sweep_string_iterator()):
        return []
    keep = {str(override.key_or_group) for override in swept}
    others = sorted({str(override.key_or_group) for override in given} - keep)
    quoted = ",".join(f'"{key}"' for key in ["hydra.sweep.subdir", "hydra.mode", *others])
    return [
        f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]",
        "hydra.sweep.subdir=${hydra.job.override_dirname}",
    ]


def _quoted(argument: str, paths: Sequence[str]) -> str:
    """Quote a path that Hydra's grammar would not read: one with spaces, '=' or brackets."""
    key, equals, value = argument.partition("=")
    if key.lstrip("+") not in paths or not equals or value.startswith(QUOTED) or "${" in value:
        return argument
    if not any(character in value for character in " =()[]{}:") or "," in value:
        return argument
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def _without(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    left = list(overrides)
    flags = []
    for argument in arguments:
        if argument in left:
            left.remove(argument)
        else:
            flags.append(argument)
    return flags


def _first_line(error: BaseException) -> str:
    lines: list[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
