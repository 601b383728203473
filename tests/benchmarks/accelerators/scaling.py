"""How many kernels loss scaling adds to a training step."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jinit._tables import format_table
from tests.benchmarks.accelerators.compilers import mesh_of
from tests.benchmarks.accelerators.program import build, placed
from tests.benchmarks.loss_scaling import ADAM, WIDTH, loss_fn, parameters, rows_of_steps

__all__ = ["tables"]

BATCH = 512


def by_hand(params: Any, state: Any, x: jax.Array) -> Any:
    """Dynamic loss scaling as one would write it into a step."""
    scale, count, inner = state
    grads = jax.grad(lambda params: scale * loss_fn(params, x))(params)
    grads = jax.tree.map(lambda g: g / scale, grads)
    finite = jnp.all(jnp.array([jnp.isfinite(g).all() for g in grads]))
    updates, moved = ADAM.update(grads, inner, params)
    new = optax.apply_updates(params, updates), moved
    params, inner = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (params, inner))
    grown = finite & (count + 1 == 2000)
    scale = jnp.where(finite, jnp.where(grown, 2 * scale, scale), scale / 2)
    count = jnp.where(finite & ~grown, count + 1, 0)
    return params, (scale, count, inner)


def tables(compiler: str, quick: bool) -> Iterator[str]:
    """Tabulates the kernels of every way to scale; quickly, of three."""
    steps = rows_of_steps()
    steps.pop("jmp", None)  # its scale refuses the shapes that stand for arrays
    steps["by hand"] = by_hand, lambda params: (jnp.float32(2**15), jnp.int32(0), ADAM.init(params))
    names = ("unscaled", "amp, scale_loss", "by hand") if quick else tuple(steps)
    mesh = mesh_of(compiler, 1)
    params = placed(jax.eval_shape(parameters), mesh)
    x = placed(jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32), mesh, lambda leaf: P("data"))
    found = {}
    for name in names:
        step, init = steps[name]
        state = placed(jax.eval_shape(init, params), mesh)
        found[name] = build(step, (params, state, x), donate=(0, 1))
    plain = found["unscaled"]
    rows = [
        [name, str(of.kernels), str(of.kernels - plain.kernels), str(of.fusions - plain.fusions),
         of.mebibytes, f"{of.seconds:.1f}"]
        for name, of in found.items()
    ]  # fmt: skip
    columns = ["step", ">kernels", ">more", ">fusions more", ">temporary MiB", ">compiled s"]
    yield format_table(columns, rows, title=f"loss scaling, {len(params)} layers, {compiler}")
    more = {name for name, of in found.items() if of.kernels > found["by hand"].kernels}
    assert not more, f"more kernels than by hand: {', '.join(sorted(more))}"
