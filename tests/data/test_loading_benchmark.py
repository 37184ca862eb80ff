"""The loader's benchmark: what it times is a whole batch, in every case, and its rates are
rates."""

from types import SimpleNamespace

import pytest

from dualprop.bench import loader
from dualprop.data import examples


def test_every_case_has_a_row_and_its_figures_belong_together(monkeypatch):
    """Milliseconds taken for seconds, or a rate per batch for one per example, would prove any
    loader fast."""
    clock = SimpleNamespace(now=0.0)
    made, step_seconds = loader._endless, iter((9.0, 0.05, 0.05))

    def timed(*given):
        """The real batches. By this clock each takes 9 s while warming up, then 1 ms, the last one
        11 ms."""
        for number, batch in enumerate(made(*given), start=-loader.WARMUP):
            clock.now += 9.0 if number < 0 else 0.001 if number < 9 else 0.011
            yield batch

    def step():
        clock.now += next(step_seconds)

    monkeypatch.setattr(loader, "_endless", timed)
    monkeypatch.setattr(loader, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    rows = loader.measure(batch_size=20, rounds=10, num_images=200, step=step, step_rounds=2)
    assert [row["label"] for row in rows] == [case.label for case in loader.CASES]
    for row in rows:
        assert row["milliseconds"] == pytest.approx(1)
        assert row["examples_per_second"] == pytest.approx(20 / 0.002)
        assert row["times_the_step"] == pytest.approx(0.05 / 0.002)


def test_without_a_step_the_rows_do_not_compare():
    """A comparison with nothing is none."""
    rows = loader.measure(batch_size=20, rounds=2, num_images=100, cases=loader.CASES[:1])
    assert rows[0]["times_the_step"] is None


@pytest.mark.parametrize("case", loader.CASES, ids=lambda case: case.label)
def test_each_case_is_the_batch_that_its_label_names(case, monkeypatch):
    """An option that is not passed on would be measured at the price of another."""
    seen = []
    finish = examples.Examples.finish

    def watched(self, x, y, dtype, **options):
        made = finish(self, x, y, dtype, **options)
        seen.append((options, made[0], self))
        return made

    monkeypatch.setattr(examples.Examples, "finish", watched)
    loader.measure(batch_size=20, rounds=2, num_images=100, cases=(case,))
    options, x, kept = seen[-1]
    assert (options["draws"] is not None) == ("cropped" in case.label)
    assert str(x.dtype) == f"torch.{'bfloat16' if 'bfloat16' in case.label else 'float32'}"
    assert options["channels_last"] == ("channels last" in case.label)
    assert isinstance(kept.x, loader.MappedImages) == ("files" in case.label)
    assert x.shape == (20, 3, 32, 32)
