"""What holds weights and can't be given feedback weights is refused by name, with the remedy,
before anything is changed."""

import copy

import pytest
import torch
from networks import batch, mlp
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrizations import weight_norm

import dualprop as dp
from dualprop import feedback


class OwnsParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.scale = nn.Linear(5, 5), nn.Parameter(torch.ones(5))

    def forward(self, x):
        return self.lift(x) * self.scale


class OwnLinear(nn.Linear):
    def forward(self, input):
        return super().forward(input) + 1


class OwnNorm(nn.LayerNorm):
    pass


class Bias(nn.Module):
    def forward(self, w):
        return w + 1


def patched():
    layer = nn.Linear(5, 5)
    layer.forward = lambda x: x @ layer.weight
    return layer


def pruned():
    return prune.l1_unstructured(nn.Linear(5, 5), "weight", 0.5)


def converted():
    return feedback.convert(nn.Linear(5, 5), "random")


def parametrized_norm():
    norm = nn.LayerNorm(5)
    nn.utils.parametrize.register_parametrization(norm, "weight", Bias())
    return norm


REFUSED = {
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 2, 3), r"ConvTranspose2d.*no version.*leave=\('1\.0',\)"),
    "transposed convolution in one dimension": (lambda: nn.ConvTranspose1d(2, 2, 3), "ConvTranspose1d"),
    "transposed convolution in three dimensions": (lambda: nn.ConvTranspose3d(2, 2, 3), "ConvTranspose3d"),
    "bilinear": (lambda: nn.Bilinear(2, 2, 3), "Bilinear.*no version"),
    "attention": (lambda: nn.MultiheadAttention(4, 1), "MultiheadAttention.*no version"),
    "attention of other widths": (lambda: nn.MultiheadAttention(4, 1, kdim=3, vdim=3), "MultiheadAttention.*no version"),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 1), r"'1\.0\.self_attn' is MultiheadAttention"),
    "LSTM": (lambda: nn.LSTM(4, 4), r"LSTM.*Replace it.*leave=\('1\.0',\)"),
    "GRU cell": (lambda: nn.GRUCell(4, 4), "GRUCell"),
    "RNN": (lambda: nn.RNN(4, 4), "RNN"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 5)), "is Linear, which is parametrized.*Remove"),
    "weight norm of a convolution": (lambda: weight_norm(nn.Conv1d(2, 2, 1)), "is Conv1d, which is parametrized"),
    "a parametrized norm": (parametrized_norm, "is LayerNorm, which is parametrized"),
    "pruned": (pruned, r"holds bias, weight_orig in place of weight and bias\. Undo that"),
    "subclass of Linear": (lambda: OwnLinear(5, 5), "OwnLinear.*no version.*Replace it by a plain Linear"),
    "lazy": (lambda: nn.LazyLinear(5), "LazyLinear.*no shape yet. Run the model once"),
    "subclass of a norm": (lambda: OwnNorm(5), r"owns the parameter 'weight'.*leave=\('1\.0\.weight',\)"),
    "module that owns a parameter": (OwnsParameter, r"'1\.0' is OwnsParameter, which owns.*'scale'.*leave=\('1\.0\.scale',\)"),
    "parameter list": (lambda: nn.ParameterList([torch.ones(3)]), r"ParameterList.*leave=\('1\.0',\)"),
    "another forward": (patched, "forward was replaced by another. Delete that attribute"),
    "complex": (lambda: nn.Linear(2, 2, dtype=torch.complex64), "complex. Use real weights"),
    "converted": (converted, "FeedbackLinear, which has feedback weights already. Convert a fresh copy"),
    "scripted": (lambda: torch.jit.script(nn.Linear(2, 2)), "before it is scripted"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_what_would_keep_exact_feedback_is_refused_by_name_and_the_model_stays_as_it_was(what):
    """Silently exact in one layer, feedback alignment would be credited with what back-propagation
    did there."""
    make, message = REFUSED[what]
    model = nn.Sequential(nn.Linear(5, 5), nn.Sequential(make()), nn.Linear(5, 5))
    before = [(n, type(m)) for n, m in model.named_modules()], [(n, id(p)) for n, p in model.named_parameters()]
    state = torch.get_rng_state()
    with pytest.raises(dp.UnsupportedModuleError, match=message) as refusal:
        feedback.convert(model, "kolen_pollack")
    assert "\n" not in str(refusal.value)
    assert before == ([(n, type(m)) for n, m in model.named_modules()], [(n, id(p)) for n, p in model.named_parameters()])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("what", [what for what in REFUSED if what not in ("scripted", "converted")])
def test_the_remedy_of_leaving_it_exact_works(what):
    """A refusal whose remedy fails is a dead end. By its name or by its type, what was named stays
    as it was."""
    make, _ = REFUSED[what]
    by_name = nn.Sequential(nn.Linear(5, 5), nn.Sequential(make()), nn.Linear(5, 5))
    inner, kinds = by_name[1][0], [type(m) for m in by_name[1].modules()]
    assert feedback.convert(by_name, "random", leave=["1.0"]) is by_name
    assert by_name[1][0] is inner
    assert [type(m) for m in by_name[1].modules()] == kinds
    assert type(by_name[0]) is type(by_name[2]) is feedback.FeedbackLinear
    module = make()
    type_name = type(module).__bases__[0].__name__ if hasattr(module, "parametrizations") else type(module).__name__
    if type_name != "Linear":
        feedback.convert(nn.Sequential(nn.Linear(5, 5), module), "random", leave=(type_name,))
        assert not any(isinstance(m, feedback.AbstractFeedback) for m in module.modules())


def test_a_parameter_can_be_left_by_its_name_and_the_modules_beside_it_are_converted():
    """A transformer's own position embedding must not keep all its layers from being converted."""
    model = nn.Sequential(OwnsParameter(), nn.Linear(5, 3))
    feedback.convert(model, "random", leave="0.scale")
    assert type(model[0].lift) is type(model[1]) is feedback.FeedbackLinear
    own = OwnsParameter()
    with pytest.raises(dp.UnsupportedModuleError, match=r"the model is OwnsParameter.*leave=\('scale',\)"):
        feedback.convert(own, "random")
    assert type(feedback.convert(own, "random", leave=["scale"]).lift) is feedback.FeedbackLinear


def test_a_shared_module_is_left_by_any_of_its_names():
    """Converted through its other name, it would not be exact where that was asked for."""
    for name in ("0", "2", "2.0"):
        shared = nn.Sequential(nn.Linear(4, 4))
        model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 4))
        feedback.convert(model, "random", leave=[name])
        assert type(shared[0]) is nn.Linear
        assert type(model[3]) is feedback.FeedbackLinear


