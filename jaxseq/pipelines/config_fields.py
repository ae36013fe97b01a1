"""Set fields of a config dataclass from texts, ``features=64``, as its command line would."""

import contextlib
import dataclasses
import difflib
import io
import shlex
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import tyro

from jaxseq.training import check_numbers, check_repeated_flags
from jaxseq.training.cli import PATH_RULE, check_values

C = TypeVar("C")


def configure(kind: type[C], settings: Mapping[str, str], **changes: Any) -> C:
    """An instance of a config dataclass with fields set by texts, which tyro reads by the fields' types.

    A name is a field's path (``train.steps``) or an end of it that only one field has (``steps``). A field of several
    dataclasses is set to one of them by its name, with its options behind it (``model=transformer``, ``task="files
    --pairs mine.tsv"``); this comes before the settings of its fields. The items of a tuple are separated by spaces.
    ``changes`` are top-level fields that are given by value. A ``__post_init__``
    of the dataclass may derive further values.

    Raises:
        ValueError: an unknown or ambiguous name, a field set twice to different texts, a text that does not fit the
            field's type, or what the dataclasses themselves or ``check_numbers`` refuse; the message names the field.
    """
    values = {field.name: _default(field) for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind, include_extras=True)
    parts = [name for name in settings if name in values and dataclasses.is_dataclass(values[name])]
    for name in parts:
        values[name] = parse(hints[name], settings[name], name)
    paths = _paths(values)
    others: dict[str, str] = {}
    for name, text in settings.items():
        if name not in parts and others.setdefault(path := _find(name, paths), text) != text:
            raise ValueError(f"{path} is set twice: {others[path]} and {text}")
    made = _build(kind, values, others, changes)
    check_numbers(made)
    return made


def field_path(config: object, name: str) -> str:
    """The dotted name of the field of a config that ``configure`` sets by ``name``: ``train.steps`` for ``steps``.

    Raises:
        ValueError: an unknown or ambiguous name.
    """
    values = _init_values(config)
    return name if name in values else _find(name, _paths(values))


def parse(kind: Any, text: str, name: str) -> Any:
    """The value of this type that tyro reads from a text; raises ValueError, which names the field and the text."""
    field = name.rpartition(".")[2]
    holder = dataclasses.make_dataclass("Setting", [(field, kind)])
    said = io.StringIO()
    try:
        if any(dataclasses.is_dataclass(option) for option in _options(kind)):
            choice, *options = shlex.split(text) or [""]
            arguments = [f"{field}:{choice}", *options]
        elif typing.get_origin(kind) in (tuple, list):
            arguments = [f"--{field}", *shlex.split(text)]
        else:
            arguments = [f"--{field}={text}"]
    except ValueError as error:  # an open quotation
        raise ValueError(f"{name}={text!r}: {error}") from None
    check_repeated_flags(arguments)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            flags = (tyro.conf.FlagConversionOff,)
            made = getattr(tyro.cli(holder, args=arguments, config=flags, registry=PATH_RULE), field)
    except (SystemExit, ValueError):
        wanted = " | ".join(option.__name__ if isinstance(option, type) else str(option) for option in _options(kind))
        raise ValueError(f"{name}={text!r} is not of type {wanted.replace('typing.', '')}") from None
    check_values(made, name)
    return made


def _options(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself, without annotations."""
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (tuple, list, typing.Literal) or not arguments:
        return (kind,)
    return tuple(option for argument in arguments for option in _options(argument))


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _init_values(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}


def _paths(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all fields, of fields of fields too."""
    paths = []
    for name, value in values.items():
        inner = dataclasses.is_dataclass(value)
        paths += _paths(_init_values(value), f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return paths


def _find(name: str, paths: list[str]) -> str:
    """Find the path that equals the name or ends with it."""
    if name in paths:
        return name
    found = [path for path in paths if path.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name!r} is ambiguous: {', '.join(found)}")
    short = {path.rpartition(".")[2]: path for path in paths}
    near = difflib.get_close_matches(name, [*paths, *short], cutoff=0.6)
    names = list(dict.fromkeys(short.get(match, match) for match in near)) or paths
    raise ValueError(f"unknown field {name!r}; {'did you mean' if near else 'known'}: {', '.join(names)}")


def _build(
    kind: Any, values: dict[str, Any], settings: Mapping[str, str], changes: Mapping[str, Any], prefix: str = ""
) -> Any:
    hints, inner = typing.get_type_hints(kind, include_extras=True), dict[str, dict[str, str]]()
    for name, text in settings.items():
        head, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(head, {})[rest] = text
        else:
            values[head] = parse(hints[head], text, prefix + head)
    for head, group in inner.items():
        part = values[head]
        values[head] = _build(type(part), _init_values(part), group, {}, f"{prefix}{head}.")
    try:
        return kind(**values | dict(changes))
    except ValueError as error:
        told = " ".join(f"{prefix}{name}={text}" for name, text in settings.items())
        raise ValueError(f"{told}: {error}" if told else str(error)) from None
