"""Every main call computes the same in every mode of JAX."""

import jax
import pytest

from tests.debug_modes import CALLS, LIMITS, MODES, check

CELLS = [(call, mode) for call in CALLS for mode in MODES if (call, mode) not in LIMITS]


@pytest.mark.cases
@pytest.mark.parametrize(("call", "mode"), CELLS)
def test_a_call_computes_the_same_in_a_mode(call, mode):
    check(call, mode)


@pytest.mark.parametrize(("call", "mode"), LIMITS)
def test_what_cannot_hold_fails_without_jinit_too(call, mode):
    _, without_jinit = LIMITS[call, mode]
    jax.block_until_ready(without_jinit())
    with MODES[mode](), pytest.raises((TypeError, ValueError), match=r"promotion|strict"):
        without_jinit()
    with MODES[mode](), pytest.raises((TypeError, ValueError), match=r"promotion|strict"):
        CALLS[call]()
