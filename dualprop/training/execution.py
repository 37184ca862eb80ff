"""How the steps of a recipe are carried out on this machine: precision, memory format, engine,
kernel, capture, stacked seeds.

What a recipe leaves at "auto" is decided here, the same way each time for the same recipe and
machine, and told in words. Precision is that of the products: parameters, their updates and every
sum over a batch stay float32 (float64 where that is asked for), differences of states are taken in
float32 or wider.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from dualprop import kernels
from dualprop.errors import SettingError
from dualprop.kernels import Kernel
from dualprop.models import MLP, OwnModel
from dualprop.training.recipe import Recipe

# With a layer of so many numbers (batch by width) a stack of seeds saves little. For a CPU's core
# that is measured (LOG.md, 2026-11-28); for a GPU it is a tile of 128 × 128 for each of 128
# multiprocessors.
FILLED = {"cpu": 20_000, "cuda": 2**21}
# The widest layers whose steps are captured on CPUs unasked. Of wider ones it saves little.
SMALL = 512


@dataclass(frozen=True)
class Execution:
    """The resolved choices. `precision` is the recipe's dtype; `num_stacked` seeds step together, 0
    where each steps alone; `remarks` are what a user should know of them."""

    device: str
    precision: str
    channels_last: bool
    captured: bool
    engine: str
    kernel: Kernel
    uses_kernels: bool
    num_stacked: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def parameters(self) -> torch.dtype:
        """The dtype of parameters, gradients and optimizer state."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def inputs(self) -> torch.dtype:
        """The dtype that batches arrive in."""
        return torch.bfloat16 if self.precision == "bfloat16" else self.parameters

    def place(self, model: nn.Module) -> nn.Module:
        """The model on its device, in its dtype and memory format."""
        model = model.to(device=self.device, dtype=self.parameters)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """The context that a forward pass or a step runs in: its kernel, and autocast for
        bfloat16."""
        autocast = torch.autocast(torch.device(self.device).type, torch.bfloat16)
        with kernels.using(self.kernel), autocast if self.precision == "bfloat16" else contextlib.nullcontext():
            yield

    @property
    def condition(self) -> str:
        """What of it the bits of a run follow from. On a CPU a captured step is the step itself."""
        return str(dataclasses.replace(self, captured=self.captured and self.device != "cpu"))

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "contiguous"
        kernel = self.kernel if self.uses_kernels else "PyTorch's"
        parts = [self.engine, f"{kernel} kernel", self.precision, layout, *(["captured"] if self.captured else [])]
        parts += [f"{self.num_stacked} seeds stacked"] if self.num_stacked else []
        return "; ".join([", ".join(part for part in parts if part), *self.remarks])


def resolve(recipe: Recipe, num_seeds: int = 1) -> Execution:
    """The execution of a recipe by a run of so many seeds. Raises SettingError where this device
    can't do what the recipe asks for."""
    device = torch.device(recipe.device)
    remarks: list[str] = []
    if recipe.dtype == "tf32" and device.type != "cuda":
        raise SettingError(f"dtype='tf32' is of NVIDIA GPUs, and the device is '{recipe.device}'. Use float32 or bfloat16.")
    if recipe.dtype == "bfloat16" and not has_bfloat16(device):
        remarks.append("no hardware for bfloat16 here: many times slower than float32")
    kernels.check(recipe.kernel)
    engine = recipe.rule.chosen_engine(recipe.model.depth)
    captured, why = _captured(recipe, device)
    remarks += [why] if why else []
    stacked, why = _stacked(recipe, device, num_seeds)
    remarks += [why] if why else []
    if recipe.kernel == "auto" and recipe.rule.uses_kernels and device.type == "cpu" and (why := kernels.native.reason()):
        remarks.append(f"no native kernel: {why}")
    return Execution(
        device=recipe.device,
        precision=recipe.dtype,
        channels_last=_channels_last(recipe, device),
        captured=captured,
        engine=f"{engine} engine" if engine else "",
        kernel=kernels.chosen(device) if recipe.kernel == "auto" else recipe.kernel,
        uses_kernels=recipe.rule.uses_kernels,
        num_stacked=num_seeds if stacked else 0,
        remarks=tuple(remarks),
    )


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 in hardware: CPUs from AVX-512 on, GPUs from compute
    capability 8.0 on."""
    kind = torch.device(device).type
    if kind == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return kind == "cuda" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def stacking_pays(recipe: Recipe) -> bool:
    """Whether seeds of the recipe take far less time together: its network is an MLP that does not
    fill the device."""
    filled = FILLED.get(torch.device(recipe.device).type, 0)
    return isinstance(recipe.model, MLP) and recipe.batch_size * max(recipe.model.widths, default=1) < filled


def stacking_obstacle(recipe: Recipe) -> str:
    """Why seeds of the recipe can't step together; empty where they can."""
    if not isinstance(recipe.model, MLP):
        return "only an MLP is stacked"
    if recipe.model.output != "identity":
        return f"the states of its {recipe.model.output} output settle together"
    if recipe.feedback != "exact":
        return f"{recipe.feedback} feedback weights are not stacked"
    if recipe.class_weights != "none":
        return "class weights are of each seed's own training part"
    return recipe.rule.stacking_obstacle


