"""A model whose layers read several earlier layers; in an `nn.Sequential` each reads one.

    model = Layered([
        (nn.ReLU(), {0: nn.Conv2d(3, 8, 3, padding=1)}),                      # reads the input, 0
        (nn.ReLU(), {1: nn.Conv2d(8, 8, 3, padding=1)}),
        (None, {2: nn.Sequential(nn.Flatten(), nn.Linear(8192, 10)), 1: …}),  # reads both
    ])

Layer k's modules map the states that they read, and its activation takes their sum:
s_k = f_k(Σ_j map_kj(s_j)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from dualprop.errors import SettingError


class Layered(nn.Module):
    """Layers 1…L, each a pair of an activation (None: linear) and a map of its sources.

    The map holds, by earlier layer (0 is the input), the module that reads it.

    Parameters are named "5.from_2.weight", by layer and source. Inputs and outputs are those of the
    modules, (N, …).

    Raises:
        SettingError: a layer that reads none, itself or a later one.
    """

    def __init__(self, layers: Sequence[tuple[nn.Module | None, Mapping[int, nn.Module]]]) -> None:
        super().__init__()
        self.sources: list[tuple[int, ...]] = []
        for k, (activation, maps) in enumerate(layers, start=1):
            if not maps or not all(isinstance(source, int) and 0 <= source < k for source in maps):
                raise SettingError(f"layer {k} must read earlier layers, got {list(maps)}.")
            children = {f"from_{source}": module for source, module in maps.items()}
            self.add_module(str(k), nn.ModuleDict({**children, "activation": activation or nn.Identity()}))
            self.sources.append(tuple(maps))

    def maps(self, k: int) -> dict[int, nn.Module]:
        """The modules of layer k, by the layer that each reads."""
        parts = self.get_submodule(str(k))
        return {source: parts.get_submodule(f"from_{source}") for source in self.sources[k - 1]}

    def activation(self, k: int) -> nn.Module:
        return self.get_submodule(f"{k}.activation")

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for k in range(1, len(self.sources) + 1):
            first, *others = [module(states[source]) for source, module in self.maps(k).items()]
            for part in others:
                first = first + part
            states.append(self.activation(k)(first))
        return states[-1]
