"""A run as a user starts it: `python resumed_training.py FOLDER`; slow enough to be killed in its midst."""

import sys
import time
from pathlib import Path

from tiny_training import Config, Stream, digest, train


class SlowStream(Stream):
    def __call__(self, step):
        time.sleep(0.02)
        return super().__call__(step)


if __name__ == "__main__":
    print("start", flush=True)
    print("end", digest(train(Path(sys.argv[1]), Config(), data=SlowStream())), flush=True)
