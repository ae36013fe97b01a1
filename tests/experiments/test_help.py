"""Every field of every experiment and benchmark has help: the text that --help shows, with the default beside it."""

import ast
import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.fields import EXPERIMENTS, ROOT, config_class, hints_of, members

BENCHMARKS = sorted(path for path in (ROOT / "benchmarks").glob("*.py"))


def dataclasses_of(kind: type) -> Iterator[type]:
    """A dataclass and those of its fields, also inside unions."""
    yield kind
    for hint in hints_of(kind).values():
        for option in members(hint):
            if dataclasses.is_dataclass(option):
                yield from dataclasses_of(option)


def documented(kind: type) -> set[str]:
    """The fields of a class and its bases that a string follows, as tyro reads it."""
    found = set()
    for base in kind.__mro__:
        if dataclasses.is_dataclass(base):
            found |= strings_after_fields(ast.parse(textwrap.dedent(inspect.getsource(base))).body[0])
    return found


def strings_after_fields(body: Any) -> set[str]:
    """The annotated names in the body of a class behind which a string stands."""
    pairs = zip(body.body, body.body[1:], strict=False)
    return {
        field.target.id
        for field, text in pairs
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
        and len(text.value.value.strip()) > 2
    }


def shows_a_group(hint: Any) -> bool:
    """Whether a field is shown as a group of options or a choice of them, with the docstring of its dataclass."""
    return any(dataclasses.is_dataclass(option) for option in members(hint))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_field_of_an_experiment_has_help(experiment):
    missing = sorted(
        f"{kind.__module__}.{kind.__qualname__}.{name}"
        for kind in set(dataclasses_of(config_class(experiment)))
        for name, hint in hints_of(kind).items()
        if not shows_a_group(hint) and name not in documented(kind)
    )
    assert not missing, "fields without help:\n  " + "\n  ".join(missing)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_group_of_options_has_a_description(experiment):
    for kind in set(dataclasses_of(config_class(experiment))):
        text = inspect.getdoc(kind) or ""
        assert text and not text.startswith(f"{kind.__name__}("), f"{kind} has no docstring but that of dataclass"


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_option_of_a_benchmark_has_help_with_its_default(path: Path):
    """Of argparse: a help text, which tells a default that is not None. Of tyro: a string after the field."""
    missing = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "add_argument":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            default = given.get("default", ast.Constant(None))
            has_default = not (isinstance(default, ast.Constant) and default.value is None)
            text = ast.unparse(given["help"]) if "help" in given else ""
            if not text or (has_default and "default" not in text):
                missing.append(f"line {node.lineno}: {ast.unparse(node.args[0])}")
        is_config = isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        if is_config and node.name in tyro_configs(path):
            fields = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
            missing += [f"{node.name}.{name}" for name in sorted(fields - strings_after_fields(node))]
    assert not missing, f"{path.name}: options without help:\n  " + "\n  ".join(missing)


def tyro_configs(path: Path) -> set[str]:
    """The names of classes that a benchmark gives to tyro or to ``run_cli``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "cli",
            "run_cli",
        ):
            names |= {part.id for argument in node.args for part in ast.walk(argument) if isinstance(part, ast.Name)}
    return names


def test_a_field_without_a_string_is_found():
    code = "class A:\n    a: int = 1\n    b: int = 2\n    '''Two, of them.'''\n    c: int = 3\n"
    assert strings_after_fields(ast.parse(code).body[0]) == {"b"}
    assert importlib.import_module("experiments.translation").Config in set(dataclasses_of(config_class("translation")))
