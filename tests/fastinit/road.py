"""The whole road on a mesh of four devices: init, calibration, half precision, checkpoint.

It runs as it is in one process that has the devices, and in two that have two each.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

import jinit
from jinit import amp

STEPS = 5
OVERFLOWS_AT = 2
ROWS = 16


class Net(nn.Module):
    """A net of layers with more than one device's share."""

    @nn.compact
    def __call__(self, x):
        """Applies it."""
        for _ in range(2):
            x = nn.gelu(nn.LayerNorm()(nn.Dense(32, kernel_init=nn.initializers.normal(1.0))(x)))
        return nn.Dense(4)(x)


def mesh():
    """Returns the first four devices of all processes."""
    return jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))


def fully_sharded(path, leaf):
    """Lays the first axis along the devices, where there is one that can be."""
    divides = bool(leaf.shape) and leaf.shape[0] % 4 == 0
    return NamedSharding(mesh(), PartitionSpec("data") if divides else PartitionSpec())


def batch(step):
    """Returns a batch whose rows lie along the devices; in one step the last ones overflow."""
    rows = np.random.default_rng(step).normal(size=(ROWS, 8)).astype(np.float32)
    if step == OVERFLOWS_AT:
        rows[ROWS // 2 :] *= 1e30
    sharding = NamedSharding(mesh(), PartitionSpec("data"))
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def loss_of(logits):
    """A loss of which the scale does not fit float16 at first."""
    return (logits.astype(jnp.float32) ** 2).mean()


def whole(tree):
    """Returns every array of a tree on the host, whoever holds its parts."""
    gather = jax.jit(lambda leaf: leaf, out_shardings=NamedSharding(mesh(), PartitionSpec()))
    return [np.asarray(gather(leaf).addressable_data(0)) for leaf in jax.tree.leaves(tree)]


def walk(key, folder):
    """Returns what every station of the road gave, as arrays; leaves a checkpoint in a folder."""
    model = Net()
    init = jinit.fast_init(model.init, out_shardings=fully_sharded)
    variables = init(key, jax.ShapeDtypeStruct((1, 8), jnp.float32))
    shares = [
        leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(variables)
    ]
    found = {"drawn": whole(variables), "shares": shares}
    result = jinit.calibrate(variables, model, batch(0), loss_of)
    found["calibrated"], found["multipliers"] = whole(result.params), whole(result.multipliers)
    apply_fn, tx = amp.initialize(
        model.apply, optax.chain(optax.adam(1e-2), result.transform()), "O2", half_dtype="float16"
    )
    variables = apply_fn.policy.cast_to_param(result.params)
    opt_state = jax.jit(tx.init)(variables["params"])
    step = amp.train_step(lambda variables, x: loss_of(apply_fn(variables, x)), tx)
    found["losses"], found["scales"] = [], []
    for number in range(STEPS):
        variables, opt_state, loss = step(variables, opt_state, batch(number))
        found["losses"].append(float(loss))
        found["scales"].append(float(optax.tree.get(opt_state, "loss_scale")))
    found["trained"] = whole(variables)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {"variables": variables, "scale": found["scales"][-1]})
    return found
