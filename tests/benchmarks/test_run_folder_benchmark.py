"""The benchmark of run folders: its parts are parts of the whole, and its state has the size that it is asked for."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import run_folder


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    made = run_folder.prepare(tmp_path_factory.mktemp("case"), 10_000)
    yield made
    made.store.close()
    made.run.close()


@pytest.mark.full
def test_a_small_state_comes_back_and_its_parts_are_no_longer_than_the_whole(case):
    run_folder.check(case)
    seconds = run_folder.one_round(case, 1)
    for whole, parts in run_folder.PARTS.items():
        named = [seconds[f"{whole}: {part}"] for part in parts]
        assert all(part > 0 for part in named), "a function of the package that the benchmark no longer finds"
        assert sum(named) <= seconds[whole]
    assert 0 < seconds["load_run: besides parameters"] < seconds["load_run"]


@pytest.mark.full
def test_a_checkpoint_that_differs_is_not_timed(case, monkeypatch):
    case.store.save(0, case.state, {})
    other = case._replace(state=case.state._replace(step=case.state.step + 1))
    monkeypatch.setattr(case.store, "save", lambda *arguments: None)
    with pytest.raises(ArithmeticError, match="differs"):
        run_folder.check(other)


@pytest.mark.parametrize("size", [1e4, 1e7, 1e9])
def test_the_width_gives_the_bytes(size):
    width = run_folder.features_of(size)
    assert 4 * 2 * run_folder.LAYERS * width**2 == pytest.approx(size, rel=0.1)


def test_the_table_has_a_line_for_each_quantity_and_the_ratio():
    seconds = [(0.1, 3.0), (0.3, 1.0), (0.2, 2.0)]
    medians = run_folder.medians([{"save": save, "load_run": load} for save, load in seconds])
    assert medians == {"save": 0.2, "load_run": 2.0}
    rows = [
        {"name": "this", "commit": "a", "megabytes": 10.0, "median_s": medians},
        {"name": "before", "commit": "b", "megabytes": 10.0, "median_s": {"save": 0.1, "load_run": 4.0}},
    ]
    assert "| save | 200.0 | 100.0 | 2.00 |\n| load_run | 2,000.0 | 4,000.0 | 0.50 |" in run_folder.table(rows)
    assert run_folder.table(rows[:1]).endswith("| save | 200.0 |\n| load_run | 2,000.0 |")
