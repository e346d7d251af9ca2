"""How far two ways of computing the same number may differ, and why; a test that needs more has found something."""

LOGPROB_FP32 = 1e-5
"""Log-probabilities of a tiny float32 model whose products are summed in another order. Seen: under 1e-6."""

LOSS_SUM_FP32_RELATIVE = 1e-6
"""Sums of a few hundred float32 terms, relative to the sum. Seen: about 1e-7."""

GRADIENT_FP32 = 1e-5
"""Largest entry of a gradient summed in another order, relative to the largest entry. Seen: about 1e-6."""

LEAK = 1e-2
"""Least change of a tiny model's logits if a document sees another one. Seen: 0.3 and more; rounding gives 1e-6."""

RANKS_FP32_RELATIVE = 1e-6
"""Loss and gradient norm after a few steps on several ranks, relative to a single process: the same float32 terms,
added in another order. Seen: 2.8e-7; a mean per rank: 3.9e-3 and more."""

RANKS_TENSOR_RELATIVE = 3e-6
"""The same of a tensor's weights, relative to its largest. Seen: 1.2e-6, of an adapter's A, whose gradients are small
as long as B is; of all weights 2e-7. A mean per rank: 1.1e-2."""

RANKS_FRESH_RELATIVE = 3e-4
"""The same of weights that were zero at first, which are a few updates and no more. Where a gradient is small beside
AdamW's epsilon of 1e-4, its rounding of 1e-8 is 1e-4 of an update. Seen: 8.5e-5."""

RANKS_TINY_EPSILON_RELATIVE = 1e-5
"""Weights with AdamW's default epsilon of 1e-8, which makes a gradient that is all rounding a whole update: few are, of
those that are not zero at first. Seen: 4.4e-7."""

RANKS_COARSE_OPTIMIZER_RELATIVE = 6e-4
"""The same with Muon, whose products are in bf16, or with moments in 8 bits: a last digit that falls on the other side
is then 2^-8 of an entry. Seen: 1.8e-4; a mean per rank is off by 1.1e-2 in the weights."""

RANKS_8_BITS_TENSOR_RELATIVE = 3e-3
"""A tensor's weights with moments in 8 bits. Codes near the largest of a block are 1.4e-2 of it apart, so a moment that
falls on the other side of one moves a weight by 1.4e-2 of an update, and by 1 / (1 - beta_1) = 10 times that until it
is forgotten: 1.8e-3 of a tiny model's weights, whose largest are 80 updates. Seen, by processor: 1.8e-4 to 9.7e-4."""

RANKS_BF16_RELATIVE = 4e-3
"""The same with products in bf16, of which 2^-8 is the last digit: each microbatch's gradient of a weight is rounded to
it. Seen: loss 2.2e-4, norm 2.3e-3, weights 2.2e-3; a mean per rank: norm 1.6e-2, weights 1.1e-2."""

RANKS_FRESH_BF16_RELATIVE = 6e-2
"""Of weights that were zero at first, in bf16. Seen: 2.1e-2."""

SMOKE_CURVE_RELATIVE = 2e-5
"""Loss and gradient norm of fifteen steps in float32 on other ranks, other backends, with features that save memory,
or on another processor: rounding, fed back through the weights. Seen on one processor: 3e-7. A wrong divisor: 1e-2."""

SMOKE_CURVE_BF16_RELATIVE = 2e-2
"""The same with products in bfloat16, which has three digits: another order of adding changes the last one. Seen: 9e-3,
always in a gradient norm. Muon's products are always so, and turn a gradient of almost nothing into a step of full
length. Seen: 4e-3."""

SMOKE_CURVE_8_BITS_RELATIVE = 1e-3
"""The same with moments in 8 bits. Seen: 1e-6, of weights too small for it; a wrong divisor is still 1e-2."""

SMOKE_CURVE_LIGER_RELATIVE = 1e-3
"""The same with Liger's kernels, whose arithmetic is their own. A guess: no accelerator has run such a cell yet."""
