"""A calibration of shapes: the layers, the trees and the shardings of one that is measured."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import jinit

X = jnp.ones((4, 8))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.LayerNorm()(nn.Dense(16)(x)))
        return nn.Dense(2, name="head")(x)


def loss(y):
    return jnp.sum(y**2)


def shapes_of(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_it_is_what_a_measured_one_is_but_for_the_numbers(mode, count_compilations):
    variables = Net().init(jax.random.key(0), X)
    options = {"mode": mode, "exclude": "*/head/*"}
    measured = jinit.calibrate(variables, Net(), X, loss, **options)
    with count_compilations() as compiled:
        plan = jinit.calibrate(jax.eval_shape(lambda: variables), Net(), X, loss, **options)
    assert compiled == []
    for part in ("params", "multipliers", "scales"):
        assert shapes_of(getattr(plan, part)) == shapes_of(getattr(measured, part))
    for name in ("path", "kind", "note", "joined"):
        rows = [[getattr(row, name) for row in each.report.rows] for each in (plan, measured)]
        assert rows[0] == rows[1]
    assert plan.report.not_tuned == measured.report.not_tuned
    assert plan.report.missing == {}
    assert str(plan.report).splitlines()[2].split()[2] == "-"
    assert "nothing was measured: the parameters are shapes" in str(plan.report)


def test_shardings_are_those_given():
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("model",))
    columns = NamedSharding(mesh, PartitionSpec(None, "model"))
    params = {"w": jax.ShapeDtypeStruct((8, 2), jnp.bfloat16, sharding=columns)}
    plan = jinit.calibrate(params, lambda p, x: x @ p["w"].astype(x.dtype), X, loss)
    assert plan.params["w"] == params["w"]
    assert plan.params["w"].sharding == columns


def test_modules_of_shapes():
    mlp = eqx.filter_eval_shape(eqx.nn.MLP, 8, 2, 4, 1, key=jax.random.key(0))
    plan = jinit.calibrate(mlp, lambda m, x: jax.vmap(m)(x), X, loss)
    assert [row.path for row in plan.report.rows] == ["layers/0/weight", "layers/1/weight"]
    assert plan.params.activation is mlp.activation
    linear = nnx.eval_shape(lambda: nnx.Linear(8, 2, rngs=nnx.Rngs(0)))
    plan = jinit.calibrate(linear, X, loss)
    assert [row.path for row in plan.report.rows] == ["kernel"]
