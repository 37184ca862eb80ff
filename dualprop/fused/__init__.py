"""The fused engine: dyadic activations inside autograd, in one forward and one backward pass."""

from dualprop.fused.dualization import dualize, undualize
from dualprop.fused.dyadic import CotangentNudge, dyadic_activation
from dualprop.fused.sweep import swept

__all__ = ["CotangentNudge", "dualize", "dyadic_activation", "swept", "undualize"]
