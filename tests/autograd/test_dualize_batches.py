"""β is per example of the model's batch, whatever an activation sees; activations in place; what
`describe` tells. The reference writes the dyadic difference out, at each activation."""

import pytest
import torch
from comparison import assert_same
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import dualprop as dp
from dualprop.fused import dyadic

N, BETA, ALPHA = 8, 2.0, 0.3


class Reference(torch.autograd.Function):
    """f, with [f(a + (1-α)·b dy) - f(a - α·b dy)] / b for its derivative, b = β·8."""

    @staticmethod
    def forward(ctx, a, f):
        ctx.save_for_backward(a)
        ctx.f = f
        return f(a)

    @staticmethod
    def backward(ctx, dy):
        (a,), b = ctx.saved_tensors, BETA * N
        return (ctx.f(a + (1 - ALPHA) * b * dy) - ctx.f(a - ALPHA * b * dy)) / b, None


def problem(shape=(5,)):
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(N) % 3


class Net(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.a, self.c, self.b = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.pos, self.s = nn.Parameter(torch.randn(1, 7, 6)), nn.Parameter(torch.tensor(2.0))
        self.act = (lambda f, a: f(a)) if act is None else (lambda f, a: act.apply(a, f))


class Rows(Net):  # (N·T, D)
    def forward(self, x):
        h = self.act(torch.tanh, self.a(x.expand(N, 7, 5).reshape(-1, 5)))
        return self.b(h).reshape(N, 7, 3).mean(1)


class TimeFirst(Net):  # (T, N, D)
    def forward(self, x):
        h = self.act(torch.tanh, self.a(x.expand(N, 7, 5).transpose(0, 1)) + self.pos.transpose(0, 1))
        return self.b(h).mean(0)


class Positions(Net):  # an activation of parameters alone, broadcast
    def forward(self, x):
        h = self.act(torch.tanh, self.a(x) + torch.tanh(self.c(self.pos)))
        return self.b(h).mean(1) * torch.sigmoid(self.s) * self.s.clamp(max=4.6)


class Views(Net):  # two views concatenated
    def forward(self, x):
        x = x.squeeze(1)
        one, two = self.b(self.act(torch.tanh, self.a(torch.cat([x, x + 1])))).chunk(2)
        return one + two


class Keywords(Rows):
    def forward(self, *, scale, batch):
        return super().forward(batch["x"][0]) * scale


class Written(Net):  # constants that data is written into
    def forward(self, x):
        h = torch.zeros(N, 6, dtype=x.dtype)
        h[:, :3] = self.a(x.squeeze(1))[:, :3]
        return self.b(self.act(torch.tanh, h))


class Drawn(Net):  # noise drawn in the forward pass, no other input than a size
    def forward(self, x):
        noise = torch.randn(N, 5, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        return self.b(self.act(torch.tanh, self.a(noise)))


@pytest.mark.parametrize("kind", [Rows, TimeFirst, Positions, Views, Keywords, Written, Drawn])
def test_beta_is_per_example_of_the_models_batch_whatever_shape_an_activation_sees(kind):
    """N taken from an activation's first dimension is 56, 7, 1 or 16 here."""
    torch.manual_seed(0)
    model, written = kind().double(), kind(Reference).double()
    written.load_state_dict(model.state_dict())
    dp.dualize(model, beta=BETA, alpha=ALPHA)
    x, y = problem((1, 5))
    found = []
    for each in (model, written):
        output = each(scale=2.0, batch={"x": [x]}) if kind is Keywords else each(x)
        F.cross_entropy(output, y).backward()
        found.append({n: p.grad for n, p in each.named_parameters() if p.grad is not None})
    assert_same(*found, 1e-13)
    plain = kind().double()
    plain.load_state_dict(model.state_dict())
    output = plain(scale=2.0, batch={"x": [x]}) if kind is Keywords else plain(x)
    F.cross_entropy(output, y).backward()
    assert not torch.allclose(found[0]["a.weight"], plain.a.weight.grad, rtol=1e-4, atol=0)


def test_the_examples_of_a_packed_sequence_are_counted_and_not_its_steps():
    class Packed(Net):
        def forward(self, packed):
            return self.b(torch.tanh(self.a(packed.data)))

    torch.manual_seed(0)
    model = dp.dualize(Packed().double(), beta=BETA)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([3, 2, 2, 1]), batch_first=True)
    model(packed).square().sum().backward()
    found = model.a.weight.grad.clone()
    model.zero_grad()
    with dp.dyadic(batch=4, beta=BETA):
        loss = dp.undualize(model)(packed).square().sum()
    loss.backward()
    torch.testing.assert_close(found, model.a.weight.grad, rtol=1e-13, atol=0)


def test_two_passes_that_meet_in_one_backward_pass_need_the_number_of_terms():
    """The halves' mean is over 8 terms, and each pass saw 4. Accumulated, each pass has its own."""
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double(), problem()

    def halves(each):
        each.zero_grad()
        F.cross_entropy(torch.cat([each(x[:4]), each(x[4:])]), y).backward()
        return {n: p.grad.clone() for n, p in each.named_parameters()}

    dp.dualize(model, beta=BETA)
    F.cross_entropy(model(x), y).backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters()}
    with pytest.raises(dp.SettingError, match=r"two forward passes.*loss_reduction="):
        halves(model)
    for terms in (8, lambda: 8):
        dp.dualize(dp.undualize(model), beta=BETA, loss_reduction=terms)
        assert_same(halves(model), whole, 1e-13)
    dp.dualize(dp.undualize(model), beta=BETA)
    model.zero_grad()
    for _ in range(2):
        F.cross_entropy(model(x), y).backward()
    assert_same({n: p.grad / 2 for n, p in model.named_parameters()}, whole, 1e-13)


