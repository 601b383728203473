"""The training step of a transformer block and of a ResNet's, at every level and by hand."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jinit import amp
from jinit._tables import format_table
from tests.benchmarks.accelerators.compilers import mesh_of
from tests.benchmarks.accelerators.program import Program, build, placed
from tests.benchmarks.precision import ResNet, Transformer, by_hand

__all__ = ["tables"]

ADAM = optax.adam(1e-3)
LEVELS = ("O0", "O1", "O2", "O3")
HAND, SOFTMAX, ALIKE = "by hand", "by hand, float32 softmax", "by hand, float32 as at O1"
WIDE = {HAND: (), SOFTMAX: ("softmax",), ALIKE: ("softmax", "gelu", "stream")}
"""What of the transformer is float32 beside its norms; O1 has all of it, and so has apex's."""

AT_MOST = {HAND: {"O2": 1.03, "O3": 1.05}, SOFTMAX: {"O1": 1.05}, ALIKE: {"O1": 1.03}}
"""What a level may need of the memory of a version by hand."""

QUICK = {"gpu": (SOFTMAX, "O1"), "tpu": ("O1",)}


def versions(model: Any) -> dict[str, tuple[Callable[..., Any], Any, Callable[..., Any], Any]]:
    """Returns every version of a model: its apply, optimizer, scaling, and cast of parameters."""
    hands: dict[str, Any] = {HAND: model}
    if isinstance(model, Transformer):
        hands = {name: model.clone(wide=wide) for name, wide in WIDE.items()}
    made: dict[str, Any] = {
        name: (by_hand(each), ADAM, lambda loss, state: loss, lambda x: x)
        for name, each in hands.items()
    }
    for level in LEVELS:
        fn, tx = amp.initialize(model.apply, ADAM, level, half_dtype="bfloat16", verbosity=0)
        made[level] = fn, tx, amp.scale_loss, fn.policy.cast_to_param
    return made


def training_step(apply_fn: Callable[..., Any], tx: Any, scale: Callable[..., Any]) -> Any:
    """Returns the step: new variables and optimizer state of the old and a batch."""

    def step(variables: Any, state: Any, batch: Any) -> Any:
        params = variables["params"]
        others = {name: value for name, value in variables.items() if name != "params"}

        def loss_fn(params: Any) -> Any:
            inputs, labels = batch
            logits, moved = apply_fn({**others, "params": params}, inputs, mutable=[*others])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return scale(losses.mean(), state), moved

        grads, moved = jax.grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return {**moved, "params": optax.apply_updates(params, updates)}, state

    return step


def by_columns(leaf: Any) -> P:
    """Divides the last axis of a weight over ``model``."""
    weight = len(leaf.shape) > 1 and leaf.shape[-1] % 2 == 0
    return P(*[None] * (len(leaf.shape) - 1), "model") if weight else P()


def programs(model: Any, batch: Any, mesh: Mesh, chosen: Any = None) -> dict[str, Program]:
    """Compiles the step of every version, or of those that are chosen, for a mesh."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch[0])
    batch = placed(batch, mesh, lambda leaf: P("data"))
    found = {}
    for name, (apply_fn, tx, scale, cast) in versions(model).items():
        if chosen is None or name in chosen:
            variables = placed(jax.eval_shape(cast, shapes), mesh, by_columns)
            state = placed(jax.eval_shape(tx.init, variables["params"]), mesh, by_columns)
            step = training_step(apply_fn, tx, scale)
            found[name] = build(step, (variables, state, batch), donate=(0, 1))
    return found


def table(found: Mapping[str, Program], title: str) -> str:
    """Tabulates programs, with their memory beside that of the versions by hand."""
    hands = [name for name in WIDE if name in found]
    columns = [
        "step", ">temporary MiB", *(f">of {name}" for name in hands), ">converts", ">fusions",
        ">kernels", ">collectives", ">compiled s",
    ]  # fmt: skip
    rows = [
        [name, of.mebibytes, *(ratio(of, found[hand]) for hand in hands), str(of.converts),
         str(of.fusions), str(of.kernels), str(of.collectives), f"{of.seconds:.1f}"]
        for name, of in found.items()
    ]  # fmt: skip
    return format_table(columns, rows, title=title)


def ratio(program: Program, other: Program) -> str:
    """Returns the memory of a program over that of another, to be shown."""
    return f"{program.temporary / other.temporary:.3f}" if other.temporary else "-"


def check(found: Mapping[str, Program]) -> None:
    """Raises AssertionError where a level needs more memory than it may."""
    for hand, levels in AT_MOST.items():
        for level in levels if hand in found else ():
            if level in found:
                most = levels[level] * found[hand].temporary
                assert found[level].temporary <= most, f"{level} needs too much, beside {hand}"


def workloads(compiler: str) -> dict[str, tuple[Any, Any]]:
    """Returns the models and shapes of a batch.

    The TPU's compiler takes minutes for more blocks; batches are such as its chip does not hold
    beside its memory.
    """
    depth, rows, count, side = (2, 16, 32, 112) if compiler == "gpu" else (1, 128, 256, 224)
    tokens = jax.ShapeDtypeStruct((rows, 256), jnp.int32)
    images = jax.ShapeDtypeStruct((count, side, side, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((count,), jnp.int32)
    transformer = Transformer(depth, 512, 1024, heads=8, causal=False)
    return {
        f"transformer, blocks: {depth}": (transformer, (tokens, tokens)),
        "ResNet, blocks: 1": (ResNet((1,)), (images, labels)),
    }


def tables(compiler: str, quick: bool) -> Iterator[str]:
    """Tabulates the steps; quickly, some of the first model."""
    chosen = QUICK[compiler] if quick else None
    counts = (1, 8) if compiler == "gpu" and not quick else (1 if compiler == "gpu" else 8,)
    for model, (module, batch) in [*workloads(compiler).items()][: 1 if quick else None]:
        for count in counts:
            found = programs(module, batch, mesh_of(compiler, count), chosen)
            yield table(found, f"{model}, on {count} of {compiler}")
            check(found)
