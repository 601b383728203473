"""Random programs, each determined by its seed, and the arguments to call them with."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tests.fuzz.operations import OPERATIONS, ROWS, WIDTH, WRAPPERS

LAYERS, DEEPEST = 3, 2
SMALL = 100  # the first programs are small, for the suite that is run at every change


@dataclass(frozen=True)
class Step:
    """An operation on two of the values at hand, or a wrapper around steps of its own."""

    name: str
    second: int
    inner: tuple["Step", ...] = ()

    def __str__(self):
        if not self.inner:
            return f"{self.name}/{self.second}"
        return f"{self.name}/{self.second}({', '.join(map(str, self.inner))})"


@dataclass(frozen=True)
class Program:
    """A function of (params, data), which returns a tree of values."""

    seed: int
    steps: tuple[Step, ...]
    kept: tuple[int, ...]

    def __str__(self):
        return f"seed {self.seed}: {', '.join(map(str, self.steps))}; returns {self.kept}"

    def __call__(self, params, data):
        values = _run(self.steps, params, data["x"], data)
        kept = [values[place % len(values)] for place in self.kept]
        return {"last": values[-1], "kept": kept, "counts": (data["rows"] + 1, kept[0].sum())}


def _run(steps, p, x, d):
    values = [x]
    for step in steps:
        y = values[step.second % len(values)]
        values.append(_apply(step, p, values[-1], y, d))
    return values


def _apply(step, p, x, y, d):
    if not step.inner:
        return OPERATIONS[step.name](p, x, y, d)

    def inner(p, x, d=d):
        return _run(step.inner, p, x, d)[-1]

    return WRAPPERS[step.name](inner, p, x, y, d)


def _steps(numbers, count, depth, forward=False):
    def step():
        second = int(numbers.integers(0, 6))
        if depth < DEEPEST and numbers.random() < 0.4:
            wrappers = [name for name in WRAPPERS if not (forward and name == "custom_vjp")]
            name, count = str(numbers.choice(wrappers)), int(numbers.integers(1, 4))
            inner = forward or "jvp" in name.split("_")  # what has a custom_vjp has no jvp
            return Step(name, second, _steps(numbers, count, depth + 1, inner))
        return Step(str(numbers.choice(list(OPERATIONS))), second)

    return tuple(step() for _ in range(count))


def program_of(seed):
    """Returns the program of a seed."""
    numbers = np.random.default_rng(seed)
    most, depth = (4, 1) if seed < SMALL else (6, 0)
    steps = _steps(numbers, int(numbers.integers(2, most)), depth)
    return Program(seed, steps, tuple(numbers.integers(0, 9, 2).tolist()))


def arguments_of(seed):
    """Returns the parameters and the data that the program of a seed is called with."""
    numbers = np.random.default_rng([seed, 1])

    def normal(*shape, scale=1.0):
        return jnp.asarray(scale * numbers.normal(size=shape), jnp.float32)

    layers = [
        {"w": normal(WIDTH, WIDTH, scale=0.5), "b": normal(WIDTH, scale=0.3)} for _ in range(LAYERS)
    ]
    base = {
        "w": normal(WIDTH, WIDTH, scale=0.5), "b": normal(WIDTH, scale=0.3),
        "g": 1.0 + normal(WIDTH, scale=0.1), "kernel": normal(3, WIDTH, WIDTH, scale=0.3),
    }  # fmt: skip
    data = {
        "x": normal(ROWS, WIDTH),
        "rows": jnp.asarray(numbers.integers(0, ROWS, ROWS), jnp.int32),
        "apart": jnp.asarray(numbers.permutation(ROWS)[:2], jnp.int32),
        "columns": jnp.asarray(numbers.integers(0, WIDTH, (ROWS, WIDTH)), jnp.int32),
        "mask": jnp.asarray(numbers.random((ROWS, WIDTH)) < 0.7).at[:, 1].set(True),
        "key": jax.random.key(seed),
    }
    return base | {"layers": layers}, data
