"""The table of cores: a new one is its file and one line here; tests, benchmarks and experiments read it."""

from jaxseq.cores.attention import Attention
from jaxseq.cores.core import Core
from jaxseq.cores.elman import Elman
from jaxseq.cores.gru import GRU
from jaxseq.cores.lstm import LSTM
from jaxseq.cores.mingru import MinGRU

CORES: dict[str, type[Core]] = {
    "elman": Elman,
    "gru": GRU,
    "lstm": LSTM,
    "mingru": MinGRU,
    "attention": Attention,
}
