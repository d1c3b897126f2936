"""How far two computations of the same thing may differ: one bar for each dtype, the same in every test.

The measure is relative RMS. Rounding to a dtype with epsilon e costs up to e/2; a path rounds the weights, both outputs
and their merge, which the reference does not, and the bar is one epsilon (measured: 3.9e-4 in fp16, 3.1e-3 in bf16). In
fp32 the order of summation dominates: 1e-6 is eight epsilons, for sums over up to 560 keys (measured: 3.7e-7).
"""
import torch

RELATIVE_RMS = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}

# A whole sampling run divides and multiplies by sigma at every step and feeds its rounding back through the model.
# 1e-5 is ten times the bar of one operation, and four orders below the effect of the identity on the tiny models.
WHOLE_RUN = 1e-5


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    """NaN or infinite where found is not finite, so that any bar fails it."""
    found, expected = found.double(), expected.double()
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def assert_close(found: torch.Tensor, expected: torch.Tensor, bar: float | None = None) -> None:
    assert found.shape == expected.shape
    bar = RELATIVE_RMS[found.dtype] if bar is None else bar
    difference = relative_rms(found, expected)
    assert difference <= bar, f"relative RMS {difference:.2e}, at most {bar:.0e} is allowed"
