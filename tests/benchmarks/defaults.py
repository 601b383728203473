"""What Keras's defaults cost a model of 100 layers: ``python -m tests.benchmarks.defaults``."""

import re
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import jinit
from jinit._tables import format_table

LAYERS, WIDTH, ROUNDS = 100, 16, 15


class Deep(nn.Module):
    """Dense layers, each with a LayerNorm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies them."""
        for _ in range(LAYERS // 2):
            x = nn.relu(nn.LayerNorm()(nn.Dense(WIDTH)(x)))
        return x


MODEL, KEY, X = Deep(), jax.random.key(0), jnp.ones((1, WIDTH))


def trace_seconds(model: nn.Module, context: AbstractContextManager) -> float:
    """Returns the time of one trace of ``init``."""
    # A function of its own, for jax would not trace the same one again.
    start = time.perf_counter()
    with context:
        jax.make_jaxpr(lambda key, x: model.init(key, x))(KEY, X)
    return time.perf_counter() - start


def trace_times() -> dict[str, list[float]]:
    """Traces every form in turns, so that other processes disturb all alike."""
    keras = jinit.keras_defaults(norm_epsilon=None)
    wrapped = jinit.keras_defaults().wrap(MODEL)
    forms: dict[str, Callable[[], float]] = {
        "plain": lambda: trace_seconds(MODEL, nullcontext()),
        "with keras_defaults()": lambda: trace_seconds(MODEL, keras),
        ".wrap(model)": lambda: trace_seconds(wrapped, nullcontext()),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            times[name].append(form())
    return {name: found[1:] for name, found in times.items()}


CONSTANTS = re.compile(r"dense<[^>]*>|constant\([^)]*\)")  # of StableHLO, and of HLO
# Where in the source an operation is from: the defaults are in the call stack, too.
SOURCE = re.compile(
    r", metadata=\{[^}]*\}|^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*", re.M
)


def programs(apply: Callable[..., Any], variables: Any) -> tuple[str, str]:
    """Returns the apply function as lowered and as compiled."""
    lowered = jax.jit(lambda variables, x: apply(variables, x)).lower(variables, X)
    return lowered.as_text(), SOURCE.sub("", lowered.compile().as_text())


def comparison(left: str, right: str) -> str:
    """Says how two programs differ."""
    if CONSTANTS.sub("", left) != CONSTANTS.sub("", right):
        return "the programs DIFFER"
    constants = [sorted({*CONSTANTS.findall(text)}) for text in (left, right)]
    only = [
        ", ".join(found for found in constants[i] if found not in constants[1 - i]) for i in (0, 1)
    ]
    return f"{len(left)} characters, equal but for {only[0] or 'nothing'} in place of {only[1]}"


def main() -> None:
    """Prints the times, and whether the compiled programs agree."""
    times = trace_times()
    plain = statistics.median(times["plain"])
    rows = [
        [name, f"{1e3 * statistics.median(found):.1f}", f"{1e3 * min(found):.1f}",
         f"{statistics.median(found) / plain:.3f}"]
        for name, found in times.items()
    ]  # fmt: skip
    columns = [f"{LAYERS} layers", ">median ms", ">least ms", ">of plain"]
    print(format_table(columns, rows, title="trace of init"))
    variables = MODEL.init(KEY, X)
    ours = programs(jinit.keras_defaults().wrap(MODEL).apply, variables)
    plain_programs = programs(MODEL.apply, variables)
    for stage, left, right in zip(("lowered", "compiled"), ours, plain_programs, strict=True):
        print(f"apply, {stage}, with and without: {comparison(left, right)}")
    other = jax.jit(lambda variables, x: 2 * MODEL.apply(variables, x)).lower(variables, X)
    print(f"and with another operation: {comparison(other.as_text(), plain_programs[0])}")


if __name__ == "__main__":
    main()
