"""Cores in users' files: the contract check, and the permission to run the code that a run folder names."""

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxseq import training
from jaxseq.cores import core_name, make_core, split_cores
from jaxseq.files import JSON, read_regular
from jaxseq.training.checkpoint_folder import StepChoice
from jaxseq.training.provenance import stored_part


@dataclasses.dataclass(frozen=True)
class RunAccess:
    """The checkpoint of a run folder that is used, and permissions: the folder may come from somebody else."""

    step: StepChoice = "latest"
    """The checkpoint: the newest valid one, that of the best train.best_metric, or that of a step."""
    averaged: bool = True
    """Use the moving average of the parameters, if the run keeps one."""
    core: tuple[str, ...] = ()
    """FILE.py:CLASS of each core of the run that is no part of jaxseq. Its code runs only if it is named here."""
    trust: bool = False
    """Run the code of the files that the run folder names, without naming them."""
    accept_changes: bool = False
    """Use files that differ from those that the run's parameters were saved with."""

    def __post_init__(self) -> None:
        named = self.step in ("latest", "best")
        if not named and (isinstance(self.step, str | bool) or self.step < 0):
            raise ValueError(f"step must be latest, best or at least 0, not {self.step}")


NO_ACCESS = RunAccess()


def user_cores(value: object) -> list[str]:
    """The cores in files, FILE.py:CLASS, that a field's value names, alone or in a list; without their options."""
    if not isinstance(value, str) or ".py:" not in value:
        return []
    names = (core_name(item)[0] for item in split_cores(value))
    return list(dict.fromkeys(name for name in names if name.rpartition(":")[0].endswith(".py")))


def core_flags(cores: Sequence[str]) -> str:
    """The options of a command line that permit those of the cores that are in files: `` --core FILE.py:CLASS``."""
    named = dict.fromkeys(name for core in cores for name in user_cores(core))
    return f" --core {shlex.join(named)}" if named else ""


def _code_sha256(value: str) -> dict[str, str]:
    """The SHA-256 of the file of each core in a file that a field's value names."""
    return {name: hashlib.sha256(read_regular(name.rpartition(":")[0])).hexdigest() for name in user_cores(value)}


def model_parts(config: Any) -> dict[str, object]:
    """The parts of a model's config for ``Run.define_model``: its fields, and the SHA-256 of users' files.

    Folders of users' files are left out, so that a run may be used on another machine.
    """
    parts: dict[str, object] = {}
    labels = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if names := user_cores(value):
            labels[field.name] = _renamed(value, {name: Path(name).name for name in names})
            parts |= {_part(field.name, name, names): digest for name, digest in _code_sha256(value).items()}
    return {"model": dataclasses.replace(config, **labels), **parts}


def _part(field: str, name: str, names: Sequence[str]) -> str:
    """The name under which a manifest stores the SHA-256 of a core's file."""
    return f"code of {field}" if len(names) == 1 else f"code of {field} {Path(name).name}"


def _renamed(value: str, names: Mapping[str, str]) -> str:
    """A list of cores with some of them named otherwise."""
    items = [core_name(item) for item in split_cores(value)]
    return ",".join(":".join((names.get(name, name), *options)) for name, options in items)


def permit_code(model: JSON, access: RunAccess, stored: Mapping[str, JSON], folder: Path) -> JSON:
    """The JSON of a model's config, with the cores in files that may be imported.

    Args:
        model: the config as the run folder has it.
        access: the permissions.
        stored: the parts of the model in the newest checkpoint's manifest.
        folder: the run folder, for messages.

    Raises:
        RunFolderError: a core in a file that is not permitted, or whose file is not the one of the checkpoint; nothing
            has been imported.
    """
    if not isinstance(model, dict):
        return model
    permitted, used = dict(model), list[str]()
    for field, value in model.items():
        try:
            names = user_cores(value)
        except ValueError as error:
            raise training.RunFolderError(f"{folder}: {field}: {error}") from None
        chosen = {name: _permitted(name, access, folder) for name in names}
        if names:
            permitted[field] = _renamed(str(value), chosen)
            used += chosen.values()
        for name in names:
            _check_code(name, chosen[name], _part(field, name, names), access, stored, folder)
    unused = [core for core in access.core if core not in used]
    if unused:
        raise training.RunFolderError(f"{folder} uses no core {', '.join(map(repr, unused))}")
    return permitted


def _permitted(name: str, access: RunAccess, folder: Path) -> str:
    """The core in a file that is to be imported, as the user names it or, if it is trusted, as the run does."""
    label = Path(name).name
    given = [core for core in access.core if Path(core).name == label]
    if not given and not access.trust:
        raise training.RunFolderError(
            f"{folder} uses the core {name!r}, whose code would run. Name it to permit it: "
            f"--core {label} (with its folder), or --trust"
        )
    return given[0] if given else name


def _check_code(name: str, chosen: str, part: str, access: RunAccess, stored: Mapping[str, JSON], folder: Path) -> None:
    """Check that a file is the one that the run was trained with."""
    label = Path(name).name
    try:
        now = stored_part(_code_sha256(chosen)[chosen], part)
    except (OSError, ValueError) as error:
        where = "" if chosen in access.core else f"; if it is elsewhere now, name it: --core FOLDER/{label}"
        raise training.RunFolderError(f"{folder} uses the core {name!r}: {error}{where}") from None
    if part in stored and stored[part] != now and not access.accept_changes:
        raise training.RunFolderError(
            f"{chosen.rpartition(':')[0]} differs from the file that {folder} was trained with "
            "(SHA-256). Restore it, or accept the change: --accept-changes"
        )


def check_user_cores(names: Sequence[str], features: int, options: Sequence[str] = ()) -> None:
    """Check those of the cores that a user's file defines (FILE.py:CLASS) against the main laws of the contract.

    ``names`` are cores, or lists of cores, with their options.

    Splitting into single steps, padding, documents and the initial carry, with random parameters: some seconds for each
    core. ``features`` and ``options`` are as for ``make_core``.

    Raises:
        ValueError: a core breaks a law or fails; the message names the law.
    """
    chosen = dict.fromkeys(item for name in names for item in split_cores(name) if user_cores(item))
    if not chosen:
        return
    from jaxseq.testing import ContractError, check_core  # imports chex, which fails where no temporary file fits

    for name in chosen:
        make_core(name, features, options)  # raises ValueError for a file, a class or an option that there is not
        try:
            check_core(partial(make_core, name, features, options), quick=True)
        except ContractError as error:
            raise ValueError(f"core {name!r} breaks the contract of cores: {error}") from None
        except Exception as error:
            raise ValueError(f"core {name!r} fails: {type(error).__name__}: {error}") from error
        print(f"core {name}: the contract of cores holds (jaxseq.testing.check_core, quick)", flush=True)