def set_products(recipe: Recipe) -> None:
    """Have the process's CUDA products use TF32 or not, as the recipe's dtype says; PyTorch's
    default does for convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = recipe.dtype == "tf32"
    torch.backends.cudnn.allow_tf32 = recipe.dtype == "tf32"


def _channels_last(recipe: Recipe, device: torch.device) -> bool:
    if recipe.channels_last != "auto":
        return recipe.channels_last == "on"
    # Fully connected networks have no channels. GPUs have channels-last products for the narrow
    # types alone.
    is_convolutional = recipe.model.is_convolutional
    return is_convolutional and (device.type == "cpu" or recipe.dtype in ("bfloat16", "tf32"))


def _is_bookkeeping(recipe: Recipe, device: torch.device) -> bool:
    """Whether much of a step is not its operations, but what is between them."""
    is_small = isinstance(recipe.model, MLP) and max(recipe.model.widths, default=0) <= SMALL
    return device.type == "cpu" and is_small and recipe.dtype in ("float32", "float64") and not _capture_obstacle(recipe)


def _captured(recipe: Recipe, device: torch.device) -> tuple[bool, str]:
    """Whether steps are captured, as CUDA graphs or on the CPU, and if they can't be, why."""
    if recipe.capture == "off" or (recipe.capture == "auto" and device.type != "cuda" and not _is_bookkeeping(recipe, device)):
        return False, ""
    obstacle = _capture_obstacle(recipe) if device.type in ("cuda", "cpu") else f"'{device.type}' has no graphs"
    if obstacle and recipe.capture == "on":
        raise SettingError(f"capture='on' can't be had: {obstacle}. Use capture='auto'.")
    return not obstacle, f"not captured: {obstacle}" if obstacle else ""


def _capture_obstacle(recipe: Recipe) -> str:
    if isinstance(recipe.model, OwnModel):
        return "a model of one's own may draw random numbers"
    return "class weights are made anew at each step" if recipe.class_weights != "none" else recipe.rule.capture_obstacle


def _stacked(recipe: Recipe, device: torch.device, num_seeds: int) -> tuple[bool, str]:
    """Whether a run's seeds step together, and if they can't, why."""
    # A CPU's runs of several seeds are alone by default: each ends as the same seed by itself.
    is_left_open = recipe.stack_seeds == "auto"
    if recipe.stack_seeds == "off" or (is_left_open and not (device.type == "cuda" and stacking_pays(recipe))):
        return False, ""
    obstacle = stacking_obstacle(recipe)
    if obstacle and recipe.stack_seeds == "on":
        raise SettingError(f"stack_seeds='on' can't be had: {obstacle}. Use stack_seeds='auto'.")
    return num_seeds > 1 and not obstacle, f"seeds not stacked: {obstacle}" if obstacle and num_seeds > 1 else ""
