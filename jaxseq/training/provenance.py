"""The provenance of parameters: the config, the model and the data that they belong to.

The same numbers mean something else under another vocabulary, number of heads or core. Each checkpoint's manifest
stores its provenance, and a checkpoint is used with the same one only.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

from jaxseq.files import JSON
from jaxseq.training.settings import EXTENSIBLE, RESUMABLE, config_differences, from_json, marked_fields, to_json


class Provenance(NamedTuple):
    """Fields that are None are neither stored nor compared."""

    config: object | None = None
    """The config of the experiment, a dataclass. Its resumable fields are not compared."""
    model: Mapping[str, object] | None = None
    """Named parts that define the model: dataclasses, which are stored, and JSON values, stored as SHA-256."""
    data: str | None = None
    """The fingerprint of the data."""


UNKNOWN = Provenance()


def provenance_to_json(provenance: Provenance) -> dict[str, JSON]:
    """The JSON that a manifest stores."""
    made: dict[str, JSON] = {}
    if provenance.config is not None:
        made["config"] = to_json(provenance.config)
    if provenance.model is not None:
        made["model"] = {name: stored_part(part, name) for name, part in provenance.model.items()}
    if provenance.data is not None:
        made["data"] = provenance.data
    return made


def stored_part(part: object, name: str) -> JSON:
    """A part of a model in a manifest: a dataclass as JSON, any other value as the SHA-256 of its JSON."""
    value = to_json(part, name)
    if dataclasses.is_dataclass(part):
        return {"kind": type(part).__name__, **value}
    return {"sha256": hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()}


def provenance_differences(stored: JSON, now: Provenance) -> list[str]:
    """One line for each difference between a manifest's provenance and the present one."""
    stored = stored if isinstance(stored, dict) else {}
    lines = []
    if now.config is not None and "config" in stored:
        lines += [f"config {line}" for line in changes(stored["config"], now.config)]
    if now.data is not None and stored.get("data", now.data) != now.data:
        lines.append(f"data fingerprint: {str(stored['data'])[:16]} -> {now.data[:16]}")
    if now.model is not None and isinstance(stored.get("model"), dict):
        known = stored["model"]
        for name in [*now.model, *(name for name in known if name not in now.model)]:
            lines += _part_differences(name, known.get(name), now.model.get(name))
    return lines


def _part_differences(name: str, before: JSON, part: object) -> list[str]:
    """The differences of a part of a model; None for one that is absent."""
    after = None if part is None else stored_part(part, name)
    if before == after:
        return []
    texts = [_part_text(value) for value in (before, after)]
    if texts[0] == texts[1] and dataclasses.is_dataclass(part):
        return [f"{name}.{line}" for line in changes(before, part)]
    return [f"{name}: {texts[0]} -> {texts[1]}"]


def _part_text(stored: JSON) -> str:
    if not isinstance(stored, dict):
        return "(absent)"
    return str(stored["kind"]) if "kind" in stored else f"SHA-256 {str(stored.get('sha256'))[:16]}"


def changes(earlier: JSON, config: object) -> list[str]:
    """The differences between a config that was written earlier, None for none, and ``config``.

    Fields that the earlier config lacks, because they were added later, have their defaults. The number of training
    steps, which a run may extend (``training.extension``), is not compared.
    """
    if earlier is None:
        return []
    with contextlib.suppress(ValueError, TypeError):  # another class of config: every difference is listed
        earlier = to_json(from_json(type(config), earlier))
    ignored = {*marked_fields(config, RESUMABLE), *marked_fields(config, EXTENSIBLE)}
    return config_differences(earlier, to_json(config), ignored)
