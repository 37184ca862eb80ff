"""The recipes of VGG16, against the papers' settings, and the forms that are derived.

Høier et al. (2023), table 6; Høier & Zach (2024), §6.2, and their code.
"""

import dataclasses

import pytest

from dualprop import recipes
from dualprop.errors import SettingError
from dualprop.losses import SquaredError
from dualprop.recipes import variants
from dualprop.training import optimization

# Data set: epochs, batch, peak, warm-up rate and epochs, of the 2023 table.
SETTINGS_2023 = {
    "cifar10-vgg16": (130, 100, 0.025, 5e-3, 10),
    "cifar10-vgg16-kp": (130, 100, 0.025, 1e-4, 15),
    "cifar100-vgg16": (200, 50, 0.015, 5e-3, 10),
    "cifar100-vgg16-kp": (200, 50, 0.015, 1e-4, 30),
    "imagenet32-vgg16": (200, 250, 0.015, 5e-3, 10),
}
# The same, and the cosine's end, of the 2024 table.
SETTINGS_2024 = {
    "cifar10-vgg16-transposed": (130, 100, 0.025, 1e-3, 10, 120),
    "cifar100-vgg16-transposed": (200, 50, 0.015, 1e-3, 10, 190),
    "imagenet32-vgg16-transposed": (130, 250, 0.02, 1e-3, 10, 120),
}


@pytest.mark.parametrize("name", [*SETTINGS_2023, *SETTINGS_2024])
def test_a_recipe_has_the_settings_of_its_table(name):
    """A figure beside a published one claims that they were made alike."""
    made = recipes.from_name(name)
    expected = SETTINGS_2023.get(name) or SETTINGS_2024[name]
    sgd = made.optimizer
    found = (made.epochs, made.batch_size, sgd.learning_rate, sgd.warmup_from, sgd.warmup_epochs)
    assert found == expected[:5]
    assert (sgd.name, sgd.momentum, sgd.weight_decay, sgd.nesterov, sgd.cosine) == ("sgd", 0.9, 5e-4, False, True)
    assert (made.augmentation.pad, made.augmentation.flip) == (4, True)
    assert made.validation_fraction == (0.05 if "imagenet32" in name else 0.1)
    assert made.model.depth == 16
    if name in SETTINGS_2024:
        assert (sgd.cosine_epochs, sgd.final_learning_rate) == (expected[5], 2e-6)
        assert (made.model.pool, made.rule.coupling, str(made.rule.schedule)) == ("before", "transposed", "bottom_up(16)")
        assert made.seed_list == (1988, 1542, 8697)
    else:
        assert (sgd.cosine_epochs, sgd.final_learning_rate) == (0, 0)
        # The loss is averaged and the cotangent nudges with ±1: 2/B per example.
        assert made.rule.beta == pytest.approx(2 / made.batch_size)
        assert (made.model.pool, made.rule.alpha, made.rule.engine) == ("after", 0.5, "fused")
        assert made.seed_list == (182, 271, 944, 583, 220)
    assert made.feedback == ("kolen_pollack" if name.endswith("-kp") else "exact")


def test_the_published_figures_are_those_of_the_slides():
    found = {name: recipes.from_name(name).published for name in SETTINGS_2023}
    assert found == {
        "cifar10-vgg16": (("bp", "92.26 ± 0.23"), ("dp", "92.30 ± 0.11")),
        "cifar10-vgg16-kp": (("kp-dp", "91.84 ± 0.11"),),
        "cifar100-vgg16": (("bp", "69.63 ± 0.24"), ("dp", "69.57 ± 0.51")),
        "cifar100-vgg16-kp": (("kp-dp", "70.40 ± 0.25"),),
        "imagenet32-vgg16": (("bp", "41.28 ± 0.19"), ("dp", "41.48 ± 0.19")),
    }


def test_the_grid_is_that_of_the_scripts():
    made = recipes.from_name("cifar10-vgg16-transposed")
    names = variants.parse("grid", made)
    assert names[0] == "bp"
    assert names[1:5] == [f"dp-transposed-a0-b{beta}" for beta in ("0.01", "0.1", "1", "10")]
    assert len(names) == 11
    rule = variants.named("dp-transposed-a0.5-b0.01").apply(made).rule
    assert (rule.coupling, rule.alpha, rule.beta, str(rule.schedule)) == ("transposed", 0.5, 0.01, "bottom_up(16)")
    # At α ∈ {0, 1} the sixteen passes are one sweep, and the fused engine makes it.
    assert variants.named("dp-transposed-a1-b1").apply(made).rule.chosen_engine(16) == "fused"
    assert rule.chosen_engine(16) == "explicit"
    with pytest.raises(SettingError, match="holds no grid"):
        variants.parse("grid", recipes.from_name("cifar10-vgg16"))
    for wrong in ("a1.2.3-b1", "a0-b-", "a0.50-b1", "a0-be", "a-1-b1"):
        with pytest.raises(SettingError, match="unknown variant 'dp-transposed"):
            variants.named(f"dp-transposed-{wrong}")
    with pytest.raises(SettingError, match="alpha must be in"):
        variants.named("dp-transposed-a2-b1").apply(made)


