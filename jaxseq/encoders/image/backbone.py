"""The protocol of image backbones."""

from typing import Protocol, runtime_checkable

from jaxseq.typing import Array, Float


@runtime_checkable
class Backbone(Protocol):
    """``backbone(images) -> feature map``: a Linen module from normalized images to a map ``[*B Y' X' F]``.

    ``features`` is the width of the map, ``stride`` the distance of its places in pixels. ``mean`` and ``std``, in
    pixels 0..255 and one number a channel, are all that ``ImageEncoder`` reads: it passes ``(pixels - mean) / std``.

        class Small(nn.Module):
            mean, std = (127.5,) * 3, (127.5,) * 3
            features, stride = 32, 4

            @nn.compact
            def __call__(self, images):
                return nn.relu(nn.Conv(32, (4, 4), 4)(images))

        encoder = ImageEncoder(Small(), features=128)
    """

    @property
    def features(self) -> int:
        """The width of the map."""
        ...

    @property
    def stride(self) -> int:
        """Pixels of the image for each place of the map, along each axis."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from the pixels of each channel."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """The pixels of each channel are divided by it."""
        ...

    def __call__(self, images: Float[Array, "*B Y X C"], /) -> Float[Array, "*B _Y _X F"]:
        """The feature map of normalized images."""
        ...
