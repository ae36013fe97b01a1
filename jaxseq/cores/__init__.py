"""Cores, which obey the splitting law: their base classes, one mixer a file, wrappers, and the table of all."""

from jaxseq.cores.attention import Attention
from jaxseq.cores.conv import Conv
from jaxseq.cores.core import Core, StateCarry, StateCore
from jaxseq.cores.delta import Delta
from jaxseq.cores.elman import Elman
from jaxseq.cores.gla import GLA
from jaxseq.cores.gru import GRU
from jaxseq.cores.layer_norm_lstm import LayerNormLSTM
from jaxseq.cores.lru import LRU
from jaxseq.cores.lstm import LSTM
from jaxseq.cores.mamba2 import Mamba2
from jaxseq.cores.mgu import MGU
from jaxseq.cores.mingru import MinGRU
from jaxseq.cores.minlstm import MinLSTM
from jaxseq.cores.mlstm import MLSTM
from jaxseq.cores.recurrent import Recurrent
from jaxseq.cores.rglru import RGLRU
from jaxseq.cores.slstm import SLSTM
from jaxseq.cores.table import CORES, check_options, core_name, find_core, make_core, split_cores
from jaxseq.cores.wrappers import Pointwise, Positions, Residual, Stacked, block

__all__ = [
    "CORES",
    "GLA",
    "GRU",
    "LRU",
    "LSTM",
    "MGU",
    "MLSTM",
    "RGLRU",
    "SLSTM",
    "Attention",
    "Conv",
    "Core",
    "Delta",
    "Elman",
    "LayerNormLSTM",
    "Mamba2",
    "MinGRU",
    "MinLSTM",
    "Pointwise",
    "Positions",
    "Recurrent",
    "Residual",
    "Stacked",
    "StateCarry",
    "StateCore",
    "block",
    "check_options",
    "core_name",
    "find_core",
    "make_core",
    "split_cores",
]