def test_beta_by_module_name_by_number_and_by_list_are_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Sequential(nn.Linear(6, 6), nn.Sigmoid()), nn.Linear(6, 3)).double()
    x, y = problem()
    found = []
    for beta in ([1.0, 4.0], {1: 1.0, 2: 4.0}, {"1": 1.0, "2": 4.0}, {"2.1": 4.0, "*": 1.0}):
        dp.dualize(model, beta=beta)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
        dp.undualize(model)
    for other in found[1:]:
        assert_same(other, found[0], 0.0)
    with pytest.raises(dp.SettingError, match=r"no value for layer 2, in '2\.1'"):
        dp.dualize(model, beta={"1": 1.0})(x)
    with pytest.raises(dp.SettingError, match="beta names 3, where no activation ran"):
        dp.dualize(dp.undualize(model), beta={3: 1.0, "*": 2.0})(x)


IN_PLACE = {
    "relu_": lambda h: h.relu_(),
    "F.relu_": F.relu_,
    "inplace=True": lambda h: F.relu(h, inplace=True),
    "module": nn.ReLU(inplace=True),
    "of a view": lambda h: h.view(-1).relu_(),
    "of a slice and the rest": lambda h: (h[:, :3].relu_(), h[:, 3:].relu_()),
}


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("how", IN_PLACE)
def test_an_activation_in_place_is_seen_by_every_name_and_view_of_its_argument(how, recompute):
    """A reader of the old name, or of a view made before, must see the state and not the drive."""

    class InPlace(Net):
        def forward(self, x):
            h = self.a(x)
            view = h[:, 1:4]
            IN_PLACE[how](h)
            return self.b(torch.tanh(self.c(view.sum(1, keepdim=True) + h)))

    class Apart(Net):
        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.b(torch.tanh(self.c(h[:, 1:4].sum(1, keepdim=True) + h)))

    found = []
    x, y = problem()
    for kind in (InPlace, Apart):
        torch.manual_seed(0)
        model = dp.dualize(kind().double(), beta=BETA, alpha=ALPHA, recompute_states=recompute)
        F.cross_entropy(model(x), y).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert_same(*found, 1e-13)


def test_an_activation_in_place_copies_nothing_where_no_one_else_holds_its_memory():
    """A copy for each ReLU(inplace=True) would be a pass over memory that BP spares."""
    a = torch.randn(6, 5, requires_grad=True) * 1
    memory = a.data_ptr()
    assert dyadic._write_over(a, dp.neurons.ReLU()).data_ptr() == memory
    b = torch.randn(6, 5, requires_grad=True).exp() - 1
    held, before, memory = b.view(-1), b.detach().clone(), b.data_ptr()
    drive = dyadic._write_over(b, dp.neurons.ReLU())
    assert b.data_ptr() == memory == held.data_ptr()
    assert torch.equal(drive, before)
    assert torch.equal(held.detach(), before.relu().view(-1))


def test_describe_tells_activations_what_is_left_and_what_is_of_parameters_alone_and_changes_nothing():
    class Told(Positions):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)

        def forward(self, x):
            h = self.drop(self.norm(self.a(x.squeeze(1))))
            return self.b((torch.tanh(h) * h).exp()) + torch.tanh(self.c(self.pos)).mean()

    model, (x, _) = Told().double(), problem((1, 5))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    random = torch.get_rng_state()
    for each in (model, dp.dualize(model, beta=3.0)):
        report = dp.describe(each, x)
        assert [(event.k, event.neuron, event.shape) for event in report.events] == [(1, "Tanh", (N, 6))]
        assert {name for name, _ in report.left} == {"mul", "exp"}
        assert {name for name, _ in report.constant} == {"tanh"}
        assert "1: Tanh" in str(report)
        assert "of parameters alone" in str(report)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    with pytest.raises(dp.SettingError, match="give its inputs"):
        dp.describe(model)


def test_in_eval_gradients_are_exact_and_a_forward_that_differentiates_itself_in_training_is_refused():
    """Saliency and forces would be off by β; a predicted force would be another prediction."""

    class Force(Net):
        def forward(self, x):
            x = x.clone().requires_grad_()
            return torch.autograd.grad(self.b(torch.tanh(self.a(x))).sum(), x, create_graph=True)[0][:, :3]

    x, _ = problem()
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(model(inputs).sum(), inputs)
    (found,) = torch.autograd.grad(dp.dualize(model, beta=5.0).eval()(inputs).sum(), inputs)
    assert torch.equal(found, exact)
    (always,) = torch.autograd.grad(dp.dualize(dp.undualize(model), beta=5.0, when="always")(inputs).sum(), inputs)
    assert not torch.allclose(always, exact)
    force = dp.dualize(Force().double())
    with pytest.raises(dp.UnsupportedModuleError, match="differentiates its own activations"):
        force(x)
    assert force.eval()(x).shape == (N, 3)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("how", ["torch.compile", "model.compile"])
def test_compiled_too_two_forward_passes_in_one_backward_pass_are_refused_for_a_mean(how):
    """Compiled activations tell nothing: each pass would nudge by its own number of examples."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = dp.dualize(Net().double())
    call = model
    if how == "torch.compile":
        call = torch.compile(model, backend="aot_eager")
    else:
        model.compile(backend="aot_eager")
    x = torch.randn(8, 5).double()
    call(x).sum().backward()
    loss = call(x[:4]).square().sum() + call(x[4:]).square().sum()
    with pytest.raises(dp.SettingError, match="two forward passes"):
        loss.backward()
