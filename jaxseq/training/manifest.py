"""The manifest of a checkpoint: shape, dtype and SHA-256 of every leaf and file, and the manifest's own checksum.

Files are verified before they are read, so that a corrupted one never reaches a parser. Leaves, whose SHA-256 was
computed in memory before anything was written, are verified after reading.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict, cast

import jax
import numpy as np
from jax.tree_util import KeyPath

from jaxseq.files import JSON, open_regular, parse_json, read_regular
from jaxseq.training.state import is_key
from jaxseq.typing import PyTree

FORMAT = 1
"""The format of a checkpoint of one process; that of several, whose rows have shards, is the next."""


class CorruptedError(Exception):
    """A checkpoint differs from what was written; the message says where."""


class LeafSpec(TypedDict):
    """Shape, dtype and, for a typed random key, its generator."""

    shape: list[int]
    dtype: str
    key: str | None


class ShardRow(TypedDict):
    """A part of a leaf: the first and the last index plus 1 of each dimension, and the SHA-256 of its entries."""

    index: list[list[int]]
    sha256: str


class LeafRow(LeafSpec):
    """A leaf in the manifest: its SHA-256, or those of the shards of several processes."""

    sha256: str | None
    shards: NotRequired[list[ShardRow]]


class FileRow(TypedDict):
    """A file in the manifest."""

    size: int
    sha256: str


class Body(TypedDict):
    """The manifest without its checksum; ``leaves`` and ``files`` by name, ``meta`` from the caller."""

    provenance: NotRequired[dict[str, JSON]]

    format: int
    step: int
    meta: dict[str, JSON]
    files: dict[str, FileRow]
    leaves: dict[str, LeafRow]


FIELDS = {"format": int, "step": int, "meta": dict, "files": dict, "leaves": dict}
"""The types of the required fields of a body."""


class HostLeaf(NamedTuple):
    """A leaf on the host. For a typed random key, ``value`` is its data and ``key`` the name of its generator."""

    name: str
    value: np.ndarray
    key: str | None


def host_copy(state: PyTree) -> list[HostLeaf]:
    """Copy the leaves to the host; later changes of the state's buffers (donation) do not affect the copy."""
    named = jax.tree_util.tree_leaves_with_path(state)
    for _, leaf in named:
        if hasattr(leaf, "copy_to_host_async") and not is_key(leaf):
            leaf.copy_to_host_async()
    return [_host_leaf(leaf_name(path), leaf) for path, leaf in named]


def leaf_name(path: KeyPath) -> str:
    """The name of a leaf in the manifest."""
    return jax.tree_util.keystr(path)


def _host_leaf(name: str, leaf: PyTree) -> HostLeaf:
    if is_key(leaf):
        return HostLeaf(name, np.array(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf)))
    return HostLeaf(name, np.array(leaf), None)


def leaf_spec(leaf: PyTree) -> LeafSpec:
    """The specification by which a state and a manifest are compared."""
    if is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return {"shape": list(data.shape), "dtype": str(data.dtype), "key": str(jax.random.key_impl(leaf))}
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "key": None}


