"""The throughput benchmark: what it refuses, what it survives, what it counts, and that its figures come from rows."""

import json
import math
import sys
from pathlib import Path

import jax
import pytest

from jaxseq.cores import CORES, make_core

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import harness
import throughput
import throughput_cases
from throughput_costs import count_cost, visible_pairs
from throughput_report import crossings, panels

CORES_OF_TESTS = '''
"""Cores that a benchmark must not believe."""

from jaxseq.cores import MinGRU


class Wrong(MinGRU):
    """Breaks the splitting law: a sequence gives other outputs than its steps."""

    def mix(self, state, xs, segment_ids):
        state, ys = super().mix(state, xs, segment_ids)
        return state, ys if xs.shape[-2] == 1 else 1.01 * ys


class WrongGradient(MinGRU):
    """Right outputs, and a gradient that is stopped in part."""

    def mix(self, state, xs, segment_ids):
        import jax

        if xs.shape[-2] > 1:
            xs = 0.5 * xs + 0.5 * jax.lax.stop_gradient(xs)
        return super().mix(state, xs, segment_ids)


class Failing(MinGRU):
    """Cannot be run."""

    def mix(self, state, xs, segment_ids):
        raise RuntimeError("no such luck")
'''


@pytest.fixture
def ceilings(monkeypatch):
    """Ceilings that need no measuring."""
    monkeypatch.setattr(throughput, "matmul_ceiling", lambda dtype: 1e11)
    monkeypatch.setattr(throughput, "copy_ceiling", lambda dtype: 1e10)


