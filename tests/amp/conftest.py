"""What several tests of precision share."""

import jax
import pytest


@pytest.fixture
def hidden_product():
    """A function of w and x with a product that ``jax_custom_vjp3`` hides in an opaque call."""
    before = jax.config.jax_custom_vjp3
    jax.config.update("jax_custom_vjp3", True)
    hidden = jax.custom_vjp(lambda x, w: x @ w)
    hidden.defvjp(lambda x, w: (x @ w, (x, w)), lambda s, ct: (ct @ s[1].T, s[0].T @ ct))
    yield lambda w, x: hidden(x @ w, w)
    jax.config.update("jax_custom_vjp3", before)
