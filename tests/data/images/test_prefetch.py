"""Batches prepared in the background: the same batches, errors where they belong, and an end."""

import threading
import time

import pytest

from jaxseq.data import Dataset
from jaxseq.data.images import Prefetch


class Steps:
    """Batch of step i is i; some steps raise."""

    fingerprint = "steps"
    steps_per_epoch = 7

    def __init__(self, *wrong: int, seconds: float = 0.0):
        self.wrong, self.seconds, self.asked = wrong, seconds, []

    def __call__(self, step):
        self.asked.append(step)
        time.sleep(self.seconds)
        if step in self.wrong:
            raise KeyError(f"step {step}")
        return step


def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_batches_and_fingerprint_are_those_of_the_dataset_and_each_is_prepared_once():
    steps = Steps()
    with Prefetch(steps, depth=3) as data:
        assert isinstance(data, Dataset)
        assert (data.fingerprint, data.steps_per_epoch) == ("steps", 7)
        assert [data(step) for step in range(20)] == list(range(20))
        eventually(lambda: len(steps.asked) == 23)
    assert steps.asked == list(range(23))
    with pytest.raises(AttributeError, match="nothing"):
        data.nothing  # noqa: B018


def test_the_next_batches_are_ready_when_they_are_asked_for():
    steps = Steps()
    with Prefetch(steps, depth=2) as data:
        data(10)
        eventually(lambda: len(steps.asked) == 3)
        assert steps.asked == [10, 11, 12]


def test_steps_out_of_order_are_right():
    with Prefetch(Steps(seconds=0.001), depth=2) as data:
        order = [5, 0, 6, 6, 5, 1, 2, 100, 3, 101, 0, 1]
        assert [data(step) for step in order] == order


def test_an_error_is_raised_at_the_step_that_asks_for_the_batch_and_the_others_go_on():
    with Prefetch(Steps(3), depth=2) as data:
        for step in (0, 1, 2, 4, 5):
            assert data(step) == step
        for _ in range(2):
            with pytest.raises(KeyError, match="step 3"):
                data(3)
        assert data(4) == 4
        with pytest.raises(ValueError, match="-1"):
            data(-1)


def test_closing_ends_the_thread_while_batches_are_being_prepared():
    before = threading.active_count()
    data = Prefetch(Steps(seconds=0.02), depth=50)
    data(0)
    start = time.monotonic()
    data.close()
    data.close()
    assert time.monotonic() - start < 0.5
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        data(1)


def test_a_forgotten_prefetch_ends_its_thread():
    before = threading.active_count()
    data = Prefetch(Steps(), depth=2)
    data(0)
    del data
    eventually(lambda: threading.active_count() == before)


def test_several_threads_may_ask():
    found = []
    with Prefetch(Steps(seconds=0.0005), depth=2) as data:

        def ask(first):
            found.extend(data(step) == step for step in range(first, first + 20))

        threads = [threading.Thread(target=ask, args=(10 * index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * 60


def test_a_depth_below_one_is_refused():
    with pytest.raises(ValueError, match="depth must be at least 1, not 0"):
        Prefetch(Steps(), depth=0)


def test_a_batch_is_asked_for_again_after_an_error_and_closing_after_one_does_not_wait():
    steps = Steps(1)
    data = Prefetch(steps, depth=1)
    for _ in range(2):
        with pytest.raises(KeyError, match="step 1"):
            data(1)
    steps.wrong = ()
    assert data(1) == 1
    data.close()
    data.close()
    with pytest.raises(RuntimeError, match="closed"):
        data(2)
