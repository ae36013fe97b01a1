"""The simple recurrent network."""

from jaxseq.cores.recurrent import Recurrent
from jaxseq.ops import Cell, cells


class Elman(Recurrent):
    """``h_t = φ(x_t W + b + h_{t-1} R)`` with φ ``"tanh"``, ``"relu"`` or ``"identity"`` (Elman 1990).

    Raises:
      ValueError: ``activation`` is not one of these.
    """

    activation: str = "tanh"

    def cell(self) -> Cell:
        """The plain cell with the activation φ."""
        if self.activation not in cells.ELMAN:
            raise ValueError(f"activation={self.activation!r}; known: {', '.join(cells.ELMAN)}")
        return cells.ELMAN[self.activation]
