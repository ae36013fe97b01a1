"""The manifest of a checkpoint: what every leaf and every file must be, under a checksum of its own.

The files are compared before they are read, so that a damaged one never reaches a parser; the leaves, whose
SHA-256 was taken from memory before anything was written, are compared after.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseq.training.state import is_key

FORMAT = 1


class DamagedError(Exception):
    """A checkpoint is not what was written; the message is the reason."""


class HostLeaf(NamedTuple):
    """A leaf on the host. ``key`` names the generator of a typed random key, whose data is ``value``."""

    name: str
    value: np.ndarray
    key: str | None


def host_copy(state: Any) -> list[HostLeaf]:
    """The leaves, copied: nothing that is later done to the state's buffers (donation) can reach the copy.

    Raises ValueError for an array that is spread over several processes.
    """
    named = jax.tree_util.tree_leaves_with_path(state)
    for path, leaf in named:
        if not getattr(leaf, "is_fully_addressable", True):
            raise ValueError(f"{_name(path)} is spread over several processes, which is not supported yet")
        if hasattr(leaf, "copy_to_host_async") and not is_key(leaf):
            leaf.copy_to_host_async()
    return [_host_leaf(_name(path), leaf) for path, leaf in named]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _host_leaf(name: str, leaf: Any) -> HostLeaf:
    if is_key(leaf):
        return HostLeaf(name, np.array(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf)))
    return HostLeaf(name, np.array(leaf), None)


def describe(leaf: Any) -> dict[str, Any]:
    """Shape, dtype and, for a typed key, its generator: what a state and a manifest are compared by."""
    if is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return {"shape": list(data.shape), "dtype": str(data.dtype), "key": str(jax.random.key_impl(leaf))}
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "key": None}


def digest(array: np.ndarray) -> str:
    """SHA-256 of the bytes in row-major order."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()


def make_manifest(step: int, leaves: list[HostLeaf], files: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """What is written beside the arrays."""
    rows = {
        leaf.name: {
            "shape": list(leaf.value.shape),
            "dtype": str(leaf.value.dtype),
            "key": leaf.key,
            "sha256": digest(leaf.value),
        }
        for leaf in leaves
    }
    body = {"format": FORMAT, "step": step, "meta": meta, "files": files, "leaves": rows}
    return {"sha256": _checksum(body), "body": body}


def _checksum(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_manifest(file: Path, step: int) -> dict[str, Any]:
    """The manifest's body; raises DamagedError where it is missing, torn, altered or of another step."""
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DamagedError("it has no manifest") from None
    except (OSError, ValueError) as error:
        raise DamagedError(f"its manifest cannot be read ({one_line(error)})") from None
    body = manifest.get("body") if isinstance(manifest, dict) else None
    if not isinstance(body, dict) or _checksum(body) != manifest.get("sha256"):
        raise DamagedError("its manifest does not match its own checksum")
    if body["format"] != FORMAT:
        raise DamagedError(f"its manifest has format {body['format']}, not {FORMAT}")
    if body["step"] != step:
        raise DamagedError(f"its manifest is of step {body['step']}")
    return body


def describe_files(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 of every file under a folder, by its path there."""
    rows = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(file, "rb") as stream:
            sha = hashlib.file_digest(stream, "sha256").hexdigest()
        rows[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": sha}
    return rows


def verify_files(folder: Path, rows: dict[str, Any]) -> None:
    """Raises DamagedError unless the folder holds exactly the files of the manifest's rows."""
    try:
        found = describe_files(folder)
    except OSError as error:
        raise DamagedError(f"its files cannot be read ({one_line(error)})") from None
    for name in sorted(rows.keys() | found.keys()):
        if name not in found:
            raise DamagedError(f"its file {name} is missing")
        if name not in rows:
            raise DamagedError(f"its file {name} was not written with it")
        if found[name] != rows[name]:
            raise DamagedError(f"its file {name} does not match its SHA-256")


def differences(body: dict[str, Any], like: Any) -> list[str]:
    """Where a manifest and a state do not fit: one line a leaf that is missing, extra, or of another kind."""
    saved = body["leaves"]
    asked = {_name(path): describe(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    lines = []
    for name in sorted(saved.keys() | asked.keys()):
        texts = [_text(leaves.get(name)) for leaves in (saved, asked)]
        if texts[0] != texts[1]:
            lines.append(f"{name}: {texts[0]} in the checkpoint, {texts[1]} in the state")
    return lines


def _text(row: dict[str, Any] | None) -> str:
    if row is None:
        return "nothing"
    return f"{row['dtype']}{row['shape']}" + (f" key of {row['key']}" if row["key"] else "")


def verify(name: str, array: Any, row: dict[str, Any]) -> None:
    """Raises DamagedError unless the array is, bit for bit, the one the manifest's row was made from."""
    array = np.asarray(array)
    if str(array.dtype) != row["dtype"] or list(array.shape) != row["shape"]:
        found = f"{array.dtype}{list(array.shape)}"
        raise DamagedError(f"{name} is {found}, but {row['dtype']}{row['shape']} was written")
    if digest(array) != row["sha256"]:
        raise DamagedError(f"{name} does not match its SHA-256")


def one_line(error: BaseException, width: int = 160) -> str:
    """The first line of an error, cut to ``width`` characters, in place of pages of a library's own words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= width else text[: width - 3] + "..."
