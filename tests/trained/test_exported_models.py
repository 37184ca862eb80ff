"""Exported models, read by what others read them with: plain PyTorch, safetensors, ONNX Runtime."""

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

import dualprop as dp
from dualprop import training
from dualprop.errors import RunError, SettingError
from dualprop.models import ConvNet
from dualprop.trained import export, exporting


@pytest.fixture
def x(digits):
    """Digits as they ship: not normalised."""
    return torch.from_numpy(digits[0][:6])


# A program that knows PyTorch alone, and tells what it can import of ours.
READER = """
import sys, torch
class Refused:
    def find_spec(self, name, *_):
        assert not name.startswith("dualprop"), "the file needs dualprop"
sys.meta_path.insert(0, Refused())
path, format, x, out = sys.argv[1:]
model = torch.export.load(path).module() if format == "torch" else torch.jit.load(path)
torch.save(model(torch.load(x)), out)
"""


@pytest.mark.parametrize("form", ["torch", "torchscript"])
def test_plain_pytorch_reads_a_program_that_normalises_by_itself(trained, tmp_path, x, form):
    """For any number of examples, in a process that can't import this package."""
    exported = export(trained, format=form, out=tmp_path / "model")
    assert exported.difference <= 1e-6
    torch.save(x, tmp_path / "x.pt")
    words = [str(tmp_path / "model"), form, str(tmp_path / "x.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-P", "-c", READER, *words], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), dp.load(trained)(x).detach(), rtol=1e-5, atol=1e-5)


def test_weights_have_the_names_of_the_plain_model(trained, tmp_path, x):
    export(trained, format="safetensors", out=tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    mean, std = tensors.pop("mean"), tensors.pop("std")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    plain.load_state_dict(tensors)
    torch.testing.assert_close(plain((x - mean) / std), dp.load(trained)(x), rtol=1e-5, atol=1e-5)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        about = json.loads(file.metadata()["dualprop"])
    assert about["task"]["names"] == list("0123456789")
    assert about["input_shape"] == [1, 8, 8]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model", [None, ConvNet(channels=(4, 4), pooling="softmax")], ids=["mlp", "conv"])
def test_onnx_runtime_agrees_to_1e_5(trained, tmp_path, x, tiny, model):
    import onnxruntime

    folder = trained
    if model is not None:
        folder = tmp_path / "run"
        training.train(training.create(folder, dataclasses.replace(tiny, model=model, border=1, epochs=1), (0,)))
    assert export(folder, format="onnx", out=tmp_path / "model.onnx").difference <= 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    expected = dp.load(folder)(x).detach()
    for number in (1, 6):
        (given,) = session.run(None, {"x": x[:number].numpy()})
        np.testing.assert_allclose(given, expected[:number], rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_without_its_packages_onnx_says_which(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SettingError, match=r"pip install 'dualprop\[onnx\]'"):
        export(trained, format="onnx")


def test_a_file_that_does_not_compute_the_model_is_not_written(trained, tmp_path, monkeypatch):
    """An exporter that drops an operation would be found by whoever uses the file."""
    compute = exporting._difference
    monkeypatch.setattr(exporting, "_difference", lambda model, read: compute(model, lambda x: read(x) * 1.001))
    with pytest.raises(RunError, match="does not compute what the model does: outputs differ by 1"):
        export(trained, format="torchscript", out=tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_predictions_of_an_equilibrium_are_no_forward_pass(tmp_path, tiny):
    """The file would predict something else than the run."""
    rule = dp.EquilibriumPropagation(energy="hopfield", relaxation="blocks(even_odd(2))")
    assert rule.predicts_by_equilibrium
    training.train(training.create(tmp_path / "run", dataclasses.replace(tiny, rule=rule, epochs=1), (0,)))
    with pytest.raises(SettingError, match="are an equilibrium's, which no forward pass computes"):
        export(tmp_path / "run", format="torchscript")


def test_by_default_the_file_lies_in_the_run_which_still_resumes(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        exported = export(tmp_path / "run", format="torchscript")
        assert torch.jit.load(exported.path) is not None
    assert exported.path == tmp_path / "run/model.pt"
    training.train(training.load(tmp_path / "run"))
