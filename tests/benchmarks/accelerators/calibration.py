"""``empirical_init`` and ``calibrate`` of a 12-layer transformer: their passes, and as a whole."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import jinit
from jinit._tables import format_table
from jinit.empirical.measuring import measurement
from jinit.empirical.measuring.passes import Passes, passes_for
from tests.benchmarks.accelerators.compilers import mesh_of
from tests.benchmarks.accelerators.program import Program, build, placed, read
from tests.benchmarks.precision import Transformer

__all__ = ["tables"]

TOKENS = jax.ShapeDtypeStruct((16, 256), jnp.int32)
DEPTH, QUICK_DEPTH = 12, 2
AT_MOST = {"gpu": 1.25, "tpu": 2.0}
"""What a pass may need of the memory of the plain gradient."""


def loss_fn(logits: Any) -> jax.Array:
    """Returns a loss that depends on every logit."""
    return jnp.mean(logits**2)


@dataclass(frozen=True)
class Network:
    """What is compiled for one model."""

    model: Transformer

    def gradient(self, variables: Any, tokens: Any, key: Any) -> Any:
        """What training needs at least, for scale."""
        del key
        return jax.grad(lambda variables: loss_fn(self.model.apply(variables, tokens)))(variables)

    def empirical_init(self, variables: Any, tokens: Any, key: Any) -> Any:
        """Returns the parameters scaled forward."""
        return jinit.empirical_init(variables, self.model.apply, tokens, loss_fn, key=key)

    def calibrate(self, variables: Any, tokens: Any, key: Any) -> Any:
        """Returns the parameters and multipliers."""
        result = jinit.calibrate(variables, self.model.apply, tokens, loss_fn, key=key)
        return result.params, result.multipliers


def passes_of(fn: Callable[..., Any], args: Any, mesh: Any) -> dict[str, Program]:
    """Compiles each pass that a function measures with, as a call outside of jit runs it."""
    shapes: dict[str, Any] = {}
    passes = passes_for((), traced=True)  # for no CPU

    def recorded(name: str) -> Callable[..., Any]:
        def run(model: Any, *args: Any) -> Any:
            shapes[name] = model, jax.tree.map(jax.typeof, args)
            return getattr(passes, name)(model, *args)

        return run

    recording = Passes(*map(recorded, Passes._fields))
    with mock.patch.object(measurement, "passes_for", return_value=recording):
        jax.eval_shape(fn, *args)
    return {
        f"{fn.__name__}, its {name} pass": read(
            getattr(passes, name).lower(model, *placed(args, mesh))
        )
        for name, (model, args) in shapes.items()
    }


def tables(compiler: str, quick: bool) -> Iterator[str]:
    """Tabulates what is compiled; quickly, the passes alone of a model of two layers."""
    depth = QUICK_DEPTH if quick else DEPTH
    net, mesh = Network(Transformer(depth, 512, 1024, heads=8)), mesh_of(compiler, 1)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(net.model.init, key, TOKENS)
    args = placed((variables, TOKENS, key), mesh)
    found = {"gradient of the loss": build(net.gradient, args)}
    for fn in (net.empirical_init, net.calibrate):
        found |= passes_of(fn, args, mesh)
        if not quick:
            found[f"jit({fn.__name__})"] = build(fn, args)
    base = found["gradient of the loss"].temporary
    rows = [
        [name, of.mebibytes, f"{of.temporary / base:.2f}" if base else "-", str(of.kernels),
         f"{of.seconds:.1f}"]
        for name, of in found.items()
    ]  # fmt: skip
    columns = ["program", ">temporary MiB", ">of the gradient's", ">kernels", ">compiled s"]
    yield format_table(columns, rows, title=f"transformer, layers: {depth}, {compiler}")
    worst = max(found, key=lambda name: found[name].temporary)
    most = AT_MOST[compiler]
    assert found[worst].temporary <= most * base, f"{worst} needs more than {most} gradients"
