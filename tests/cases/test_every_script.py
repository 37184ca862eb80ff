"""Each script that was handed over (../shared/cases) has tests of its kind, by name."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TESTED_BY = {
    "01_no_grad_block": ["cases/test_fused.py::test_what_code_does_beside_its_calls_is_done"],
    "02_custom_autograd_function": ["cases/test_fused.py::test_what_code_does_beside_its_calls_is_done"],
    "03_attribute_set_in_forward": [
        "cases/test_fused.py::test_an_attribute_that_is_set_in_forward_is_a_tensor_that_trains",
        "cases/test_fused.py::test_a_state_that_the_module_keeps_serves_the_next_call",
    ],
    "05_childs_training_flag": ["cases/test_fused.py::test_a_childs_training_flag_is_read_at_each_pass"],
    "06_forward_replaced_on_the_instance": ["cases/test_fused.py::test_what_code_does_beside_its_calls_is_done"],
    "07_replicas_and_copies": [
        "cases/test_fused.py::test_a_replica_and_a_shallow_copy_compute_with_their_own_parameters_and_are_dyadic",
        "autograd/test_dualize_surroundings.py::test_exporters_and_tracers_see_the_plain_model",
    ],
    "09_empty_part": ["cases/test_fused.py::test_an_expert_without_tokens_has_gradient_zero"],
    "10_first_dimension": [
        "autograd/test_dualize_batches.py::test_beta_is_per_example_of_the_models_batch_whatever_shape_an_activation_sees"
    ],
    "12_parameter_hooks": [
        "training_loops/test_called_like_a_loss.py::test_hooks_of_parameters_run_once_and_what_they_return_is_kept"
    ],
    "14_grad_replaced": [
        "training_loops/test_called_like_a_loss.py::test_accumulated_parts_are_the_sum_and_go_into_the_same_tensor",
        "training_loops/test_called_like_a_loss.py::test_what_is_done_to_grad_leaves_the_outcomes_gradients_alone",
    ],
    "18_checkpoint_and_autocast_regions": [
        "cases/test_fused.py::test_a_checkpoint_runs_its_part_twice_and_no_more_and_is_dyadic",
        "cases/test_fused.py::test_an_autocast_island_and_a_decorated_forward_keep_their_precision",
    ],
    "21_compiled_child": ["autograd/test_recorded_networks.py::test_a_compiled_scripted_or_hooked_model_is_refused"],
    "22_call_overridden_and_backward_hooks": [
        "cases/test_fused.py::test_backward_hooks_on_an_activation_are_called_as_before",
        "autograd/test_recorded_networks.py::test_a_compiled_scripted_or_hooked_model_is_refused",
    ],
    "24_module_exchanged": [
        "training_loops/test_changed_between_steps.py::test_a_split_model_that_was_changed_is_refused_until_it_is_read_again"
    ],
    "31_spectral_norm_in_training": ["models/test_every_architecture.py::test_buffers_change_once_a_step"],
    "32_inplace_check_lost": ["cases/test_in_place_check.py::test_what_was_saved_and_then_changed_in_place_raises_or_is_right"],
}


def test_each_script_has_tests_of_its_kind(shared_folder):
    assert {path.stem for path in (shared_folder / "cases").glob("*.py")} == set(TESTED_BY)


@pytest.mark.parametrize("case", TESTED_BY)
def test_the_tests_that_are_named_are_there(case):
    for test in TESTED_BY[case]:
        path, name = test.split("::")
        functions = [n.name for n in ast.parse((TESTS / path).read_text()).body if isinstance(n, ast.FunctionDef)]
        assert name in functions, test
