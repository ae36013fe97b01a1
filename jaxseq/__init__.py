"""jaxseq: recurrence and attention under one functional contract, in JAX."""

__version__ = "0.1.0"
