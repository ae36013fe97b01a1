import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.plotting import Alignment, draw_alignment, draw_alignments, draw_heads

ODD = [
    *[
        "日本語",
        "مرحبا",
        "שלום",
        "नमस्ते",
        "สวัสดี",
        "привет",
        "한국",
        "\U0001f600",
        "👩\u200d👩",
        "a b",
        "\x07",
        "\t",
        "\n",
    ],
    *[
        "",
        "e\u0301",
        "\u0301x",
        "日\u0301",
        "a\u0e31",
        "$x^2$",
        "\\frac",
        "\u200b",
        "می\u200cخواهم",
        "x" * 60,
        "\udc80",
    ],
]


def attention(target, source, seed=0):
    """Random weights whose rows sum to one."""
    values = np.exp(3 * np.random.default_rng(seed).normal(size=(target, source)))
    return values / values.sum(-1, keepdims=True)


def pixels(file):
    """The picture in a PNG, after a look at its signature: 0..1, without alpha."""
    from matplotlib.image import imread

    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return imread(file)[..., :3]


@pytest.fixture
def plots():
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")


@pytest.mark.parametrize("size", [(1, 1), (40, 3), (3, 40), (150, 8)])
def test_an_alignment_of_any_size_is_drawn_whole(plots, tmp_path, size):
    source, target = [f"s{i}" for i in range(size[1])], [f"t{i}" for i in range(size[0])]
    image = pixels(draw_alignment(attention(*size), source, target, tmp_path / "a.png", title="A title " * 9))
    edges = [image[0], image[-1], image[:, 0], image[:, -1]]
    assert all((edge == 1).all() for edge in edges), "something is cut off"
    assert image.min() < 0.3


def test_rows_are_targets_downwards_and_columns_sources(plots, tmp_path):
    weights = np.zeros((3, 5))
    weights[2, 0] = 1
    image = pixels(draw_alignment(weights, list("abcde"), list("xyz"), tmp_path / "a.png"))
    dark = np.argwhere(np.abs(image - np.array([0x12, 0x30, 0x4F]) / 255).max(-1) < 0.01)
    cell = dark[np.bincount(dark[:, 0])[dark[:, 0]] > 30]
    assert len(cell) > 500
    assert cell[:, 0].mean() > 0.6 * image.shape[0]
    assert cell[:, 1].mean() < 0.3 * image.shape[1]


def test_odd_characters_are_drawn_without_a_warning(plots, tmp_path):
    file = draw_alignment(attention(len(ODD), len(ODD)), ODD, ODD, tmp_path / "a.png", title=" ".join(ODD[:8]))
    image = pixels(file)
    assert (image[:, -1] == 1).all()


def test_several_alignments_share_one_picture(plots, tmp_path):
    panels = [
        Alignment(attention(n, m), ["w"] * m, ["word"] * n, f"{n} from {m}")
        for n, m in [(5, 6), (1, 1), (3, 30), (12, 10), (7, 9)]
    ]
    image = pixels(draw_alignments(panels, tmp_path / "many.png"))
    alone = pixels(draw_alignments(panels[:1], tmp_path / "one.png"))
    assert image.shape[0] > alone.shape[0]
    assert image.shape[1] > alone.shape[1]
    assert all((edge == 1).all() for edge in [image[0], image[-1], image[:, 0], image[:, -1]])


def test_every_head_has_its_picture(plots, tmp_path):
    heads = jnp.stack([jnp.asarray(attention(4, 3, seed)) for seed in range(3)])
    one = pixels(draw_heads(heads[:1], list("abc"), list("wxyz"), tmp_path / "one.png"))
    three = pixels(draw_heads(heads, list("abc"), list("wxyz"), tmp_path / "three.png", titles=list("ABC")))
    assert three.shape[1] > 2 * one.shape[1] - 150
    with pytest.raises(ValueError, match="2 titles for 3 heads"):
        draw_heads(heads, list("abc"), list("wxyz"), tmp_path / "no.png", titles=list("AB"))


def test_what_is_no_alignment_is_refused(tmp_path):
    file = tmp_path / "no.png"
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*mean over heads first, or draw_heads"):
        draw_alignment(np.zeros((2, 3, 4)), list("abcd"), list("abc"), file)
    with pytest.raises(ValueError, match=r"\(3, 4\) for 3 target and 2 source tokens"):
        draw_alignment(np.zeros((3, 4)), list("ab"), list("abc"), file)
    with pytest.raises(ValueError, match=r"from 0 to 2: not in 0\.\.1"):
        draw_alignment(np.array([[0.0, 2.0]]), list("ab"), list("a"), file)
    with pytest.raises(ValueError, match=r"\(0, 2\), not \[T S\]"):
        draw_alignment(np.zeros((0, 2)), list("ab"), [], file)
    with pytest.raises(ValueError, match="no alignment"):
        draw_alignments([], file)
    assert not file.exists()
