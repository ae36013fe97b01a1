"""The command line of experiments: a flag given twice is refused."""

import io
import sys
from dataclasses import dataclass

import pytest
import tyro

from jaxseq.pipelines.config_fields import configure
from jaxseq.training import check_outputs, check_repeated_flags, run_cli


@dataclass(frozen=True)
class Part:
    steps: int = 1


@dataclass(frozen=True)
class Config:
    core: str = "gru"
    some_names: tuple[str, ...] = ()
    flag: bool = False
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    train: Part = Part()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--core lstm --core attention", "--core is given twice: --core lstm and --core attention"),
        ("--core=lstm --flag --core attention", "--core is given twice: --core=lstm and --core attention"),
        ("--some-names a b --some_names c", "--some_names is given twice"),
        ("--flag --no-flag", "--no-flag is given twice: --flag and --no-flag"),
        ("--train.steps 3 --vary a --train.steps 4", "--train.steps is given twice: --train.steps 3 and"),
    ],
)
def test_a_flag_given_twice_is_refused(words, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", *words.split()])
    with pytest.raises(SystemExit, match=said):
        run_cli(pytest.fail, Config, None, repeatable=("vary",))


def test_flags_given_once_and_flags_that_append_are_read(monkeypatch):
    words = "--core lstm --some-names a b --no-flag --vary a --vary b --train.steps 4"
    monkeypatch.setattr(sys, "argv", ["program", *words.split()])
    found: list[Config] = []
    run_cli(found.append, Config, None, repeatable=("vary",))
    assert found == [Config("lstm", ("a", "b"), False, ("a", "b"), Part(4))]
    check_repeated_flags(["--a", "--", "--a"])
    check_repeated_flags(["--text", "-- he said", "-- he said", "---", "---"])  # values: flags are words


def test_a_field_set_twice_by_texts_is_refused():
    with pytest.raises(ValueError, match=r"train.steps is set twice: 3 and 4"):
        configure(Config, {"steps": "3", "train.steps": "4"})
    assert configure(Config, {"steps": "3", "train.steps": "3"}).train.steps == 3
    with pytest.raises(ValueError, match="--some_names is given twice"):
        configure(Config, {"some_names": "a --some_names b"})
    assert configure(Config, {"core": "--a --a"}).core == "--a --a"
    assert configure(Config, {"some_names": "'x --a' 'y --a'"}).some_names == ("x --a", "y --a")
    with pytest.raises(ValueError, match='some_names="\'x": No closing quotation'):
        configure(Config, {"some_names": "'x"})


def test_what_standard_output_cannot_encode_is_escaped(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setattr(sys, "stdout", shown)
    run_cli(lambda _: print("\udce4.png\tein caf\u00e9"), Config, None)
    shown.flush()
    assert shown.buffer.getvalue() == b"\\udce4.png\tein caf\\xe9\n"


def test_files_that_cannot_be_written_are_refused_by_name(tmp_path):
    check_outputs(output=tmp_path / "x", tree=None)
    with pytest.raises(ValueError, match=r"output=.* is a folder, not a file to write"):
        check_outputs(output=tmp_path)
    with pytest.raises(ValueError, match=r"tree=.*x: there is no folder .*none"):
        check_outputs(tree=tmp_path / "none" / "x")
