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
    "reliability/f01_cwd_modules": [
        "cli/test_from_where_one_stands.py::test_a_comparison_runs_no_file_of_the_current_folder",
        "cli/test_from_where_one_stands.py::test_a_comparison_whose_costs_can_not_be_measured_is_finished_as_its_message_says",
    ],
    "reliability/f02_changed_data": [
        "cli/test_resuming_what_changed.py::test_data_that_were_replaced_are_refused_in_a_line_unless_allowed"
    ],
    "reliability/f04_device_replaced": [
        "cli/test_others_files.py::test_the_bench_neither_replaces_nor_follows_what_is_no_file"
    ],
    "reliability/f05_writing_deleted": [
        "training/test_nobody_elses_files.py::test_a_folder_of_other_things_is_refused_before_anything_in_it_is_touched",
        "training/test_nobody_elses_files.py::test_temporary_files_of_killed_writers_are_removed_and_nothing_else",
    ],
    "reliability/f08_out_of_memory": [
        "cli/test_limits.py::test_memory_that_ends_in_the_middle_of_a_run_leaves_its_checkpoint_whole",
        "cli/test_limits.py::test_a_rule_does_not_take_lacking_memory_for_a_wrong_shape",
    ],
    "reliability/f10_comparison_label": [
        "cli/test_others_files.py::test_a_strangers_comparison_is_continued_and_shown_in_its_own_folder_only"
    ],
    "reliability/f11_links": ["cli/test_others_files.py::test_a_strangers_run_is_continued_in_its_own_folder_only"],
    "reliability/f12_edited_json": [
        "cli/test_edited_json.py::test_an_edited_setting_is_refused_by_its_name_before_anything_is_trained",
        "cli/test_edited_json.py::test_the_best_checkpoint_in_the_place_of_the_last_is_refused",
        "training/test_damaged_files.py::test_every_field_of_a_wrong_type_is_refused_by_its_name",
    ],
    "reliability/f14_truncated_library": [
        "autograd/test_native_library.py::test_a_library_that_is_not_whole_and_ours_is_built_anew"
    ],
    "reliability/f15_head": ["cli/test_consoles.py::test_a_reader_that_goes_away_does_not_stop_the_training"],
    "reliability/f16_encoding": ["cli/test_consoles.py::test_a_console_that_lacks_a_character_gets_its_name"],
    "reliability/f17_markup": ["cli/test_consoles.py::test_brackets_and_escapes_in_a_folders_name_are_text"],
    "reliability/f18_huge_counts": ["cli/test_limits.py::test_what_would_fill_the_memory_or_never_end_is_refused_before"],
}


def test_each_script_has_tests_of_its_kind(shared_folder):
    cases = shared_folder / "cases"
    scripts = {path for path in cases.rglob("*") if path.suffix in (".py", ".sh") and path.name != "env.sh"}
    assert {str(path.relative_to(cases).with_suffix("")) for path in scripts} == set(TESTED_BY)


@pytest.mark.parametrize("case", TESTED_BY)
def test_the_tests_that_are_named_are_there(case):
    for test in TESTED_BY[case]:
        path, name = test.split("::")
        functions = [n.name for n in ast.parse((TESTS / path).read_text()).body if isinstance(n, ast.FunctionDef)]
        assert name in functions, test
