import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jinit import amp

STATE = amp.loss_scaling(optax.sgd(0.1)).init(jnp.ones(2))


@pytest.mark.parametrize(
    ("loss", "state", "loss_id", "text"),
    [
        (
            jnp.ones(3),
            STATE,
            0,
            "a loss must be a float32 scalar, not float32 of shape (3,): average it, and cast the "
            "model's outputs to float32 before the loss is computed",
        ),
        (jnp.float16(1), STATE, 0, "a loss must be a float32 scalar, not float16 of shape (): "),
        (jnp.bfloat16(1), STATE, 0, "a loss must be a float32 scalar, not bfloat16 of shape (): "),
        (3, STATE, 0, "a loss must be a float32 scalar, not int32 of shape (): "),
        (
            1.0,
            optax.sgd(0.1).init(jnp.ones(2)),
            0,
            "opt_state holds no loss_scale where one is needed: initialize the optimizer with "
            "amp.initialize or amp.loss_scaling, and give the state of one",
        ),
        (1.0, [STATE, STATE], 0, "opt_state holds 2 loss_scale where one is needed: "),
        (1.0, STATE, 1, "loss_id must be 0, the only loss, not 1: the optimizer has num_losses=1"),
    ],
)
def test_scale_loss_errors(loss, state, loss_id, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
        amp.scale_loss(loss, state, loss_id)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"growth_factor": 1.0}, "growth_factor must be above 1, not 1.0"),
        ({"growth_factor": "x"}, "growth_factor must be a positive, finite number, not 'x'"),
        ({"backoff_factor": 1.0}, "backoff_factor must be below 1, not 1.0"),
        ({"backoff_factor": 0.0}, "backoff_factor must be a positive, finite number, not 0.0"),
        ({"growth_interval": 0}, "growth_interval must be a positive integer, not 0"),
        ({"growth_interval": 2.5}, "growth_interval must be a positive integer, not 2.5"),
        ({"growth_interval": True}, "growth_interval must be a positive integer, not True"),
        ({"init_scale": np.inf}, "init_scale must be a positive, finite number, not inf"),
        ({"loss_scale": None}, "loss_scale must be 'dynamic' or a positive, finite number, not N"),
        ({"loss_scale": 1e300}, "loss_scale must be between 2**-126 and 2**126, not 1e+300"),
        (
            {"min_loss_scale": 4.0, "max_loss_scale": 2.0},
            "min_loss_scale 4.0 is above max_loss_scale 2.0",
        ),
        ({"num_losses": 0}, "num_losses must be a positive integer, not 0"),
        ({"num_losses": 2.0}, "num_losses must be a positive integer, not 2.0"),
        ({"hysteresis": 0}, "hysteresis must be a positive integer, not 0"),
    ],
)
def test_loss_scaling_errors(keywords, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
        amp.loss_scaling(optax.sgd(0.1), **keywords)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(optax.identity(), tx)])
def test_an_optimizer_initialized_twice(wrap):
    tx = amp.loss_scaling(wrap(amp.loss_scaling(optax.sgd(0.1))))
    with pytest.raises(ValueError, match="holds a loss_scale already: it was initialized twice"):
        tx.init(jnp.ones(2))
