"""A run as a user starts it: `python resumed_training.py FOLDER [best]`; slow enough to be killed in its midst."""

import dataclasses
import math
import sys
import time
from pathlib import Path

import numpy as np
from tiny_training import Config, Stream, digest, train


class SlowStream(Stream):
    def __call__(self, step):
        time.sleep(0.02)
        return super().__call__(step)


def evaluate(params):
    """A number that moves without order from step to step."""
    return {"score": math.sin(300 * np.asarray(params["head"], np.float64).sum())}


if __name__ == "__main__":
    print("start", flush=True)
    config, options = Config(), {}
    if sys.argv[2:] == ["best"]:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, best_metric="score", eval_every=2))
        options = {"evaluate": evaluate}
    print("end", digest(train(Path(sys.argv[1]), config, data=SlowStream(), **options)), flush=True)
