"""What precision costs against code written by hand: ``python -m tests.benchmarks.precision``.

The model is a linen transformer, or with ``--model resnet`` a ResNet-50. By hand it is
``dtype=bfloat16`` with norms and softmax in float32, the usual way; at a level it is the same model
without a dtype. Four tables:

- the conversions between dtypes, forward and with the gradient, as traced and as compiled (with
  norms kept O2 is the model by hand);
- the time of a trace, at three depths;
- the time of a compiled training step, in rounds that visit every version in turn;
- the peak memory of a compiled training step, as the compiler plans it.

On a CPU, which computes bfloat16 products in float32, times tell the overhead of the casts and
not the gain; on a GPU the same command measures the gain.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxprs_in_params

from jinit import amp
from jinit._tables import format_table

ROUNDS = 15
DEPTHS = (2, 4, 8)
LEVELS = ("O0", "O1", "O2", "O2, norms kept", "O3")


class Block(nn.Module):
    """A pre-norm transformer block.

    Attributes:
        dtype: What products run in; None is what comes.
        norm_dtype: What layer norms run in; None is what comes.
        causal: Whether attention looks back only.
        wide: What else is float32 where a dtype is given: ``softmax``, ``gelu``.
    """

    heads: int
    dtype: Any = None
    norm_dtype: Any = None
    causal: bool = True
    wide: tuple[str, ...] = ("softmax",)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's outputs, shape ``(batch, time, width)``."""
        width = x.shape[-1]
        y = nn.LayerNorm(dtype=self.norm_dtype)(x)
        mask = nn.make_causal_mask(y[..., 0]) if self.causal else None
        wide = self.wide if self.dtype is not None else ()
        attention = nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, force_fp32_for_softmax="softmax" in wide
        )
        x = x + attention(y, mask=mask)
        y = nn.LayerNorm(dtype=self.norm_dtype)(x)
        y = nn.Dense(4 * width, dtype=self.dtype)(y)
        y = nn.gelu(y.astype(jnp.float32) if "gelu" in wide else y)
        return x + nn.Dense(width, dtype=self.dtype)(y)


