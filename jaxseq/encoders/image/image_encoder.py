"""Images as a memory of regions."""

from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxseq.encoders.encoder import Encoder
from jaxseq.encoders.image.backbone import Backbone
from jaxseq.encoders.image.convolution import with_coordinates
from jaxseq.layers.dense import Dense
from jaxseq.ops import images as image_ops
from jaxseq.ops import positions
from jaxseq.typing import Array, DType, Features, Float, SegmentIds, Shaped

RegionPositions = Literal["coordinates", "sinusoidal", "learned", "none"]


def pooled(feature_map: Float[Array, "*B Y X F"]) -> Float[Array, "*B F"]:
    """The mean over all places of a map."""
    return feature_map.mean((-3, -2))


class ImageEncoder(nn.Module):
    """``encoder(positions(projection(backbone((pixels - mean) / std))))``: images to a memory ``[*B Y·X F]``.

    Each place of the backbone's map is a region of the memory, row after row. It stands in the place of ``TextEncoder``
    in an ``EncoderDecoder``. ``ImageEncoder(None, ...)`` takes feature maps instead of images: those that
    ``feature_map`` returned, computed once for a frozen backbone; the other parameters have the same names.

    ``positions`` tell regions apart:

    - ``"coordinates"`` (default): (y, x) from -1 to 1 as two further channels before the projection. It holds for any
      size of the map, a region's place means the same in images of different sizes, and a map of few regions needs no
      more than two channels;
    - ``"sinusoidal"``: sinusoids of the row in the first half of the features and of the column in the second half,
      added after the projection, as for ``encoder=`` stacks of self-attention in large maps;
    - ``"learned"``: a parameter ``[Y, X, F]``, added after the projection; it fits one size of map;
    - ``"none"``.

    Args:
      backbone: from normalized images to a map (``jaxseq.encoders.image.BACKBONES``), or None.
      features: the width of the projection; None for no projection.
      encoder: an encoder of the regions as a sequence, after the projection (for example of self-attention).
      positions: see above.

    Raises:
      ValueError: segment ids are given, unknown ``positions`` or such as do not fit, or an input of a wrong shape.
    """

    backbone: Backbone | None
    features: int | None = None
    encoder: Encoder | None = None
    positions: RegionPositions = "coordinates"
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def setup(self) -> None:
        """Creates the projection."""
        self.projection = RegionProjection(self.features, self.positions, self.dtype, self.param_dtype)

    def feature_map(self, images: Shaped[Array | np.ndarray, "*B Y X C"]) -> Float[Array, "*B _Y _X F"]:
        """The backbone's map of images of pixels 0..255; without a backbone, the input itself.

        Raises:
          ValueError: images of fewer than three dimensions, a backbone without ``mean`` and ``std``, or, without a
            backbone, a map that is not of floats.
        """
        images = jnp.asarray(images)
        if images.ndim < 3:
            raise ValueError(f"ImageEncoder needs images of shape [*B, Y, X, C], not {images.shape}")
        if self.backbone is None:
            if not jnp.issubdtype(images.dtype, jnp.floating):
                raise ValueError(
                    f"ImageEncoder(None) takes feature maps of floats, not {images.dtype} of {images.shape}"
                )
            return images.astype(self.dtype)
        if missing := [name for name in ("mean", "std") if not hasattr(self.backbone, name)]:
            raise ValueError(f"{type(self.backbone).__name__} is no Backbone: it has no {' and no '.join(missing)}")
        normalized = image_ops.normalize(images, self.backbone.mean, self.backbone.std, self.dtype)
        return self.backbone(normalized)

    def __call__(
        self, images: Shaped[Array | np.ndarray, "*B Y X C"], segment_ids: SegmentIds | None = None
    ) -> Features:
        """The memory: one vector of features for each region."""
        if segment_ids is not None:
            raise ValueError(
                f"ImageEncoder takes no segment_ids (given: shape {segment_ids.shape}): images have no padding"
            )
        regions = self.projection(self.feature_map(images))
        regions = regions.reshape(*regions.shape[:-3], regions.shape[-3] * regions.shape[-2], regions.shape[-1])
        return regions if self.encoder is None else self.encoder(regions, None)


class RegionProjection(nn.Module):
    """A dense layer for every place of a map, and the places' positions (see ``ImageEncoder``)."""

    features: int | None
    positions: str
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B Y X C"]) -> Float[Array, "*B Y X F"]:
        """Projects each place."""
        known = get_args(RegionPositions)
        if self.positions not in known:
            raise ValueError(f"positions={self.positions!r}; known: {', '.join(known)}")
        x = x.astype(self.dtype)
        if self.positions == "coordinates":
            x = with_coordinates(x)
        if self.features is not None:
            x = Dense(self.features, dtype=self.dtype, param_dtype=self.param_dtype, name="dense")(x)
        if self.positions == "sinusoidal":
            return x + jnp.broadcast_to(sinusoids(*x.shape[-3:]).astype(x.dtype), x.shape)
        if self.positions == "learned":
            return x + jnp.broadcast_to(self._learned(x.shape[-3:]).astype(x.dtype), x.shape)
        return x

    def _learned(self, shape: tuple[int, ...]) -> Any:
        if self.has_variable("params", "positions"):
            stored: tuple[int, ...] = self.get_variable("params", "positions").shape
            if stored != shape:
                raise ValueError(f"positions='learned' are for a map {stored}, not {shape}; 'coordinates' fit any size")
        return self.param("positions", nn.initializers.normal(0.02), shape, self.param_dtype)


def sinusoids(height: int, width: int, features: int) -> Float[Array, "Y X F"]:
    """``ops.positions.sinusoid`` of the row in the first half of the features, of the column in the second.

    Raises:
      ValueError: 4 does not divide ``features``.
    """
    if features % 4:
        raise ValueError(f"positions='sinusoidal' needs features={features} to be a multiple of 4")
    rows, columns = (positions.sinusoid(jnp.arange(n), features // 2) for n in (height, width))
    shape = height, width, features // 2
    return jnp.concatenate([jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None], shape)], axis=-1)
