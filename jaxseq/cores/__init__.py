"""What obeys the splitting law: one mixer a file, wrappers, and the table of them all."""

from jaxseq.cores.attention import Attention
from jaxseq.cores.core import Core, StateCarry
from jaxseq.cores.elman import Elman
from jaxseq.cores.gru import GRU
from jaxseq.cores.lstm import LSTM
from jaxseq.cores.mingru import MinGRU
from jaxseq.cores.recurrent import Recurrent
from jaxseq.cores.table import CORES, find_core, make_core
from jaxseq.cores.wrappers import AddPositions, Pointwise, Residual, Stacked, block

__all__ = [
    "CORES",
    "GRU",
    "LSTM",
    "AddPositions",
    "Attention",
    "Core",
    "Elman",
    "MinGRU",
    "Pointwise",
    "Recurrent",
    "Residual",
    "Stacked",
    "StateCarry",
    "block",
    "find_core",
    "make_core",
]