class Transformer(nn.Module):
    """A language model; its logits are float32.

    Attributes:
        depth: The number of blocks.
        width: The width of the stream.
        heads: The block's; None is one for 32 of the width.
        dtype: As the block's; the stream has it as well.
        norm_dtype: As the block's, and so are the others.
        wide: May hold ``stream`` as well.
    """

    depth: int
    width: int
    vocabulary: int = 256
    heads: int | None = None
    dtype: Any = None
    norm_dtype: Any = None
    causal: bool = True
    wide: tuple[str, ...] = ("softmax",)

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns logits, shape ``(batch, time, vocabulary)``."""
        stream = None if "stream" in self.wide else self.dtype
        x = nn.Embed(self.vocabulary, self.width, dtype=stream)(tokens)
        heads = self.heads or self.width // 32
        kinds = self.dtype, self.norm_dtype, self.causal, self.wide
        for _ in range(self.depth):
            x = Block(heads, *kinds)(x)
        x = nn.LayerNorm(dtype=self.norm_dtype)(x)
        return nn.Dense(self.vocabulary, dtype=self.dtype)(x).astype(jnp.float32)


class Bottleneck(nn.Module):
    """A residual block of three convolutions."""

    features: int
    strides: int = 1
    dtype: Any = None
    norm_dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's outputs, with four times its features."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(nn.BatchNorm, use_running_average=False, dtype=self.norm_dtype)
        y = nn.relu(norm()(conv(self.features, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.features, (3, 3), self.strides)(y)))
        y = norm()(conv(4 * self.features, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.features, (1, 1), self.strides)(x))
        return nn.relu(x.astype(y.dtype) + y)


class ResNet(nn.Module):
    """A residual network in four stages; its logits are float32.

    Attributes:
        stages: The number of blocks of each stage; ResNet-50 has 3, 4, 6 and 3.
        width: The features of the first stage.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    dtype: Any = None
    norm_dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits, shape ``(batch, 1000)``."""
        x = nn.Conv(self.width, (7, 7), 2, use_bias=False, dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=False, dtype=self.norm_dtype)(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), "SAME")
        for stage, count in enumerate(self.stages):
            for block in range(count):
                strides = 2 if stage and not block else 1
                features = self.width * 2**stage
                x = Bottleneck(features, strides, self.dtype, self.norm_dtype)(x)
        return nn.Dense(1000, dtype=self.dtype)(x.mean((1, 2))).astype(jnp.float32)


def by_hand(model: nn.Module) -> Callable[..., Any]:
    """Returns the apply function of a model with its dtypes written out."""
    return model.clone(dtype=jnp.bfloat16, norm_dtype=jnp.float32).apply


def at_level(level: str, model: nn.Module) -> Callable[..., Any]:
    """Returns the apply function of a model without dtypes at a level."""
    kept = {"keep_fp32": lambda path, kind: kind is nn.LayerNorm} if "kept" in level else {}
    return amp.initialize(model, None, level[:2], half_dtype="bfloat16", verbosity=0, **kept)


def loss_of(apply_fn: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Returns the loss of predicting the next token, or the labels of images."""

    def loss_fn(variables: Any, batch: Any) -> jax.Array:
        if isinstance(batch, jax.Array):
            logits, labels = apply_fn(variables, batch[:, :-1]), batch[:, 1:]
        else:
            logits, _ = apply_fn(variables, batch[0], mutable=["batch_stats"])
            labels = batch[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss_fn


def converts_traced(fn: Callable[..., Any], *args: Any) -> int:
    """Counts the conversions between floating dtypes of arrays in a traced program."""
    count = 0

    def walk(jaxpr: Any) -> None:
        nonlocal count
        for equation in jaxpr.eqns:
            count += _converts(equation)
            for inner in jaxprs_in_params(equation.params):
                walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(fn)(*args).jaxpr)
    return count


def _converts(equation: Any) -> bool:
    if equation.primitive.name != "convert_element_type":
        return False
    before, after = equation.invars[0].aval, equation.outvars[0].aval
    floats = all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in (before, after))
    return floats and before.dtype != after.dtype and before.ndim > 0


