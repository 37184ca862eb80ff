"""Exporting a dualized model: what comes out predicts as the plain model does."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dualprop as dp

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("default")]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x)), inplace=True)
        return torch.sigmoid(self.head(F.gelu(h).mean((2, 3))))


@pytest.mark.parametrize("dynamo", [True, False], ids=["by torch.export", "by tracing"])
@pytest.mark.parametrize("is_training", [True, False], ids=["while in training", "in eval()"])
def test_exported_to_onnx_a_dualized_model_is_the_plain_one(tmp_path, dynamo, is_training):
    """ONNX Runtime computes it. Nothing of a dyad may be in the file, nor may the model change."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, path = torch.randn(5, 2, 6, 6), str(tmp_path / "model.onnx")
    plain, model = Net().eval(), dp.dualize(Net())
    model.train(is_training)
    # Batch statistics would not be those of the plain model in eval().
    model.norm.eval()
    torch.onnx.export(model, (x,), path, dynamo=dynamo, training=_mode(dynamo, is_training), verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(given), plain(x).detach(), rtol=1e-5, atol=1e-6)
    assert model.training == is_training
    model.train()
    assert type(model(x).grad_fn).__name__ == "_DyadicActivationBackward"


def _mode(dynamo, is_training):
    """The exporter by tracing puts a model in eval() unless it is told to preserve its mode."""
    modes = torch.onnx.TrainingMode
    return modes.EVAL if dynamo or not is_training else modes.PRESERVE