def test_norms_embeddings_and_what_holds_no_parameter_are_left_as_they_are():
    """They are diagonal, or no feedback passes them: refused, hardly a model could be converted."""
    untouched = [nn.Embedding(3, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.BatchNorm1d(4), nn.BatchNorm2d(4)]
    untouched += [nn.BatchNorm3d(4), nn.InstanceNorm2d(4, affine=True), nn.PReLU(), nn.Dropout(), nn.ReLU(), nn.MaxPool2d(2)]
    untouched += [nn.EmbeddingBag(3, 4), nn.CrossEntropyLoss(torch.ones(3)), dp.dualize(nn.Tanh())]
    model = nn.Sequential(*untouched, nn.Linear(4, 4))
    kinds = [type(m) for m in model]
    feedback.convert(model, "sign_symmetric")
    assert [type(m) for m in model] == [*kinds[:-1], feedback.FeedbackLinear]


@pytest.mark.parametrize("leave", [["1"], ["Linaer"], ["0.bias"], ["0", "lost"], [""]])
def test_a_name_to_leave_that_the_model_does_not_hold_is_an_error(leave):
    """A misspelt name would convert what was to be left, unsaid."""
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)) if leave != ["1"] else nn.Sequential(nn.Linear(5, 5))
    with pytest.raises(dp.SettingError, match=f"leave names {leave[-1]!r}"):
        feedback.convert(model, "random", leave=leave)
    assert not any(isinstance(m, feedback.AbstractFeedback) for m in model)


@pytest.mark.parametrize("kind", ["kolen-pollack", "randon", "fa", "", None])
def test_an_unknown_kind_is_refused_with_the_nearest_one(kind):
    """A kind that falls through to a default trains by another algorithm."""
    model = mlp()
    with pytest.raises(dp.SettingError, match=r"unknown kind of feedback .*There are 'kolen_pollack', 'random'") as refusal:
        feedback.convert(model, kind)
    assert ("Did you mean" in str(refusal.value)) == (kind in ("kolen-pollack", "randon"))
    assert type(model[0]) is nn.Linear


def test_a_model_with_nothing_to_convert_is_refused():
    """It would train by back-propagation, under the name of something else."""
    for model, leave in ((nn.Sequential(nn.LayerNorm(4)), ()), (mlp(), ("Linear",))):
        with pytest.raises(dp.UnsupportedModuleError, match="no Linear or convolution to convert"):
            feedback.convert(model, "random", leave=leave)


def test_a_model_that_is_wrapped_for_several_processes_is_refused():
    """The wrapper has made its list of parameters: the new ones would drift apart from process to
    process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(dp.UnsupportedModuleError, match="Convert the model before it is wrapped"):
            feedback.convert(nn.parallel.DistributedDataParallel(nn.Linear(2, 2)), "kolen_pollack")
    finally:
        torch.distributed.destroy_process_group()


def test_other_layers_can_be_converted_to_another_kind_afterwards():
    """Mixed feedback takes two calls; the second must not meet what the first has done as an
    obstacle."""
    model = mlp("tanh")
    feedback.convert(model, "random", leave=["6"])
    feedback.convert(model, "sign_symmetric", leave=["FeedbackLinear"])
    assert [m.kind for m in model if isinstance(m, nn.Linear)] == ["random"] * 3 + ["sign_symmetric"]


def test_a_failure_while_drawing_leaves_the_model_as_it_was():
    """Half a conversion is another network."""
    model = mlp()
    broken = copy.deepcopy(model)
    with pytest.raises((RuntimeError, TypeError, AttributeError)):
        feedback.convert(broken, "random", generator="seed")
    assert [type(m) for m in broken] == [type(m) for m in model]
    assert list(broken.state_dict()) == list(model.state_dict())


def test_a_state_of_the_wrong_shape_is_refused_by_the_layers_name():
    """The Functions beneath must fail as PyTorch's own maps do: with an error that the network
    turns into one line."""
    x, y = batch()
    network = dp.Network.from_module(feedback.convert(mlp("tanh"), "random"))
    with pytest.raises(dp.SettingError, match="can't read a state of shape"):
        dp.DualPropagation().gradients(network, x[:, :3], y)