def converts_compiled(fn: Callable[..., Any], *args: Any) -> int:
    """Counts the conversions that the backend is given, after the common ones are merged."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    return sum(" convert(" in line for line in text.splitlines())


def table_of_converts(model: nn.Module, variables: Any, batch: Any) -> str:
    """Tabulates the conversions."""
    rows = []
    versions = {"by hand": by_hand(model)}
    versions |= {level: at_level(level, model) for level in LEVELS[1:4]}
    for name, apply_fn in versions.items():
        loss_fn = loss_of(apply_fn)
        counts = [
            count(fn, variables, batch)
            for count in (converts_traced, converts_compiled)
            for fn in (loss_fn, jax.grad(loss_fn))
        ]
        rows.append([name, *map(str, counts)])
    columns = ["conversions", ">traced", ">with gradient", ">compiled", ">with gradient"]
    return format_table(columns, rows)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table_of_traces(width: int, batch: jax.Array) -> str:
    """Tabulates the time of a trace of the gradient, the shortest of five with empty caches."""

    def trace(apply_fn: Callable[..., Any], variables: Any) -> float:
        def run() -> None:
            jax.clear_caches()
            jax.make_jaxpr(jax.grad(loss_of(apply_fn)))(variables, batch)

        return min(_seconds(run) for _ in range(5))

    rows = []
    for depth in DEPTHS:
        model = Transformer(depth, width)
        variables = jax.eval_shape(model.init, jax.random.key(0), batch)
        plain = trace(model.apply, variables)
        cast = trace(at_level("O1", model), variables)
        rows.append([str(depth), f"{1e3 * plain:.0f}", f"{1e3 * cast:.0f}", f"{cast / plain:.2f}"])
    return format_table([">depth", ">plain ms", ">O1 ms", ">ratio"], rows)


def steps(model: nn.Module, variables: Any, batch: Any) -> dict[str, Any]:
    """Compiles a training step of every version: name to the program and its arguments."""
    versions = {"by hand": by_hand(model)}
    versions |= {level: at_level(level, model) for level in LEVELS}
    compiled = {}
    for name, apply_fn in versions.items():
        tx = optax.adam(1e-3)
        params = apply_fn.policy.cast_to_param(variables) if name in LEVELS else variables

        def step(params: Any, state: Any, batch: Any, apply_fn: Any = apply_fn, tx: Any = tx):
            grads = jax.grad(loss_of(apply_fn))(params, batch)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        args = params, tx.init(params), batch
        program = jax.jit(step).lower(*args).compile()
        compiled[name] = program, args
    return compiled


def table_of_times(compiled: dict[str, Any]) -> str:
    """Tabulates the time of a step and its ratio to the one by hand: the median of the rounds."""
    spent: dict[str, list[float]] = {name: [] for name in compiled}
    for number in range(ROUNDS + 1):
        for name, (program, args) in compiled.items():
            seconds = _seconds(lambda p=program, a=args: jax.block_until_ready(p(*a)))
            if number:  # the first warms up
                spent[name].append(seconds)
    rows = []
    for name, times in spent.items():
        ratios = [a / b for a, b in zip(times, spent["by hand"], strict=True)]
        rows.append([
            name, f"{1e3 * statistics.median(times):.1f}", f"{statistics.median(ratios):.3f}",
        ])  # fmt: skip
    return format_table(["step", ">ms", ">ratio to by hand"], rows)


def table_of_memory(compiled: dict[str, Any]) -> str:
    """Tabulates what a step needs beside the parameters and the optimizer's state."""
    rows, base = [], None
    for name, (program, _) in compiled.items():
        memory = program.memory_analysis()
        peak = memory.temp_size_in_bytes
        total = peak + memory.argument_size_in_bytes + memory.output_size_in_bytes
        if name == "O0":
            base = peak, total
        rows.append((name, peak, total))
    cells = [
        [name, f"{peak / 2**20:.1f}", f"{peak / base[0]:.2f}", f"{total / 2**20:.1f}",
         f"{total / base[1]:.2f}"]
        for name, peak, total in rows
    ]  # fmt: skip
    columns = ["memory", ">temporary MiB", ">of O0", ">with arguments MiB", ">of O0"]
    return format_table(columns, cells)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("transformer", "resnet"), default="transformer")
    parser.add_argument("--depth", type=int, default=4, help="blocks of the transformer")
    parser.add_argument("--width", type=int, help="of the stream, or of the first stage")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, help="tokens of a row, or pixels of a side")
    options = parser.parse_args()
    model, batch, inputs = _workload(options)
    variables = model.init(jax.random.key(1), inputs)
    print(f"on {jax.devices()[0].device_kind}")
    print(table_of_converts(model, variables, batch))
    if options.model == "transformer":
        print(table_of_traces(model.width, batch))
    compiled = steps(model, variables, batch)
    print(table_of_times(compiled))
    print(table_of_memory(compiled))


def _workload(options: argparse.Namespace) -> tuple[Any, Any, jax.Array]:
    """Returns the model, a batch for its loss, and inputs for its parameters."""
    key = jax.random.key(0)
    if options.model == "resnet":
        side = options.size or 64
        images = jax.random.normal(key, (options.batch, side, side, 3))
        return ResNet(width=options.width or 64), (images, jnp.arange(options.batch)), images
    tokens = jax.random.randint(key, (options.batch, options.size or 129), 0, 256)
    return Transformer(options.depth, options.width or 128), tokens, tokens[:, :-1]


if __name__ == "__main__":
    main()
