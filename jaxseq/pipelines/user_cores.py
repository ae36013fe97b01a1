"""Cores in users' files: the contract check, and the permission to run the code that a run folder names."""

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxseq import training
from jaxseq.cores import make_core
from jaxseq.files import JSON, read_regular
from jaxseq.training.provenance import stored_part


@dataclasses.dataclass(frozen=True)
class RunAccess:
    """Permissions for the use of a run folder, which may come from somebody else."""

    core: tuple[str, ...] = ()
    """FILE.py:CLASS of each core of the run that is no part of jaxseq. Its code runs only if it is named here."""
    trust: bool = False
    """Run the code of the files that the run folder names, without naming them."""
    accept_changes: bool = False
    """Use files that differ from those that the run's parameters were saved with."""


NO_ACCESS = RunAccess()


def is_user_core(name: object) -> bool:
    """Whether a field's value names a core in a file, FILE.py:CLASS."""
    return isinstance(name, str) and name.rpartition(":")[0].endswith(".py")


def core_flags(names: Sequence[str]) -> str:
    """The options of a command line that permit those of the cores that are in files: `` --core FILE.py:CLASS``."""
    named = dict.fromkeys(name for name in names if is_user_core(name))
    return f" --core {shlex.join(named)}" if named else ""


def model_parts(config: Any) -> dict[str, object]:
    """The parts of a model's config for ``Run.define_model``: its fields, and the SHA-256 of users' files.

    Folders of users' files are left out, so that a run may be used on another machine.
    """
    named = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    files = {name: value for name, value in named.items() if is_user_core(value)}
    code = {f"code of {name}": _sha256(value) for name, value in files.items()}
    return {"model": dataclasses.replace(config, **{name: Path(x).name for name, x in files.items()}), **code}


def _sha256(core: str) -> str:
    return hashlib.sha256(read_regular(core.rpartition(":")[0])).hexdigest()


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
    permitted = dict(model)
    for field, name in model.items():
        if not is_user_core(name):
            continue
        label = Path(name).name
        given = [core for core in access.core if Path(core).name == label]
        if not given and not access.trust:
            raise training.RunFolderError(
                f"{folder} uses the core {name!r}, whose code would run. Name it to permit it: "
                f"--core {label} (with its folder), or --trust"
            )
        permitted[field] = given[0] if given else name
        part = f"code of {field}"
        try:
            now = stored_part(_sha256(permitted[field]), part)
        except (OSError, ValueError) as error:
            where = "" if given else f"; if it is elsewhere now, name it: --core FOLDER/{label}"
            raise training.RunFolderError(f"{folder} uses the core {name!r}: {error}{where}") from None
        if part in stored and stored[part] != now and not access.accept_changes:
            raise training.RunFolderError(
                f"{permitted[field].rpartition(':')[0]} differs from the file that {folder} was trained with "
                "(SHA-256). Restore it, or accept the change: --accept-changes"
            )
    unused = [core for core in access.core if core not in permitted.values()]
    if unused:
        raise training.RunFolderError(f"{folder} uses no core {', '.join(map(repr, unused))}")
    return permitted


def check_user_cores(names: Sequence[str], features: int, options: Sequence[str] = ()) -> None:
    """Check those of the cores that a user's file defines (FILE.py:CLASS) against the main laws of the contract.

    Splitting into single steps, padding, documents and the initial carry, with random parameters: some seconds for each
    core. ``features`` and ``options`` are as for ``make_core``.

    Raises:
        ValueError: a core breaks a law or fails; the message names the law.
    """
    chosen = dict.fromkeys(name for name in names if is_user_core(name))
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
