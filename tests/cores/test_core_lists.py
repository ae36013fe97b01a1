"""Lists of cores as a command line gives them: ``lstm,attention:window=32``."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.cores import GRU, LSTM, Attention, Pointwise, Residual, Stacked, core_name, make_core, split_cores
from jaxseq.decoders import make_decoder
from jaxseq.encoders import EncoderBlock, SelfAttention, make_encoder
from jaxseq.models import CaptionerConfig
from jaxseq.models.configs import LanguageModelConfig, TransformerTranslator

HYBRID = "lstm:peepholes=True,attention:window=8:num_heads=2,gru"


def test_a_list_is_split_outside_of_brackets_and_quotes():
    assert split_cores(HYBRID) == ("lstm:peepholes=True", "attention:window=8:num_heads=2", "gru")
    forced = 'lstm:forced_gates=(("f", 1.0), ("i", 0.0)),gru'
    assert split_cores(forced) == ('lstm:forced_gates=(("f", 1.0), ("i", 0.0))', "gru")
    assert core_name("a/b.py:Mine:num_heads=2:text='x:y'") == ("a/b.py:Mine", ("num_heads=2", "text='x:y'"))
    assert core_name("lstm") == ("lstm", ()) and core_name("C:b.py:Mine") == ("C:b.py:Mine", ())
    for text in ("", "lstm,", ",lstm", "lstm,,gru", "lstm, ,gru"):
        with pytest.raises(ValueError, match="a name is missing"):
            split_cores(text)


@settings(max_examples=200, deadline=None)
@given(st.text("ab,:=()'\"[ ].py", max_size=30))
def test_an_item_of_a_list_is_a_list_of_itself(text):
    try:
        items = split_cores(text)
    except ValueError:
        return
    for item in items:
        assert split_cores(item) == (item,)
        name, options = core_name(item)
        assert ":".join((name, *options)) == item


def test_the_cores_of_a_list_have_their_own_options():
    core = make_core(HYBRID, 8)
    assert isinstance(core, Stacked)
    lstm, attention, gru = core.cores
    assert isinstance(lstm, LSTM) and lstm.peepholes and isinstance(gru, GRU)
    assert isinstance(attention, Attention) and (attention.window, attention.num_heads) == (8, 2)
    with pytest.raises(ValueError, match=r"'peephole=True'"):
        make_core("lstm:peephole=True,gru", 8)
    with pytest.raises(ValueError, match=r"unknown core 'lstn'"):
        make_core("gru,lstn", 8)
    with pytest.raises(ValueError, match=r"write NAME:field=value in the list"):
        make_core(HYBRID, 8, ("num_heads=2",))
    with pytest.raises(ValueError, match=r"num_heads twice"):
        make_core("lstm:num_heads=2", 8, ("num_heads=4",))


def test_a_language_model_repeats_the_list_and_gives_attention_its_block():
    config = LanguageModelConfig(core="lstm,attention:window=3", features=8, layers=2)
    assert config.cores == ("lstm", "attention:window=3")
    cores = config.build(11, attention_lookback=5).core.cores
    assert [type(core) for core in cores] == [Residual, Stacked, Residual, Stacked, Pointwise]
    assert isinstance(cores[0].core, LSTM) and cores[1].cores[0].core.window == 3  # else lookback + 1
    plain = LanguageModelConfig(core="lstm", features=8).build(11, 5).core.cores
    assert [type(core) for core in plain] == [LSTM]
    with pytest.raises(ValueError, match="of several cores"):
        LanguageModelConfig(core="lstm,gru", core_options=("num_heads=2",), features=8).build(11, 5)


def test_encoders_and_decoders_take_lists():
    encoder = make_encoder("lstm,transformer", 8, 2, feed_forward=16)
    blocks = [part for part in encoder.encoders if isinstance(part, EncoderBlock)]
    attends = [isinstance(part.encoder, SelfAttention) for part in blocks]
    assert attends == [False, True, False, True]
    decoder = make_decoder("transformer", "gru,attention:window=4,transformer", 8)
    assert [type(part.core) for part in decoder.decoders] == [GRU, Attention, Attention]
    assert decoder.decoders[1].core.window == 4
    assert TransformerTranslator(encoder="lstm,transformer", decoder="gru").cores == ("lstm", "gru")
    with pytest.raises(ValueError, match="positions=concat needs self-attention on both sides"):
        TransformerTranslator(encoder="lstm,transformer", positions="concat")


def test_a_captioner_takes_other_cores_than_its_own():
    assert CaptionerConfig().cores == ("lstm",) and CaptionerConfig(decoder="transformer").cores == ()
    config = CaptionerConfig(core="gru,attention:window=4", features=8)
    assert config.cores == ("gru", "attention:window=4")
    assert [type(part.core) for part in config.build(9).decoder.decoders] == [GRU, Attention]
    with pytest.raises(ValueError, match="decoder=rnn does not take transformer"):
        CaptionerConfig(decoder="rnn", core="lstm,transformer")
