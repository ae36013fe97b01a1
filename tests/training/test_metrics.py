import builtins
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.training import CheckpointMismatchError, JsonLinesWriter, read_json_lines
from jaxseq.training.metrics import MetricAccumulator


def test_lines_are_json_and_what_is_not_finite_is_null(tmp_path):
    lines = JsonLinesWriter(tmp_path / "m.jsonl")
    lines.write(3, {"loss": jnp.asarray(0.5), "worst": np.float32("nan"), "n": np.int32(2), "name": "x"})
    row = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {"step": 3, "loss": 0.5, "worst": None, "n": 2, "name": "x"}


def test_rewinding_drops_later_and_torn_lines_only(tmp_path):
    file = tmp_path / "m.jsonl"
    lines = JsonLinesWriter(file)
    for step in (1, 2, 3, 4):
        lines.write(step, {"loss": step})
    with open(file, "a") as stream:
        stream.write('{"step": 2, "lo')
    assert [row["step"] for row in read_json_lines(file)] == [1, 2, 3, 4]
    lines.rewind(2)
    assert [row["step"] for row in read_json_lines(file)] == [1, 2]
    lines.write(3, {})
    assert [row["step"] for row in read_json_lines(file)] == [1, 2, 3]
    JsonLinesWriter(tmp_path / "absent").rewind(0)
    assert read_json_lines(tmp_path / "absent") == []


def step_metrics(loss, updates, clipped):
    return {"loss": loss, "updates": updates, "clipped": clipped, "learning_rate": updates / 10, "skipped": 0}


def test_a_window_has_means_the_latest_rate_and_the_clipped_fraction():
    accumulator = MetricAccumulator()
    for index, loss in enumerate([1.0, 2.0, math.nan, 3.0]):
        accumulator.add(step_metrics(loss, index + 1, min(index, 2)), tokens=5)
    assert accumulator.tokens == 20
    row = accumulator.flush()
    assert row["loss"] == 2.0
    assert row["bits_per_token"] == pytest.approx(2 / math.log(2))
    assert row["learning_rate"] == 0.4
    assert row["clipped_fraction"] == 0.5
    accumulator.add(step_metrics(1.0, 5, 3), tokens=5)
    accumulator.add(step_metrics(1.0, 6, 3), tokens=5)
    assert accumulator.flush()["clipped_fraction"] == 0.5


def test_a_window_is_the_mean_over_the_items_of_all_its_steps():
    accumulator, losses, weights = MetricAccumulator(), [1.0, 4.0, 7.0, math.nan], [2.0, 8.0, 0.0, 5.0]
    accumulator.add({"loss": 100.0, "weight": -3.0}, tokens=0)  # a skipped step
    for loss, weight in zip(losses, weights, strict=True):
        accumulator.add({"loss": loss, "accuracy": 2 * loss, "weight": weight}, tokens=1)
    row = accumulator.flush()
    assert row["loss"] == (2 * 1 + 8 * 4) / 10 and row["accuracy"] == 2 * row["loss"]
    assert "weight" not in row
    accumulator.add({"loss": 1.0, "weight": 0.0}, tokens=0)
    assert accumulator.flush()["loss"] is None


def test_the_gradient_norm_is_averaged_over_updates():
    accumulator = MetricAccumulator()
    for norm, updated in [(0.0, False), (3.0, True), (3.0, False), (5.0, True)]:
        accumulator.add({"gradient_norm": norm, "updated": np.bool_(updated), "weight": 10.0}, tokens=1)
    row = accumulator.flush()
    assert row["gradient_norm"] == 4 and "updated" not in row


def test_a_window_of_an_older_version_is_refused():
    content = {"sums": {"loss": 3.0}, "numbers": {"loss": 2}, "latest": {}, "counts": {}, "tokens": 1}
    with pytest.raises(CheckpointMismatchError, match=r"sums, numbers, .*older version, not as sums, weights"):
        MetricAccumulator(content)


def test_a_window_that_was_saved_goes_on_with_the_same_numbers():
    whole, part = MetricAccumulator(), MetricAccumulator()
    losses = [0.1, 0.7, 1.3, 0.2]
    for index, loss in enumerate(losses):
        whole.add(step_metrics(np.float32(loss), index, 0), 3)
    for index, loss in enumerate(losses):
        part.add(step_metrics(np.float32(loss), index, 0), 3)
        part = MetricAccumulator(json.loads(json.dumps(part.content)))
    assert whole.flush() == part.flush()


def test_a_window_without_a_finite_loss_has_none():
    accumulator = MetricAccumulator()
    accumulator.add(step_metrics(math.inf, 1, 0), 3)
    row = accumulator.flush()
    assert row["loss"] is None and row["bits_per_token"] is None


def test_a_full_disk_is_warned_of_once_and_the_next_line_is_whole(tmp_path, monkeypatch):
    lines, real, full = JsonLinesWriter(tmp_path / "metrics.jsonl"), builtins.open, True

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.stream.close()

        def write(self, text):
            self.stream.write(text[: len(text) // 2])
            raise OSError(28, "No space left on device")

    def open_full(*arguments, **options):
        return Full(real(*arguments, **options)) if full and "a" in arguments else real(*arguments, **options)

    monkeypatch.setattr(builtins, "open", open_full)
    with pytest.warns(UserWarning, match="No space left") as caught:
        lines.write(1, {"loss": 1.0})
        lines.write(2, {"loss": 2.0})
    assert len(caught) == 1
    full = False
    lines.write(3, {"loss": 3.0})
    lines.write(4, {"loss": 4.0})
    assert [row["step"] for row in read_json_lines(lines.file)] == [3, 4]