@pytest.mark.full
def test_a_run_marks_what_is_wrong_fails_or_does_not_fit_and_goes_on(tmp_path, ceilings, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(CORES_OF_TESTS)
    mine = [f"{tmp_path / 'mine.py'}:{name}" for name in ("Wrong", "WrongGradient", "Failing")]
    out, figures = tmp_path / "rows.jsonl", tmp_path / "figures"
    sizes = ["--lengths", "32", "--widths", "8", "--batch", "2", "--tokens", "64", "--axis", "batch", "tokens"]
    throughput.main(["--mixers", "mingru", "attention", *mine, *sizes, "--repeats", "3", "--check-length", "16",
                     "--out", str(out), "--modes", "forward+backward"])  # fmt: skip
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 5  # both axes meet in one case
    for row in rows:
        name = row["name"].split(":")[-1]
        assert ("error" in row) == (name in ("Wrong", "WrongGradient", "Failing")) == ("median_s" not in row)
        if name.startswith("Wrong"):
            assert row["error"].startswith("ArithmeticError: misses the reference")
        elif name == "Failing":
            assert "no such luck" in row["error"]
        else:
            assert 0 < row["error_vs_reference"] < 1e-3 and row["tokens_per_s"] > 0 and row["compile_s"] > 0
            assert row["fraction"] > 0 and row["bound"] in ("matmul", "copy") and row["temp_bytes"] > 0
            assert row["versions"]["jax"] == jax.__version__ and "xla_flags" in row and row["device"]
            assert row["checked"] == "outputs and gradients, first 16 of 32 positions, 2 of 2 rows"
            assert row["axes"] == ["batch", "tokens"]
    assert "no such luck" in capsys.readouterr().out

    monkeypatch.setattr(throughput_cases, "available_memory", lambda: 1e3)
    throughput.main(["--mixers", "mingru", "--lengths", "32", "--widths", "8", "--modes", "forward", "--batch", "2",
                     "--out", str(out), "--append", "--figures", str(figures)])  # fmt: skip
    (added,) = [json.loads(line) for line in out.read_text().splitlines()[5:]]
    assert added["error"] == "out of memory: needs 0.0 GB, 0.0 GB are free"

    pytest.importorskip("matplotlib")
    shorter = [
        json.dumps(row | {"T": 16, "B": 4, "axes": ["tokens"], "tokens_per_s": 1e6 / (1 + i)})
        for i, row in enumerate(rows[:2])
    ]
    out.write_text("\n".join([*out.read_text().splitlines(), *shorter]))
    throughput.main(["--redraw", str(out), "--figures", str(figures)])
    assert "mingru" in capsys.readouterr().out
    drawn = [f"{kind}-forward-backward-{axis}-width8-float32.png"
             for kind in ("throughput", "memory", "roofline") for axis in ("batch2", "tokens64")]  # fmt: skip
    assert sorted(path.name for path in figures.iterdir()) == sorted(drawn)


def test_decoding_is_checked_from_an_empty_cache_on(ceilings):
    case = throughput_cases.Case("decode", 2, 12, 8, "float32", 12)
    names = ["mingru", "attention,window=5"]
    candidates = [throughput_cases.mixer(name, case) for name in names]
    rows = harness.measure({}, candidates, throughput_cases.make_inputs(case), reference=None, repeats=2)
    assert all("error" not in row and row["error_vs_reference"] < 1e-5 for row in rows), rows
    assert [row["family"] for row in rows] == ["elementwise recurrence", "attention"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixers", "gru", "lstn"], r"unknown core 'lstn'; known: .*lstm.*attention"),
        (["--mixers", "gru,heads=2"], r"core 'gru' takes options field=value for num_heads"),
        (
            ["--lengths", "96", "100", "--axis", "tokens", "--tokens", "960"],
            "tokens=960 is not divisible by length=100",
        ),
        (["--widths", "0"], r"widths=\(0,\) is not positive"),
        (["--batch", "-1"], "batch=-1 is not positive"),
        (["--modes", "sideways"], r"modes='sideways'; known: forward, forward\+backward, decode"),
        (["--redraw", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_and_value(arguments, message):
    with pytest.raises(SystemExit, match=message):
        throughput.main(arguments)


def test_every_preset_is_sound_and_takes_the_whole_table():
    for plan in throughput.PRESETS.values():
        assert set(CORES) <= set(plan.mixers) and len(list(plan.cases())) > 1


def test_costs_are_those_of_the_equations():
    B, T, D, F = 3, 40, 8, 16
    lstm = make_core("lstm", F)
    forward = count_cost(lstm, "forward", B, T, D)
    parameters = 4 * (D * 4 * F + 4 * F * F + 4 * F)
    assert forward.flops == B * T * 2 * 4 * F * (D + F)
    assert forward.bytes == parameters + B * T * (D + F) * 4
    training = count_cost(lstm, "forward+backward", B, T, D)
    assert (training.flops, training.bytes) == (3 * forward.flops, 2 * forward.bytes)
    decode = count_cost(lstm, "decode", B, T, D)
    assert decode.flops == B * 2 * 4 * F * (D + F)
    assert decode.bytes == parameters + B * (4 * (D + F) + 2 * (2 * 4 * F + 4))

    attention = count_cost(make_core("attention", F), "forward", B, T, D)
    assert attention.flops == B * (T * 2 * F * (3 * D + F) + 4 * F * T * (T + 1) // 2)
    assert attention.floor_s(1e3, 1e30) == (attention.flops / 1e3, "matmul")
    assert visible_pairs(5, 3) == 0 + 1 + 2 + 2 + 2 and visible_pairs(2, 3) == visible_pairs(2) == 1


def test_crossings_are_interpolated_in_the_logarithm_of_length():
    flat = [(T, 100.0) for T in (64, 256, 1024, 4096)]
    falling = [(T, 100.0 * 512 / T) for T in (64, 256, 1024, 4096)]
    (found,) = crossings(flat, falling)
    assert found.overtakes and math.isclose(found.length, 512)
    (back,) = crossings(falling, flat)
    assert not back.overtakes and math.isclose(back.length, 512)
    assert crossings(flat, [(T, 1.01 * y * (1 if T < 300 else 0.97)) for T, y in flat]) == []
    assert crossings(flat, falling[2:]) == []


def test_the_later_row_of_a_mixer_at_one_size_stands():
    row = {"name": "gru", "mode": "forward", "axes": ["batch"], "B": 1, "T": 8, "width": 4, "dtype": "float32"}
    (members,) = panels([row | {"tokens_per_s": 1.0}, row | {"tokens_per_s": 2.0}]).values()
    assert [member["tokens_per_s"] for member in members] == [2.0]
