"""What ptxas made of every kernel: none spills, and each stays in its register budget.

`make test` builds with nvcc's warnings as errors.
"""

import re

import built_kernels
import pytest

# Registers per thread that a kernel may use on any architecture, so that 8, 6, 5, 4, 3, 2 or 1 of its blocks of 256
# threads fit the 65536 registers of a multiprocessor: 32, 40, 48, 64, 80, 128 or 255; soft_argmax_backward_kernel has
# blocks of 128 threads, soft_argmax_targets_kernel of 1024. Where setmaxnreg moves registers between warpgroups, ptxas
# reports those at the launch: 168 of 384 threads. Kernels of local_correlation_flow_* that sum over windows have blocks
# of 128 threads: 168 registers for three of them, 255 for the two of float64.
BUDGET: dict[str, int] = {
    "add_parts_kernel": 32,
    "compact_kernel": 40,
    "correlation_fma_kernel": 128,
    "correlation_gate_kernel": 48,
    "correlation_hopper_kernel": 168,
    "correlation_mma_kernel": 128,
    "correlation_norm_kernel": 64,
    "correlation_simple_kernel": 48,
    "correlation_simple_norm_kernel": 32,
    "correlation_simple_normalize_kernel": 48,
    "correlation_simple_product_kernel": 48,
    "cycle_error_backward_kernel": 128,
    "cycle_error_forward_kernel": 40,
    "cycle_error_simple_backward_kernel": 64,
    "cycle_error_simple_forward_kernel": 48,
    "cycle_error_simple_scatter_kernel": 64,
    "gradient_product_add_kernel": 32,
    "gradient_product_hopper_kernel": 168,
    "gradient_product_kernel": 128,
    "gradient_product_mma_kernel": 255,
    "gradient_unscale_kernel": 32,
    "local_correlation_backward_fma_kernel": 184,
    "local_correlation_backward_mma_kernel": 128,
    "local_correlation_finish_kernel": 40,
    "local_correlation_flow_forward_kernel": 168,
    "local_correlation_flow_grad_a_kernel": 255,
    "local_correlation_flow_grad_b_kernel": 255,
    "local_correlation_flow_norm_kernel": 40,
    "local_correlation_flow_pack_kernel": 32,
    "local_correlation_flow_product_gradient_kernel": 64,
    "local_correlation_flow_slopes_kernel": 255,
    "local_correlation_forward_fma_kernel": 240,
    "local_correlation_forward_mma_kernel": 128,
    "local_correlation_grad_a_kernel": 80,
    "local_correlation_grad_b_atomic_kernel": 64,
    "local_correlation_grad_b_deterministic_kernel": 64,
    "local_correlation_grad_b_gather_kernel": 64,
    "local_correlation_grad_flow_kernel": 64,
    "local_correlation_norm_kernel": 32,
    "local_correlation_pack_gradient_kernel": 32,
    "local_correlation_pack_kernel": 40,
    "local_correlation_simple_kernel": 64,
    "match_add_columns_kernel": 32,
    "match_add_tiles_kernel": 40,
    "match_backward_hopper_kernel": 168,
    "match_beta_gradient_kernel": 32,
    "match_both_add_columns_kernel": 32,
    "match_both_backward_hopper_kernel": 168,
    "match_both_beta_gradient_kernel": 32,
    "match_both_clear_kernel": 32,
    "match_both_finish_kernel": 40,
    "match_both_forward_kernel": 128,
    "match_both_gather_kernel": 40,
    "match_both_hopper_chunk_rows_kernel": 32,
    "match_both_hopper_columns_kernel": 32,
    "match_both_hopper_kernel": 168,
    "match_both_mask_gradient_kernel": 32,
    "match_both_merge_kernel": 40,
    "match_both_score_gradient_kernel": 255,
    "match_both_simple_add_kernel": 32,
    "match_both_sources_kernel": 32,
    "match_bound_kernel": 32,
    "match_clear_kernel": 32,
    "match_finish_kernel": 40,
    "match_forward_kernel": 128,
    "match_hopper_kernel": 168,
    "match_hopper_score_kernel": 32,
    "match_mask_gradient_kernel": 32,
    "match_most_probable_kernel": 40,
    "match_rows_kernel": 48,
    "match_score_gradient_kernel": 255,
    "match_simple_beta_gradient_kernel": 32,
    "match_simple_columns_kernel": 32,
    "match_simple_dlogit_kernel": 64,
    "match_simple_feature_gradient_kernel": 32,
    "match_simple_forward_kernel": 128,
    "match_simple_grad_a_kernel": 32,
    "match_simple_grad_b_kernel": 32,
    "match_simple_mask_gradient_kernel": 32,
    "match_simple_norm_kernel": 32,
    "normalize_backward_kernel": 128,
    "normalize_rows_kernel": 32,
    "pack_features_kernel": 128,
    "pack_tiles_count_kernel": 32,
    "pack_tiles_kernel": 64,
    "soft_argmax_any_row_kernel": 128,
    "soft_argmax_backward_kernel": 168,
    "soft_argmax_backward_simple_kernel": 64,
    "soft_argmax_beta_gradient_kernel": 32,
    "soft_argmax_forward_kernel": 128,
    "soft_argmax_forward_simple_kernel": 64,
    "soft_argmax_mask_gradient_kernel": 32,
    "soft_argmax_mask_simple_kernel": 80,
    "soft_argmax_targets_kernel": 48,
    "soft_argmax_weight_kernel": 32,
    "soft_argmax_window_kernel": 255,
    "transfer_add_columns_kernel": 32,
    "transfer_backward_hopper_kernel": 168,
    "transfer_beta_gradient_kernel": 32,
    "transfer_clear_lse_kernel": 32,
    "transfer_delta_kernel": 32,
    "transfer_finish_states_kernel": 32,
    "transfer_gather_kernel": 32,
    "transfer_hopper_gather_kernel": 32,
    "transfer_hopper_kernel": 168,
    "transfer_mask_gradient_kernel": 32,
    "transfer_product_kernel": 128,
    "transfer_rows_kernel": 64,
    "transfer_simple_gradient_kernel": 64,
    "transfer_simple_probability_kernel": 32,
    "transfer_simple_product_kernel": 40,
    "transfer_simple_states_kernel": 64,
    "transfer_tile_kernel": 255,
    "warp_flow_gradient_channels_kernel": 80,
    "warp_flow_gradient_planes_kernel": 64,
    "warp_forward_channels_kernel": 48,
    "warp_forward_few_kernel": 80,
    "warp_forward_planes_kernel": 64,
    "warp_forward_window_kernel": 64,
    "warp_gather_channels_kernel": 80,
    "warp_gather_planes_kernel": 80,
    "warp_inverse_count_kernel": 32,
    "warp_inverse_order_kernel": 40,
    "warp_inverse_place_kernel": 32,
    "warp_inverse_starts_kernel": 32,
    "warp_simple_atomic_kernel": 64,
    "warp_simple_deterministic_kernel": 48,
    "warp_simple_flow_gradient_kernel": 64,
    "warp_simple_forward_kernel": 64,
    "warp_scatter_kernel": 128,
}


# These keep on the stack what a strip needs, not what a tile does: tests/test_sass.py looks at their loops.
OUTSIDE_THE_LOOP = r"\w+_backward_hopper_kernel<cosegflow::\w+(, \d)?, true>"


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_no_spills_and_within_budget(architecture):
    built_kernels.require(architecture)
    seen: dict[str, int] = {}
    for kernel in built_kernels.resources():
        if kernel.architecture != architecture:
            continue
        if not re.search(OUTSIDE_THE_LOOP, kernel.signature):
            assert kernel.stack == 0, f"{kernel.signature} of {kernel.source} spills, or has an array on the stack"
        seen[kernel.kernel] = max(seen.get(kernel.kernel, 0), kernel.registers)
    over = {name: f"{n} > {BUDGET.get(name)}" for name, n in seen.items() if not n <= BUDGET.get(name, 0)}
    assert not over, f"over the register budget (or not in the table BUDGET): {over}; measured: {seen}"
    assert set(BUDGET) == set(seen), f"in the table but nowhere else: {set(BUDGET) - set(seen)}"
