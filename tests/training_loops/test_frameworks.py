"""Lightning, Accelerate and the Hugging Face Trainer run a rule as they run any loss.

Each loop is held against the same steps written in plain PyTorch with `rule.gradients`.
"""

import warnings

import pytest
import torch
from comparison import assert_same
from networks import batch, mlp
from torch.utils.data import DataLoader, TensorDataset

import dualprop as dp

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("default")]
RULES = {"dual_propagation": dp.DualPropagation(), "equilibrium_propagation": dp.EquilibriumPropagation()}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
LEARNING_RATE, CLIP, PARTS, SIZE = 0.1, 0.05, 2, 4


def data():
    return batch(n=16, dtype=torch.float32)


def plain(rule):
    """The weights after two steps, each of two accumulated parts, clipped."""
    model, (x, y) = mlp("tanh", dtype=torch.float32), data()
    network, optimizer = dp.Network.from_module(model), torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for step in range(len(x) // (PARTS * SIZE)):
        optimizer.zero_grad()
        for part in range(PARTS):
            rows = slice(SIZE * (PARTS * step + part), SIZE * (PARTS * step + part + 1))
            gradients = rule.gradients(network, x[rows], y[rows]).gradients
            for name, p in model.named_parameters():
                p.grad = gradients[name] / PARTS + (0 if p.grad is None else p.grad)
        norm = float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
        assert norm > CLIP, "nothing is clipped"
        for p in model.parameters():
            p.grad.mul_(CLIP / norm)
        optimizer.step()
    return weights(model)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@every_rule
def test_lightning_by_automatic_optimisation(rule, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = mlp("tanh", dtype=torch.float32)
            self.network = dp.Network.from_module(self.model)

        def training_step(self, rows, _):
            loss = rule(self.network, *rows)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=PARTS, gradient_clip_val=CLIP, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*data()), batch_size=SIZE))
    assert_same(weights(module.model), plain(rule), 1e-6)
    assert float(trainer.callback_metrics["loss"]) > 0


@every_rule
def test_accelerate(rule):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=PARTS)
    model = mlp("tanh", dtype=torch.float32)
    model, optimizer, loader = accelerator.prepare(
        model,
        torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        DataLoader(TensorDataset(*data()), batch_size=SIZE),
    )
    network = dp.Network.from_module(model)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(rule(network, x, y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    assert_same(weights(accelerator.unwrap_model(model)), plain(rule), 1e-6)


@every_rule
def test_the_hugging_face_trainer(rule, tmp_path):
    transformers = pytest.importorskip("transformers")

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = rule(dp.Network.from_module(model), inputs["x"], inputs["labels"])
            return (loss, {"logits": loss.outcome.logits}) if return_outputs else loss

        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=1, per_device_train_batch_size=SIZE, gradient_accumulation_steps=PARTS,
        max_grad_norm=CLIP, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", optim="sgd", weight_decay=0.0,
        use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    model, rows = mlp("tanh", dtype=torch.float32), [{"x": x, "labels": y} for x, y in zip(*data(), strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(model, arguments, train_dataset=rows).train()
    assert_same(weights(model), plain(rule), 1e-6)
