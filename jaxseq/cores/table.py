"""The table of cores, read by tests, benchmarks and experiments: a new core is its file and one line here."""

import ast
import dataclasses
import importlib.machinery
import importlib.util
import re
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxseq.cores.attention import Attention
from jaxseq.cores.conv import Conv
from jaxseq.cores.core import Core
from jaxseq.cores.delta import Delta
from jaxseq.cores.elman import Elman
from jaxseq.cores.gla import GLA
from jaxseq.cores.gru import GRU
from jaxseq.cores.layer_norm_lstm import LayerNormLSTM
from jaxseq.cores.lru import LRU
from jaxseq.cores.lstm import LSTM
from jaxseq.cores.mamba2 import Mamba2
from jaxseq.cores.mgu import MGU
from jaxseq.cores.mingru import MinGRU
from jaxseq.cores.minlstm import MinLSTM
from jaxseq.cores.mlstm import MLSTM
from jaxseq.cores.rglru import RGLRU
from jaxseq.cores.slstm import SLSTM
from jaxseq.cores.wrappers import Stacked

CORES: dict[str, type[Core]] = {
    "elman": Elman,
    "gru": GRU,
    "lstm": LSTM,
    "layer_norm_lstm": LayerNormLSTM,
    "mgu": MGU,
    "slstm": SLSTM,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "lru": LRU,
    "rglru": RGLRU,
    "gla": GLA,
    "mamba2": Mamba2,
    "mlstm": MLSTM,
    "delta": Delta,
    "conv": Conv,
    "attention": Attention,
}


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the file itself: bytecode in ``__pycache__`` may be other code, which no SHA-256 tells."""

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def split_cores(text: str) -> tuple[str, ...]:
    """The cores of a list as a command line gives it, ``lstm,attention:window=32,lstm``.

    Each is a name of ``find_core``, with its own options behind it, ``NAME:field=value:field=value``. Commas and colons
    within brackets and quotes belong to a value.

    Raises:
      ValueError: an empty item.
    """
    items = _split(text, ",")
    if not all(item.strip() for item in items):
        raise ValueError(f"cores {text!r}: a name is missing; a list is NAME,NAME:field=value,...")
    return tuple(item.strip() for item in items)


def core_name(item: str) -> tuple[str, tuple[str, ...]]:
    """The name of a core in a list, and its options."""
    parts = _split(item, ":")
    count = len(parts)
    while count > 1 and re.match(r"\w+=", parts[count - 1]):
        count -= 1
    return ":".join(parts[:count]), tuple(parts[count:])


def check_options(cores: str, options: Sequence[str]) -> None:
    """Check that a list of several cores is given no further options.

    Raises:
      ValueError: it is.
    """
    if options and len(split_cores(cores)) > 1:
        raise ValueError(
            f"core options {' '.join(options)} of several cores {cores}: write NAME:field=value in the list"
        )


def _split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        if character == separator and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def find_core(name: str) -> type[Core]:
    """The core of that name in ``CORES``, or the class that a user's own file defines, ``FILE.py:CLASS``.

    Raises:
      ValueError: there is no such name (the known ones are listed), file or class, or the file does not import.
    """
    file, colon, attribute = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        if name not in CORES:
            raise ValueError(f"unknown core {name!r}; known: {', '.join(CORES)}, or FILE.py:CLASS")
        return CORES[name]
    if not Path(file).is_file():
        raise ValueError(f"core {name!r}: there is no file {file}")
    loader = _SourceLoader(Path(file).stem, str(Path(file).absolute()))
    spec = importlib.util.spec_from_file_location(Path(file).stem, loader.path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"core {name!r}: {file} does not import: {type(error).__name__}: {error}") from error
    core = getattr(module, attribute, None)
    if not (isinstance(core, type) and issubclass(core, Core)):
        raise ValueError(f"core {name!r}: {file} defines no core {attribute}")
    return core


def make_core(name: str, features: int, options: Sequence[str] = (), **fields: Any) -> Core:
    """The core of that name (``find_core``), with further fields as texts from a command line: ``["num_heads=8"]``.

    Values are Python literals, or else text; they override ``fields``. The name may have options behind it,
    ``"attention:window=32"``. A list of several (``split_cores``) gives their ``Stacked``, with the same ``fields``.

    Raises:
      ValueError: an unknown core, an option without ``=``, one that the core does not have, or one given twice;
        ``options`` for a list, whose cores have their own.
    """
    items = split_cores(name)
    if len(items) > 1:
        check_options(name, options)
        return Stacked(tuple(make_core(item, features, **fields) for item in items))
    name, own = core_name(name.strip())
    options = (*own, *options)
    core = find_core(name)
    hidden = ("features", "dtype", "param_dtype", "parent", "name")
    known = {field.name: field for field in dataclasses.fields(core) if field.name not in hidden}
    given: dict[str, str] = {}
    for option in options:
        field, equals, value = option.partition("=")
        if not equals or field not in known:
            raise ValueError(f"core {name!r} takes options field=value for {', '.join(known)}; not {option!r}")
        if field in given:
            raise ValueError(f"core {name!r} is given {field} twice: {given[field]} and {value}")
        given[field] = value
        fields[field] = _parsed(option, value, known[field])
    make: Callable[..., Core] = core
    return make(features=features, **fields)


def _parsed(option: str, text: str, field: dataclasses.Field) -> Any:
    """A Python literal or text, of the type of the default; if that is None, of the type that the annotation names."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    kind = type(field.default)
    if field.default is None:
        if value is None:
            return None
        kind = next((kind for kind in (float, str, bool) if kind.__name__ in str(field.type)), int)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"core option {option!r} needs a value of type {kind.__name__}")
    return value
