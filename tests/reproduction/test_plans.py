"""What a plan promises, for tables of any size and cost."""

import math

from hypothesis import given
from hypothesis import strategies as st

from dualprop.reproduction.plan import Job, Table, Wish, plan


@st.composite
def problems(draw):
    """Tables of figures with twins, some shared between tables, some trained with all their seeds
    at once; seconds, of which some are not known; a budget, and jobs in progress and done."""
    tables = []
    together = draw(st.sets(st.sampled_from(["twin-0", "twin-1", "rule-0-0", "rule-0-1", "rule-1-0", "rule-1-1"])))

    def by_seed(label, seeds):
        return tuple(Job(label, (0, 1, 2) if label in together else (seed,)) for seed in seeds)

    for number in range(draw(st.integers(1, 4))):
        twin = f"twin-{draw(st.integers(0, 2))}"
        seeds = range(draw(st.integers(1, 3)))
        twins = by_seed(twin, seeds)
        rules = [Wish(by_seed(f"rule-{number}-{rule}", seeds), twins) for rule in range(draw(st.integers(0, 3)))]
        tables.append(Table(f"table-{number}", draw(st.sampled_from([0.5, 1, 10])), (Wish(twins), *rules)))
    jobs = sorted({job for table in tables for job in table.jobs()})
    known = st.floats(0.1, 100) | st.none()
    seconds = {job: draw(known) for job in jobs}
    some = st.lists(st.sampled_from(jobs), unique=True, max_size=3)
    return tables, seconds, draw(st.floats(0, 500) | st.just(math.inf)), draw(some), set(draw(some))


def fits(jobs, seconds, budget):
    """Whether all of these are known, and take less than the budget by more than rounding."""
    each = [seconds[job] for job in jobs]
    return None not in each and sum(each) < budget - 1e-6


@given(problems())
def test_a_plan_fits_into_its_time_and_holds_each_job_once(problem):
    tables, seconds, budget, begun, done = problem
    made = plan(tables, seconds, budget, begun=begun, done=done)
    assert made.seconds <= budget
    chosen, left = [step.job for step in made.steps], [each.job for each in made.left]
    wanted = {job for table in tables for job in table.jobs()} - done
    assert sorted(chosen + left) == sorted(wanted)
    assert all(step.seconds == seconds[step.job] for step in made.steps)
    assert made == plan(tables, seconds, budget, begun=begun, done=done)


@given(problems())
def test_without_a_limit_all_that_is_known_is_run(problem):
    tables, seconds, _, begun, done = problem
    made = plan(tables, seconds, begun=begun, done=done)
    assert {each.reason for each in made.left} <= {"not measured yet"}
    assert all(seconds[each.job] is None for each in made.left)
    assert {step.job for step in made.steps} == {job for job in seconds if seconds[job] is not None} - done


@given(problems())
def test_nothing_that_would_still_fit_is_left(problem):
    """A single seed of a figure, with its twin's where that is not run."""
    tables, seconds, budget, begun, done = problem
    made = plan(tables, seconds, budget, begun=begun, done=done)
    chosen = {step.job for step in made.steps} | done
    for table in tables:
        for wish in table.wishes:
            for pair in wish.pairs():
                missing = [job for job in pair if job not in chosen]
                assert not missing or not fits(missing, seconds, budget - made.seconds)


@given(problems())
def test_no_part_of_a_table_is_chosen_before_a_whole_one_that_fits(problem):
    tables, seconds, budget, _, done = problem
    made = plan(tables, seconds, budget, done=done)
    order, so_far, spent = [step.job for step in made.steps], set(done), 0.0
    whole = [{job for job in table.jobs() if job not in done} for table in tables]

    while order:
        # The next whole table, if the steps to come begin with one.
        ahead = [jobs for jobs in whole if (new := jobs - so_far) and new == set(order[: len(new)])]
        if not ahead:
            assert not any(fits(jobs - so_far, seconds, budget - spent) for jobs in whole if jobs - so_far)
            return
        new = min(ahead, key=len) - so_far
        spent += sum(seconds[job] for job in new)
        so_far |= new
        order = order[len(new) :]


@given(problems())
def test_what_was_begun_goes_on_first(problem):
    tables, seconds, budget, begun, done = problem
    made = plan(tables, seconds, budget, begun=begun, done=done)
    wanted = [job for job in begun if job not in done and any(job in table.jobs() for table in tables)]
    spent, expected = 0.0, []
    for job in wanted:
        if seconds[job] is not None and spent + seconds[job] <= budget:
            spent += seconds[job]
            expected.append(job)
    assert [step.job for step in made.steps][: len(expected)] == expected


@given(problems())
def test_a_rule_is_never_run_without_its_twin(problem):
    """A figure without its twin of the same seed says little; but where none can be had, more than
    nothing."""
    tables, seconds, budget, _, done = problem
    done = {job for job in done if job.label.startswith("twin")}
    made = plan(tables, seconds, budget, done=done)
    chosen = {step.job for step in made.steps} | done
    for table in tables:
        for wish in table.wishes:
            for job in wish.jobs:
                twins = [twin for twin, its in zip(wish.twin, wish.jobs, strict=False) if its == job]
                assert chosen >= set(twins) or job not in chosen or None in map(seconds.get, twins)


def test_the_worthier_table_for_its_time_is_first():
    def table(name, worth):
        return Table(name, worth, (Wish((Job(name),)),))

    tables = [table("dear", 4), table("cheap", 3), table("dull", 1)]
    seconds = {Job("dear"): 40.0, Job("cheap"): 10.0, Job("dull"): 30.0}
    assert [step.table for step in plan(tables, seconds, 100).steps] == ["cheap", "dear", "dull"]
    # Where not all fit, what fits is chosen by worth for its time; and what is left says why.
    made = plan(tables, seconds, 45)
    assert [step.table for step in made.steps] == ["cheap", "dull"]
    assert [(each.table, each.reason) for each in made.left] == [("dear", "does not fit into the time")]


def test_seeds_of_all_figures_take_turns():
    """A plan that is cut off leaves rows that can be compared."""
    twins, rules = (Job("bp", (0,)), Job("bp", (1,))), (Job("dp", (0,)), Job("dp", (1,)))
    assert Table("t", 1, (Wish(twins), Wish(rules, twins))).jobs() == [twins[0], rules[0], twins[1], rules[1]]


def test_a_job_of_several_seeds_goes_with_the_twins_of_all_and_several_with_one_twin():
    seeds, together = (Job("one", (0,)), Job("one", (1,))), (Job("all", (0, 1)), Job("all", (0, 1)))
    assert list(Wish(together, seeds).pairs()) == [[*seeds, together[0]]]
    assert list(Wish(seeds, together).pairs()) == [[together[0], seeds[0]], [together[0], seeds[1]]]
    assert Table("t", 1, (Wish(together), Wish(seeds, together))).jobs() == [together[0], *seeds]
