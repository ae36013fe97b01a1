"""Trained models with their vocabularies: text in, text out; and the tasks that translators are trained on."""

from jaxseq.pipelines.pair_tasks import Dates, Digits, Files, Names, Reversal, Words
from jaxseq.pipelines.saved import LoadedRun, Pipeline, load_run
from jaxseq.pipelines.search import SearchConfig
from jaxseq.pipelines.text_generator import TextGenerator, cut_at, token_bytes
from jaxseq.pipelines.translator import Translator
from jaxseq.pipelines.user_cores import check_user_cores

__all__ = [
    "Dates",
    "Digits",
    "Files",
    "LoadedRun",
    "Names",
    "Pipeline",
    "Reversal",
    "SearchConfig",
    "TextGenerator",
    "Translator",
    "Words",
    "check_user_cores",
    "cut_at",
    "load_run",
    "token_bytes",
]