def digest(array: np.ndarray) -> str:
    """SHA-256 of the bytes in row-major order."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()


def leaf_rows(leaves: list[HostLeaf]) -> dict[str, LeafRow]:
    """The rows of leaves that one process holds whole."""
    return {
        leaf.name: {
            "shape": list(leaf.value.shape),
            "dtype": str(leaf.value.dtype),
            "key": leaf.key,
            "sha256": digest(leaf.value),
        }
        for leaf in leaves
    }


def make_manifest(
    step: int,
    rows: dict[str, LeafRow],
    files: dict[str, FileRow],
    meta: dict[str, JSON],
    provenance: dict[str, JSON] | None = None,
) -> dict[str, JSON]:
    """The contents of ``manifest.json``: the body and its checksum."""
    number = FORMAT + any("shards" in row for row in rows.values())
    body: Body = {"format": number, "step": step, "meta": meta, "files": files, "leaves": rows}
    if provenance is not None:
        body["provenance"] = provenance
    return {"sha256": _checksum(body), "body": body}


def _checksum(body: Body) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_manifest(file: Path, step: int) -> Body:
    """The manifest's body; raises CorruptedError if it is missing, incomplete, altered or of another step."""
    try:
        manifest = parse_json(read_regular(file))
    except FileNotFoundError:
        raise CorruptedError("it has no manifest") from None
    except (OSError, ValueError) as error:
        raise CorruptedError(f"its manifest cannot be read ({one_line(error)})") from None
    body = cast(Body | None, manifest.get("body") if isinstance(manifest, dict) else None)
    if not isinstance(body, dict) or _checksum(body) != manifest.get("sha256"):
        raise CorruptedError("its manifest does not match its own checksum")
    if not all(isinstance(body.get(name), kind) for name, kind in FIELDS.items()):
        raise CorruptedError(f"its manifest lacks one of {', '.join(FIELDS)}")
    if body["format"] not in (FORMAT, FORMAT + 1):
        raise CorruptedError(f"its manifest has format {body['format']}, not {FORMAT} or {FORMAT + 1}")
    if body["step"] != step:
        raise CorruptedError(f"its manifest is of step {body['step']}")
    return body


def describe_files(folder: Path) -> dict[str, FileRow]:
    """Size and SHA-256 of every file below a folder, by its relative path; raises ValueError for no regular file."""
    rows: dict[str, FileRow] = {}
    for root, _, names in os.walk(folder):
        for file in (Path(root, name) for name in names):
            with open_regular(file) as stream:
                sha = hashlib.file_digest(stream, "sha256").hexdigest()
            rows[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": sha}
    return dict(sorted(rows.items()))


def verify_files(folder: Path, rows: dict[str, FileRow]) -> None:
    """Raises CorruptedError unless the folder contains exactly the files of the manifest, unchanged."""
    try:
        found = describe_files(folder)
    except (OSError, ValueError) as error:
        raise CorruptedError(f"its files cannot be read ({one_line(error)})") from None
    for name in sorted(rows.keys() | found.keys()):
        if name not in found:
            raise CorruptedError(f"its file {name} is missing")
        if name not in rows:
            raise CorruptedError(f"its file {name} was not written with it")
        if found[name] != rows[name]:
            raise CorruptedError(f"its file {name} does not match its SHA-256")


def differences(body: Body, template: PyTree) -> list[str]:
    """The differences between a manifest and a state: one line for each leaf that is missing, extra, or different."""
    saved = body["leaves"]
    expected = {leaf_name(path): leaf_spec(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(template)}
    lines = []
    for name in sorted(saved.keys() | expected.keys()):
        texts = [_text(leaves.get(name)) for leaves in (saved, expected)]
        if texts[0] != texts[1]:
            lines.append(f"{name}: {texts[0]} in the checkpoint, {texts[1]} in the state")
    return lines


def _text(row: LeafSpec | None) -> str:
    if row is None:
        return "nothing"
    return f"{row['dtype']}{row['shape']}" + (f" key of {row['key']}" if row["key"] else "")


def verify_leaf(name: str, array: np.ndarray, row: LeafRow) -> None:
    """Raises CorruptedError unless the array equals, bit for bit, the one that the manifest's row describes."""
    if str(array.dtype) != row["dtype"] or list(array.shape) != row["shape"]:
        found = f"{array.dtype}{list(array.shape)}"
        raise CorruptedError(f"{name} is {found}, but {row['dtype']}{row['shape']} was written")
    if row["sha256"] is not None and digest(array) != row["sha256"]:
        raise CorruptedError(f"{name} does not match its SHA-256")


def one_line(error: BaseException, width: int = 200) -> str:
    """The first line of an error message; of a long one the beginning, and the end, where TensorStore has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if len(text) <= width:
        return text
    text = re.sub(r" \[(tensorstore_spec|os_error_code)=.*", "", text)  # TensorStore's annotations
    return text if len(text) <= width else f"{text[: width // 3]} ... {text[len(text) - (width - width // 3 - 5) :]}"