@pytest.mark.parametrize("name", [name for name in recipes.RECIPES if "vgg16" in name or name == "cifar10-cnn"])
def test_the_budget_form_goes_through_the_whole_schedule(name):
    """Fewer epochs of the long schedule would end at its highest rate, and be worse than they need
    be."""
    made = recipes.from_name(name)
    short = made.compressed()
    assert short.epochs == made.budget_epochs < made.epochs
    assert short.compressed() == short
    share = short.epochs / made.epochs
    assert short.optimizer.warmup_epochs == pytest.approx(share * made.optimizer.warmup_epochs)
    rest = {"epochs", "optimizer", "budget_epochs"}
    for field in dataclasses.fields(made):
        assert field.name in rest or getattr(short, field.name) == getattr(made, field.name)
    steps = 1300
    for part in (0.0, 0.02, 0.2, 0.5, 0.97):
        rates = [
            optimization.learning_rate(r.optimizer, round(part * r.epochs * steps), steps, r.epochs) for r in (made, short)
        ]
        assert rates[0] == pytest.approx(rates[1], rel=0.02, abs=1e-6)


def test_any_budget_of_any_length_can_be_made():
    """Rounding alone would put the cosine's end beyond the last epoch."""
    made = recipes.from_name("cifar10-cnn")
    for epochs in range(3, 60):
        for budget in range(1, epochs):
            sgd = dataclasses.replace(made.optimizer, cosine_epochs=epochs, warmup_epochs=0.0, warmup_from=0.0)
            dataclasses.replace(made, epochs=epochs, budget_epochs=budget, optimizer=sgd).compressed()


def test_the_rate_stays_where_the_cosine_has_ended():
    made = recipes.from_name("cifar10-vgg16-transposed")
    ends = [optimization.learning_rate(made.optimizer, epoch * 450, 450, 130) for epoch in (119, 120, 125, 129)]
    assert ends[0] > 2e-6
    assert ends[1:] == [pytest.approx(2e-6)] * 3


def test_the_recipe_of_target_propagation_has_the_settings_of_the_authors_code():
    """Ernoult et al. (2022). Their forward weights learn from β times what ours do: the same steps
    by β times the rate, and a decay divided by β."""
    made = recipes.from_name("cifar10-vgg-dtp")
    rule, sgd = made.rule, made.optimizer
    assert (made.epochs, made.batch_size, made.model.channels) == (90, 128, (128, 128, 256, 256, 512))
    assert (made.model.pooled, made.model.dense, made.model.depth) == ((1, 2, 3, 4, 5), (), 6)
    assert (rule.beta, rule.iterations, rule.noise) == (0.7, (20, 30, 35, 55, 20), (0.4, 0.4, 0.2, 0.2, 0.08))
    assert rule.feedback_rate == (1e-4, 3.5e-4, 8e-3, 8e-3, 0.18)
    assert (rule.feedback_momentum, rule.feedback_decay, rule.start) == (0.9, 0, "random")
    assert (sgd.name, sgd.momentum, sgd.nesterov, sgd.cosine, sgd.cosine_epochs) == ("sgd", 0.9, False, True, 85)
    assert sgd.learning_rate / rule.beta == pytest.approx(0.05)
    assert sgd.weight_decay * rule.beta == pytest.approx(1e-4)
    assert sgd.final_learning_rate / rule.beta == pytest.approx(1e-5)


# Settings of pcx's configurations: steps, step size, momentum, rate, decay, epochs, activation,
# updates a batch.
SETTINGS_OF_PCX = {
    "mnist-mlp-pc": (8, 0.0105, 0.65, 2.97e-4, 3.55e-4, 25, "relu", 1),
    "mnist-mlp-ipc": (1, 0.85, 0.35, 2.53e-4, 0.0325, 25, "leaky_relu", 8),
    "cifar10-vgg5-pc": (8, 0.0147, 0.05, 2.64e-4, 1.21e-5, 50, "relu", 1),
    "cifar10-vgg5-ipc": (1, 0.744, 0.65, 1.75e-4, 2.57e-5, 50, "hard_tanh", 8),
}


@pytest.mark.parametrize("name", SETTINGS_OF_PCX)
def test_the_recipes_of_predictive_coding_have_the_settings_of_pcx(name):
    """AdamW, batch 128, the rate up by a tenth over a tenth of the run, then along a cosine to a
    tenth."""
    made = recipes.from_name(name)
    steps, step_size, momentum, rate, decay, epochs, activation, updates = SETTINGS_OF_PCX[name]
    rule, adamw = made.rule, made.optimizer
    assert (rule.beta, rule.steps, rule.step_size, rule.momentum) == (1.0, steps, step_size, momentum)
    assert (rule.start, made.updates_per_batch, made.reset_states) == (
        ("previous", updates, True) if "ipc" in name else ("forward", 1, False)
    )
    assert (made.batch_size, made.epochs, made.model.activation) == (128, epochs, activation)
    assert (adamw.name, adamw.weight_decay) == ("adamw", decay)
    rates = [optimization.learning_rate(adamw, round(part * 1000 * epochs), 1000, epochs) for part in (0, 0.1, 1)]
    assert rates == [pytest.approx(rate), pytest.approx(1.1 * rate), pytest.approx(0.1 * rate)]
    if "cifar10" in name:
        assert (made.model.channels, made.model.pooled, made.model.depth) == ((128, 256, 512, 512), (1, 2, 3, 4), 5)
    else:
        assert (made.model.widths, made.rule.loss) == ((128, 128, 128), SquaredError())


def test_pc_of_a_recipe_of_incremental_pc_makes_as_many_steps_as_that_has_updates():
    """With the one step that incremental PC makes for an update, no error would reach the layers
    below the last but one."""
    made = recipes.from_name("mnist-mlp-ipc")
    plain = variants.named("pc").apply(made)
    assert (plain.rule.steps, plain.rule.start, plain.updates_per_batch, plain.reset_states) == (8, "forward", 1, False)
    again = variants.named("ipc").apply(plain)
    assert (again.rule, again.updates_per_batch, again.reset_states) == (made.rule, 8, True)
    assert variants.named("ipc").apply(made) == made
