"""Comparing gradients and states with an oracle's, layer by layer. A norm ratio of 2, β or N
diagnoses itself."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Named = Mapping[str, Tensor]


def rounding(beta: float, dtype: torch.dtype = torch.float64, terms: float = 1e3) -> float:
    """The relative error that arithmetic alone explains: δ is a difference of nearly equal numbers,
    so eps/β.

    `terms` stands for the sums over units and layers, and for how much larger a state is than its
    loss gradient.
    """
    return terms * torch.finfo(dtype).eps / min(beta, 1.0)


def distance(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖; the absolute norm where the expected value is zero."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    size = float(expected.double().norm())
    return float((found.double() - expected.double()).norm()) / (size or 1.0)


def cosine(found: Tensor, expected: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(found.double().flatten(), expected.double().flatten(), dim=0))


def report(found: Named, expected: Named) -> str:
    """One row a tensor: relative distance, cosine and norm ratio."""
    rows = []
    for name in expected:
        ratio = float(found[name].norm() / expected[name].norm())
        rows.append(
            f"  {name}: distance {distance(found[name], expected[name]):.3g}, "
            f"cosine {cosine(found[name], expected[name]):.12g}, norm ratio {ratio:.12g}"
        )
    return "\n".join(rows)


def assert_same(found: Named, expected: Named, tolerance: float, what: str = "") -> None:
    """Every tensor within a relative distance of `tolerance`, under the same names."""
    assert list(found) == list(expected), f"{what}: names {list(found)} instead of {list(expected)}"
    far = [name for name in expected if not distance(found[name], expected[name]) <= tolerance]
    assert not far, f"{what}: {far} beyond {tolerance:.3g}\n{report(found, expected)}"


def numbered(tensors: Sequence[Tensor], name: str) -> dict[str, Tensor]:
    """A sequence over layers as named tensors."""
    return {f"{name}[{k}]": tensor for k, tensor in enumerate(tensors)}
