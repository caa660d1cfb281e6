"""Which tests are not run every day, because they take more than a few seconds each.

`./dev test` leaves all of them out. `.ci/run` runs what is `SLOW`: whole trainings and documents,
other processes, kernels in the interpreter, and what a claim takes on one more mesh or layout. What
is `LONG` says once more, of another dtype, codec or variant, what others say: run it (`-m long`)
where it is touched. Listed here and not in their files, so that one sees what is left out.
"""

SLOW = (
    "cli/test_compare.py",
    "cli/test_footprint.py",
    "cli/test_main.py",
    "cli/test_memory.py",
    "cli/test_models.py",
    "cli/test_train.py",
    "distributed/",
    "gpu/",
    "loops/test_equinox.py::test_an_ensemble_of_modules",
    "loops/test_flax.py",
    "loops/test_haiku.py",
    "loops/test_optax_wrappers.py::test_a_training_through[chain",
    "loops/test_optax_wrappers.py::test_a_training_through[flat",
    "loops/test_optax_wrappers.py::test_a_training_through[galore",
    "loops/test_optax_wrappers.py::test_a_training_through[growing",
    "loops/test_optax_wrappers.py::test_a_training_through[mechanic",
    "loops/test_optax_wrappers.py::test_privacy",
    "loops/test_optax_wrappers.py::test_sharpness_aware_minimisation",
    "loops/test_populations.py::test_learning_to_learn",
    "loops/test_populations.py::test_population_based_training",
    "loops/test_populations.py::test_ppo_over_seeds",
    "hostile/test_hostile.py::test_a_long_program_is_stopped",
    "hostile/test_hostile.py::test_a_pipe_that_nobody_reads",
    "notebooks/",
    "optimizers/test_letting_go.py::test_noisy_least_squares_end_as_in_float32[0.99]",
    "optimizers/test_letting_go.py::test_noisy_least_squares_end_as_in_float32[0.9999]",
    "optimizers/test_letting_go.py::test_l",
    "optimizers/test_letting_go.py::test_it_",
    "optimizers/test_letting_go.py::test_they_",
    "optimizers/test_lamb_is_lamb.py",
    "optimizers/test_tampered.py::test_no_step_takes_it_for_what_it_is_not[lamb8bit",
    "optimizers/test_tampered.py::test_no_step_takes_it_for_what_it_is_not[adamw8bit",
    "optimizers/test_tampered.py::test_no_step_takes_it_for_what_it_is_not[lion8bit-",
    "optimizers/test_tampered.py::test_no_step_takes_it_for_what_it_is_not[paged",
    "optimizers/test_tampered.py::test_no_conversion_takes_it_for_what_it_is_not[lamb8bit",
    "optimizers/test_tampered.py::test_no_conversion_takes_it_for_what_it_is_not[adamw8bit",
    "optimizers/test_tampered.py::test_no_conversion_takes_it_for_what_it_is_not[lion8bit-",
    "test_docs.py::test_the_examples_of_a_page_run_and_print_what_it_says",
    # Kernels in the interpreter: what is left has every rule, way to emit and kind of rest.
    "kernels/test_broken_numbers.py::test_a_momentum_that_is_no_number_is_seen[*-kernels]",
    "kernels/test_broken_numbers.py::test_what_is_left_alone_is_counted[*-kernels]",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[block=32",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[block=1024",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[rule=lamb-codec=",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[rule=adam-codec=",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[codec=",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[rule=lamb-shape=",
    "kernels/test_mosaic.py::test_a_step_can_be_mapped_and_scanned",
    "kernels/test_pieces.py::test_kernels_do_the_same[short",
    "kernels/test_pieces.py::test_kernels_do_the_same[rule=adam",
    "kernels/test_pieces.py::test_xla_does_the_same_to_the_last_bit[rule=lamb-",
    "kernels/test_pieces.py::test_pieces_count_what_they_leave_alone[adam-mosaic",
    "kernels/test_places.py::test_shards_step_as_the_leaf_does[kernels",
    "kernels/test_rules_against_oracle.py::test_a_step_is_what_the_oracle_says[*-power-float32-*-kernel]",
    "kernels/test_rules_against_oracle.py::test_a_step_is_what_the_oracle_says[*-linear-float32-*-kernel]",
    "kernels/test_rules_against_oracle.py::test_a_step_is_what_the_oracle_says[*-percentile-*-kernel]",
    "kernels/test_rules_against_oracle.py::test_a_step_is_what_the_oracle_says[*-non_finite-*-kernel]",
    "kernels/test_rules_against_oracle.py::test_a_step_is_what_the_oracle_says[*-amsgrad-*-kernel]",
    "optimizers/test_apply_fused.py::test_kernels_write*dtypes0-",
    "optimizers/test_stacked.py::test_kernels_do_what_xla_does",
    # Pages: every kind of leaf is in what is left, once.
    "optimizers/test_paged_steps.py::test_kernels_work_on_pages[apply_fused",
    "optimizers/test_paged_steps.py::test_pages_do_not_change_a_step",
    "optimizers/test_paged_steps.py::test_same_bits_as_the_resident_variant[*8bit-float32-apply_fused]",
    "optimizers/test_stacked.py::test_pieces_are_of_several_layers",
    "optimizers/test_donation_across_memories.py",
    # Meshes: what is left steps every rule on every mesh and kind of axes.
    "flax/test_linen.py",
    "flax/test_nnx_on_meshes.py",
    "meshes/test_cut_blocks.py::test_the_step_is_right",
    "meshes/test_any_shape.py",
    "meshes/test_persistent_cache.py",
    "meshes/test_resharding.py",
    "meshes/test_same_steps.py::test_amsgrad",
    "meshes/test_same_steps.py::test_bad_elements",
    "meshes/test_same_steps.py::test_bfloat16[*lamb",
    "meshes/test_same_steps.py::test_layers_of_a_stack",
    "meshes/test_same_steps.py::test_one_scale_for_a_tensor",
    "meshes/test_same_steps.py::test_percentile_clipping_",
    "meshes/test_same_steps.py::test_variants[paged_lamb",
    "meshes/test_state_sharding.py",
    "meshes/test_ways_in.py",
    "optimizers/test_skipped.py::test_shards_of_a_leaf_add_up",
    # Checkpoints from every layout, resetting, and derivatives.
    "checkpoints/test_beginning_anew.py",
    "checkpoints/test_async_saving.py",
    "checkpoints/test_convert_places.py",
    "checkpoints/test_documented.py",
    "checkpoints/test_convert_state.py::test_from_every_layout",
    "checkpoints/test_orbax.py::test_every_bit_comes_to_every_place",
    "checkpoints/test_going_on.py",
    "checkpoints/test_refusals.py::test_a_checkpoint_with_a_damaged_file_is_whole_or_refused",
    "checkpoints/test_resuming.py",
    "checkpoints/test_skipped_count.py",
    "optimizers/test_derivatives.py::test_derivatives_are_finite",
    "optimizers/test_resetting.py::test_codes_set_to_zero_are_fresh_moments",
)
"""Beginnings of what tests are called, from this folder on; `*` is anything."""

LONG = (
    "meshes/test_ways_in.py::TestTransformations::test_gradient_through_a_step[explicit",
    "meshes/test_ways_in.py::TestTransformations::test_vmap[*explicit",
    "meshes/test_ways_in.py::TestTransformations::test_scan[*explicit",
    "meshes/test_same_steps.py::test_layers_of_a_stack[paged_",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[shape=(4",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[block=",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[rule=*-codec=",
    "kernels/test_pieces.py::test_pieces_count_what_they_leave_alone[*-mosaic",
    "kernels/test_pieces.py::test_xla_does_the_same_to_the_last_bit[rule=lamb",
    "meshes/test_same_steps.py::test_bfloat16",
    "meshes/test_same_steps.py::test_variants[paged_",
    "optimizers/test_apply_fused.py::test_kernels_write",
    "optimizers/test_letting_go.py",
    "optimizers/test_paged_steps.py::test_kernels_work_on_pages",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[g=",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[p=",
    "kernels/test_mosaic.py::test_a_kernel_does_what_xla_does[rule=*-decay=",
    "kernels/test_rules_against_oracle.py::test_a_step_is_what_the_oracle_says[*-kernel]",
    "kernels/test_pieces.py::test_kernels_do_the_same",
    "optimizers/test_paged_steps.py::test_a_leaf_without_a_gradient_is_left_alone",
    "optimizers/test_paged_steps.py::test_bad_elements_stay_as_they_were",
    "optimizers/test_paged_steps.py::test_same_bits_as_the_resident_variant[*-bfloat16-",
    "optimizers/test_paged_steps.py::test_same_bits_as_the_resident_variant[*32bit-",
    "optimizers/test_paged_steps.py::test_updates_have_the_promoted_dtype",
)
"""The same. If several fit, the longest one decides."""


def speed(name):
    """`"slow"`, `"long"` or None for a test such as `kernels/test_dither.py::test_strides[1]`."""
    patterns = {pattern: "slow" for pattern in SLOW} | {pattern: "long" for pattern in LONG}
    fitting = [pattern for pattern in patterns if _begins(name, pattern)]
    return patterns[max(fitting, key=len)] if fitting else None


def _begins(name, pattern):
    at = 0
    for i, part in enumerate(pattern.split("*")):
        found = name.find(part, at)
        if found < 0 or (i == 0 and found):
            return False
        at = found + len(part)
    return True
