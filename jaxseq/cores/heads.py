"""The number of heads of a core."""


def resolve_num_heads(width: int, num_heads: int | None, name: str = "features") -> int:
    """``num_heads``; where that is None, one for every 64 features if 64 divides ``width``, else one.

    Raises:
      ValueError: ``num_heads`` does not divide ``width``, which the message calls ``name``.
    """
    heads = num_heads
    if heads is None:
        heads = width // 64 if width % 64 == 0 else 1
    if heads < 1 or width % heads:
        raise ValueError(f"{name}={width} is not divisible by num_heads={heads}")
    return heads
