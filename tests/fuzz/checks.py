"""What must hold of every program: what each check compares with, and how closely.

How far a half program may be from the float32 one is not known beforehand. It is estimated by
running the float32 program with noise: every result of every equation is multiplied by 1 + e u,
where e is the half dtype's rounding error and u is random. That is what rounding everywhere does,
and the distance that it leads to is what autocast, which rounds less, may be off by.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jinit import amp
from jinit.tracing import evaluate, roll, trace
from tests.fuzz.programs import arguments_of, program_of

DRAWS, SLACK, LEAST_COSINE = 3, 8.0, 0.98
NOISE = 512
_EXACT = frozenset(
    """
    broadcast_in_dim concatenate convert_element_type copy dynamic_slice dynamic_update_slice
    gather iota name neg optimization_barrier pad reshape rev select_n slice squeeze
    stop_gradient transpose
    """.split()
)


class Case:
    """A program with its arguments, and what it returns and has as gradients in float32."""

    def __init__(self, seed):
        self.program, self.args = program_of(seed), arguments_of(seed)
        self.leaves = jax.tree.leaves(self.args)
        self.traced = trace(self.program, *self.args)
        self.plain = jax.jit(self.program)(*self.args)
        self.slopes = trace(self.with_gradients(self.program), *self.args)

    def with_gradients(self, fn):
        """Returns a function of what ``fn`` returns and the gradients of its sum, weighted."""

        def loss(params, x, data):
            result = fn(params, {**data, "x": x})
            numbers = np.random.default_rng(self.program.seed)
            return sum(_weighted(y, numbers) for y in jax.tree.leaves(result)), result

        def both(params, data):
            slopes, result = jax.grad(loss, (0, 1), has_aux=True)(params, data["x"], data)
            return result, slopes

        return both

    @functools.cached_property
    def noisy(self):
        """Returns what the program and its gradients are with noise, as a function of it."""

        def run(noise):
            rule = _Noisy(noise)
            outputs, _ = evaluate(self.slopes.jaxpr, self.slopes.consts, self.leaves, rule)
            return outputs

        return jax.jit(run)

    def bounds(self, error):
        """Estimates how far rounding with a relative error may take each result and gradient."""
        noisy, numbers = self.noisy, np.random.default_rng(0)
        expected = noisy(jnp.zeros(NOISE))
        far = [error * np.abs(y).max(initial=0.0) for y in map(_numpy, expected)]
        for _ in range(DRAWS):
            noise = jnp.asarray(error * numbers.uniform(-1, 1, NOISE), jnp.float32)
            for n, (y, z) in enumerate(zip(noisy(noise), expected, strict=True)):
                far[n] = max(far[n], np.abs(_numpy(y) - _numpy(z)).max(initial=0.0))
        return far


class _Noisy:
    """A rule that adds noise to every result that is rounded."""

    def __init__(self, noise):
        self.noise, self.place = noise, 0

    def __call__(self, view, values):
        if view.equation.primitive.name in _EXACT:
            return None
        return [self.disturbed(result) for result in view.bind(values)]

    def disturbed(self, result):
        real = getattr(result, "dtype", None) == jnp.float32
        if not real or result.size > NOISE // 2:
            return result
        self.place = (self.place + 37) % (NOISE // 2)
        noise = jax.lax.slice(self.noise, (self.place,), (self.place + result.size,))
        noise = noise.reshape(result.shape)
        return result + result * noise


def _weighted(leaf, numbers):
    weights = jnp.asarray(numbers.normal(size=leaf.shape), jnp.float32)
    return jnp.sum(weights * leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else 0.0


def run_plain_checks(case):
    """Nothing that leaves a program alone changes a bit of it."""
    program, args = case.program, case.args
    level0 = amp.initialize(program, None, "O0", verbosity=0)
    if str(jax.make_jaxpr(level0)(*args)) != str(jax.make_jaxpr(program)(*args)):
        _assert_bitwise("O0", jax.jit(level0)(*args), case.plain)

    @jax.jit
    def unchanged(*leaves):
        return evaluate(case.traced.jaxpr, case.traced.consts, leaves, lambda view, values: None)[0]

    outputs = case.traced.unflatten(unchanged(*case.leaves))
    _assert_bitwise("an evaluation that changes nothing", outputs, case.plain)

    _assert_rolled(case)


def _assert_rolled(case):
    """A loop rounds as its blocks do, or as another fusion of them does."""
    count = len(jax.tree.leaves(case.args[0]))
    rolled = roll(case.traced, [True] * count, least_saved=1)
    if not rolled.loops:
        assert rolled.traced is case.traced
        return
    leaves = [*rolled.stack(case.leaves[:count]), *case.leaves[count:]]
    closed = jax.extend.core.ClosedJaxpr(rolled.traced.jaxpr, rolled.traced.consts)
    outputs = rolled.traced.unflatten(jax.jit(jax.extend.core.jaxpr_as_fun(closed))(*leaves))
    _assert_declared("roll", outputs, case.plain)
    count = len(jax.tree.leaves(outputs))
    bounds = case.bounds(float(jnp.finfo(jnp.float32).eps))[:count]
    plain = jax.tree.leaves(case.plain)
    for (name, y), z, bound in zip(_named(outputs), plain, bounds, strict=True):
        error = np.abs(_numpy(y) - _numpy(z)).max(initial=0.0)
        assert error <= SLACK * bound, f"roll changes {name} by {error:.2e}, not by {bound:.2e}"


def run_half_checks(case, half):
    """Under autocast, values and gradients are those of float32 up to what rounding does."""
    casted = amp.autocast(case.program, half_dtype=half)
    result = jax.jit(case.with_gradients(casted))(*case.args)
    expected = case.slopes.unflatten(case.noisy(jnp.zeros(NOISE)))
    _assert_declared(f"autocast in {half}", result, expected)
    bounds = case.bounds(float(jnp.finfo(half).eps) / 2)
    pairs = zip(_named(result), jax.tree.leaves(expected), bounds, strict=True)
    for (name, found), wanted, bound in pairs:
        found, wanted = _numpy(found), _numpy(wanted)
        assert np.isfinite(found).all() or not np.isfinite(wanted).all(), (
            f"autocast in {half} makes {name} infinite: {found}"
        )
        error = np.abs(found - wanted).max(initial=0.0)
        is_slope = name.startswith("[1]")
        assert error <= SLACK * bound or (is_slope and _cosine(found, wanted) > LEAST_COSINE), (
            f"{name} in {half} is {error:.2e} off, where rounding explains {bound:.2e}"
        )


def _named(tree):
    """Lists the leaves of a tree with their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), y) for path, y in leaves]


def _numpy(array):
    return np.asarray(array, np.float64)


def _cosine(first, second):
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    return 1.0 if lengths < 1e-5 else float(np.sum(first * second) / lengths)


def _assert_declared(what, found, wanted):
    assert jax.tree.map(jax.typeof, found) == jax.tree.map(jax.typeof, wanted), (
        f"{what} returns other shapes and dtypes"
    )


def _assert_bitwise(what, found, wanted):
    _assert_declared(what, found, wanted)
    for (name, y), z in zip(_named(found), jax.tree.leaves(wanted), strict=True):
        assert np.asarray(y).tobytes() == np.asarray(z).tobytes(), f"{what} changes {name}"


def check_program(seed, halves=("bfloat16", "float16")):
    """Checks the program of a seed; what fails names the seed and says what the program is."""
    case = None
    try:
        case = Case(seed)
        run_plain_checks(case)
        for half in halves:
            run_half_checks(case, half)
    except Exception as error:
        error.add_note(f"{program_of(seed)}\nrun it again: python -m tests.fuzz {seed}")
        raise
