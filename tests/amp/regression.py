"""A small regression that tests train on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jinit import amp

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(64, 8)).astype(np.float32)
Y = np.tanh(X @ _RNG.normal(size=(8, 3)).astype(np.float32) / 3)
PARAMS = {
    "w1": _RNG.normal(size=(8, 32)).astype(np.float32) / 8**0.5,
    "w2": _RNG.normal(size=(32, 3)).astype(np.float32) / 32**0.5,
}


def mlp(params, x):
    return jnp.tanh(x @ params["w1"]) @ params["w2"]


def train(apply_fn, tx, params, steps=200):
    """Returns the last parameters and state; per step loss, scale, finiteness and parameters."""

    def step(carry, _):
        params, state = carry

        def loss_fn(params):
            loss = ((apply_fn(params, X) - Y) ** 2).mean()
            return amp.scale_loss(loss, state), loss

        grads, loss = jax.grad(loss_fn, has_aux=True)(params)
        updates, after = tx.update(grads, state, params)
        scale, finite = optax.tree.get(state, "loss_scale"), optax.tree.get(after, "last_finite")
        return (optax.apply_updates(params, updates), after), (loss, scale, finite, _flat(params))

    run = jax.jit(lambda params, state: jax.lax.scan(step, (params, state), None, steps))
    end, records = run(params, tx.init(params))
    return end, tuple(map(np.asarray, records))


def _flat(params):
    return jnp.concatenate([leaf.ravel().astype(jnp.float32) for leaf in jax.tree.leaves(params)])
