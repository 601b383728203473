"""Where and when the defaults hold: jit caches, nesting, exceptions, threads."""

import threading

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit

SMALL = jnp.array([[-0.03, 0.03]])


def normalised(epsilon):
    return pytest.approx(0.03 / (0.0009 + epsilon) ** 0.5, rel=1e-4)


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.LayerNorm(use_bias=False, use_scale=False)(x)


TRACES = []


class Counted(nn.Module):
    @nn.compact
    def __call__(self, x):
        TRACES.append(1)
        return Norm()(x)


def apply(model=None, x=SMALL):
    return (model or Norm()).apply({}, x)[0, 1]


FLAX, KERAS = normalised(1e-6), normalised(1e-3)


def jitted_apply():
    return jax.jit(lambda x: apply(x=x))


def jitted_module():
    model = nn.jit(Norm)()
    return lambda x: apply(model, x)


@pytest.mark.parametrize("make", [jitted_apply, jitted_module])
def test_what_was_traced_outside_is_retraced_inside_and_back(make):
    function = make()
    assert function(SMALL) == FLAX
    with jinit.keras_defaults():
        assert function(SMALL) == KERAS
    assert function(SMALL) == FLAX


@pytest.mark.parametrize("make", [jitted_apply, jitted_module])
def test_what_was_traced_inside_is_retraced_outside(make):
    function = make()
    with jinit.keras_defaults():
        assert function(SMALL) == KERAS
    assert function(SMALL) == FLAX


def test_entering_again_retraces_nothing():
    function = jax.jit(lambda x: Counted().apply({}, x))
    TRACES.clear()
    for _ in range(3):
        function(SMALL)
        with jinit.keras_defaults():
            function(SMALL)
        with jinit.keras_defaults(norm_epsilon=0.5):
            function(SMALL)
    assert len(TRACES) == 3


def test_remat_is_retraced_too():
    model = nn.remat(Norm)()
    assert apply(model) == FLAX
    with jinit.keras_defaults():
        assert apply(model) == KERAS


def test_jit_of_a_decorated_and_decoration_of_a_jitted_function():
    for step in (
        jax.jit(jinit.keras_defaults()(lambda x: apply(x=x))),
        jinit.keras_defaults()(jax.jit(lambda x: apply(x=x))),
    ):
        assert step(SMALL) == KERAS
    assert apply() == FLAX


def test_a_decorator_keeps_the_name_and_can_be_used_again():
    defaults = jinit.keras_defaults()

    @defaults
    def depth(n):
        """Counts."""
        return n if apply() != KERAS else depth(n - 1) if n else "recursed"

    assert depth.__name__ == "depth"
    assert depth.__doc__ == "Counts."
    assert depth(3) == depth(2) == "recursed"
    assert defaults(depth)(1) == "recursed"
    assert apply() == FLAX


@pytest.mark.thorough
def test_the_innermost_context_alone_is_in_force():
    key = jax.random.key(0)
    plain = nn.Dense(3).init(key, SMALL)["params"]["kernel"]
    with jinit.keras_defaults():
        with jinit.keras_defaults(False, None, 0.1):
            assert apply() == normalised(0.1)
            np.testing.assert_array_equal(nn.Dense(3).init(key, SMALL)["params"]["kernel"], plain)
        assert apply() == KERAS
        with jinit.keras_defaults(norm_epsilon=None):
            assert apply() == FLAX
        with jinit.keras_defaults(), jinit.keras_defaults():
            assert apply() == KERAS
    assert apply() == FLAX


def test_one_object_can_be_entered_twice():
    defaults = jinit.keras_defaults()
    with defaults as entered:
        assert entered is defaults
        with defaults:
            assert apply() == KERAS
        assert apply() == KERAS
    assert apply() == FLAX


def test_a_model_may_open_a_context_of_its_own():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            with jinit.keras_defaults(norm_epsilon=0.1):
                a = Norm()(x)
            return a, Norm()(x)

    with jinit.keras_defaults():
        a, b = Inner().apply({}, SMALL)
    assert (a[0, 1], b[0, 1]) == (normalised(0.1), KERAS)


def test_an_exception_restores_everything():
    bound = nn.Dense(3).bind({})
    default = bound.kernel_init
    with pytest.raises(flax.errors.ScopeCollectionNotFound), jinit.keras_defaults():
        bound(SMALL)
    assert bound.kernel_init is default
    assert apply() == FLAX
    with jinit.keras_defaults():
        assert apply() == KERAS


def test_fields_are_restored_after_a_call():
    norm = nn.LayerNorm().bind({"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}})
    default = norm.epsilon
    with jinit.keras_defaults():
        assert norm(SMALL)[0, 1] == KERAS
        assert norm.epsilon is default


@pytest.mark.thorough
def test_none_and_false_leave_alone():
    key, x = jax.random.key(0), jnp.ones((4, 3))
    norm = nn.BatchNorm(use_running_average=False)
    plain = norm.init_with_output(key, x)[0], norm.init(key, x)
    with jinit.keras_defaults(True, None, None):
        inside = norm.init_with_output(key, x)[0], norm.init(key, x)
    assert jax.tree.all(jax.tree.map(np.array_equal, plain, inside))


@pytest.mark.thorough
def test_the_momentum():
    x = jnp.array([[1.0], [3.0]])
    norm = nn.BatchNorm(use_running_average=False)
    for momentum in (0, 0.9, 1):
        model = jinit.keras_defaults(batchnorm_momentum=momentum).wrap(norm)
        variables = model.init(jax.random.key(0), x)
        _, updates = model.apply(variables, x, mutable=["batch_stats"])
        assert updates["batch_stats"]["mean"] == pytest.approx(2 * (1 - momentum), abs=1e-6)
    explicit = nn.BatchNorm(use_running_average=False, momentum=0.5)
    model = jinit.keras_defaults().wrap(explicit)
    _, updates = model.apply(model.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    assert updates["batch_stats"]["mean"] == pytest.approx(1.0)


def in_a_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_a_context_belongs_to_its_thread():
    defaults = jinit.keras_defaults()
    with defaults:
        assert in_a_thread(apply) == FLAX
        assert in_a_thread(defaults(apply)) == KERAS
        assert in_a_thread(lambda: apply(defaults.wrap(Norm()))) == KERAS
    with defaults:
        in_a_thread(defaults(lambda: None))
        assert apply() == KERAS


def test_a_users_interceptor_sees_the_values():
    seen = []

    def spy(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.LayerNorm) and context.method_name == "__call__":
            seen.append(context.module.epsilon)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(spy), jinit.keras_defaults():
        apply()
    with jinit.keras_defaults(), nn.intercept_methods(spy):
        apply()
    assert 1e-3 in seen
