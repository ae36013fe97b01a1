"""Configs of experiments in files: YAML, or the ``config.json`` of a run."""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from jaxseq.files import JSON, parse_json, read_regular
from jaxseq.training.settings import from_json, to_json

C = TypeVar("C")

SUFFIXES = (".json", ".yaml", ".yml")


def read_config(path: Path, kind: type[C]) -> C:
    """The config of an experiment with the fields that a file sets; the others have their defaults.

    The file is an object of fields, nested as the dataclasses are; a field that the command line has without a prefix
    may stand without one, too::

        core: rglru,attention:window=64
        train: {steps: 500}

    A field of several dataclasses names its class, ``model: {kind: TransformerTranslator, layers: 3}``, or as the
    command line does, ``model: transformer``; without ``kind`` the fields are those of the default.

    Raises:
        ValueError: another suffix than .json, .yaml and .yml; no object; an unknown field, a value of another type, or
            one that the dataclass refuses. Names the file.
        OSError: the file cannot be read.
    """
    while typing.get_origin(kind) is typing.Annotated:  # tyro's options of the command line
        kind = typing.get_args(kind)[0]
    if path.suffix not in SUFFIXES:
        raise ValueError(f"config {path}: the suffix is {path.suffix!r}, not one of {', '.join(SUFFIXES)}")
    text = read_regular(path).decode("utf-8")
    try:
        given = parse_json(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(given, dict):
        raise ValueError(f"config {path} must hold fields and values, not {json.dumps(given, default=str)[:60]}")
    try:
        return from_json(kind, _merged(_defaults(kind), _nested(given, kind), kind))
    except (ValueError, TypeError) as error:
        raise ValueError(f"config {path}: {error}") from None


def take_config(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file of ``--config`` in the words of a command line, if there is one, and the other words.

    Raises:
        ValueError: ``--config`` without a file.
    """
    words = list(words)
    for index, word in enumerate(words):
        if word == "--":
            break
        if word.startswith("--config="):
            return _file(word.partition("=")[2]), words[:index] + words[index + 1 :]
        if word == "--config":
            return _file("".join(words[index + 1 : index + 2])), words[:index] + words[index + 2 :]
    return None, words


def _file(text: str) -> Path:
    if not text or text.startswith("--"):
        raise ValueError("--config needs a file: .yaml, or the config.json of a run")
    return Path(text)


def _defaults(kind: type) -> dict[str, JSON]:
    """The JSON of the defaults of a dataclass, before its ``__post_init__`` derives further values."""
    blank: Any = object.__new__(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    for field in fields:
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        object.__setattr__(blank, field.name, None if default is dataclasses.MISSING else default)
    made: dict[str, JSON] = to_json(blank)
    required = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    return {name: value for name, value in made.items() if name not in required}


def _nested(given: dict[str, Any], kind: type) -> dict[str, Any]:
    """The given fields, with those of parts whose prefix the command line omits moved into these parts."""
    hints = typing.get_type_hints(kind, include_extras=True)
    parts = {
        name: {field.name for _, part in _choices(hint).values() for field in dataclasses.fields(part)}
        for name, hint in hints.items()
        if tyro.conf.OmitArgPrefixes in getattr(hint, "__metadata__", ())
    }
    made = dict(given)
    for name in [name for name in given if name not in hints]:
        for part, fields in parts.items():
            if name in fields:
                inner = made.get(part, {})
                inner = {"kind": inner} if isinstance(inner, str) else inner
                if not isinstance(inner, dict) or name in inner:
                    raise ValueError(f"{name} is set twice: in {part} and without it")
                made[part] = inner | {name: made.pop(name)}
                break
    return made


def _merged(defaults: dict[str, JSON], given: dict[str, Any], kind: Any) -> dict[str, JSON]:
    """The defaults with the given fields, and those of fields that are dataclasses, in their place."""
    hints = typing.get_type_hints(kind, include_extras=True)
    made = dict(defaults)
    for name, value in given.items():
        choices, default = _choices(hints.get(name)), defaults.get(name)
        if isinstance(value, str) and len(choices) > 1:
            value = {"kind": value}
        if not choices or not isinstance(value, dict) or not isinstance(default, dict):
            made[name] = value
            continue
        before = default.get("kind", next(iter(choices)))
        asked = value.get("kind", before)
        chosen = next((label for label, (short, _) in choices.items() if asked in (label, short)), None)
        if chosen is None:
            known = ", ".join(short or label for label, (short, _) in choices.items())
            raise ValueError(f"{name}: kind {asked!r}; known: {known}")
        part, own = choices[chosen][1], {key: item for key, item in value.items() if key != "kind"}
        same = chosen == before
        filled = _merged({k: v for k, v in (default if same else _defaults(part)).items() if k != "kind"}, own, part)
        made[name] = ({"kind": chosen} if len(choices) > 1 else {}) | filled
    return made


def _choices(hint: Any) -> dict[str, tuple[str, Any]]:
    """The dataclasses that a field may be, by name, with their names on the command line."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *marks = typing.get_args(hint)
        names = [mark.name for mark in marks if isinstance(getattr(mark, "name", None), str)]
        found = _choices(inner)
        return {label: (names[0].rpartition(":")[2], kind) for label, (_, kind) in found.items()} if names else found
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return {label: pair for option in typing.get_args(hint) for label, pair in _choices(option).items()}
    return {hint.__name__: ("", hint)} if isinstance(hint, type) and dataclasses.is_dataclass(hint) else {}


class _Loader(yaml.SafeLoader):
    """YAML with numbers such as 1e-3, which YAML 1.1 takes for texts, and without keys that occur twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for index, key in enumerate(keys) if key in keys[:index]]
        if twice:
            raise ValueError(f"{twice[0]} is set twice (line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)|[-+]?(\d+\.\d*|\.\d+)$"),
    list("-+0123456789."),
)
