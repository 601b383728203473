"""Contexts in tasks of one thread: each has its own, in Linen, NNX and jit's caches."""

import asyncio
import contextvars
import gc
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import jinit
from tests.defaults.test_contexts import FLAX, KERAS, SMALL, Norm, apply, in_a_thread, normalised

KEY = jax.random.key(0)
OTHER = normalised(0.1)


def keras():
    return jinit.keras_defaults()


def other():
    return jinit.keras_defaults(norm_epsilon=0.1)


def epsilon():
    return nnx.LayerNorm(2, rngs=nnx.Rngs(0)).epsilon


def look(jitted):
    """What a layer is applied with: plainly, under jit, under Flax's jit, and in NNX."""
    return apply(), jitted(SMALL), apply(nn.jit(Norm)()), epsilon()


IN_FLAX = (FLAX, FLAX, FLAX, 1e-6)
IN_KERAS = (KERAS, KERAS, KERAS, 1e-3)
IN_OTHER = (OTHER, OTHER, OTHER, 0.1)


async def turns(number=1):
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.thorough
def test_two_tasks_in_two_contexts_and_one_in_none():
    jitted = jax.jit(lambda x: apply(x=x))

    async def inside(defaults, waits):
        seen = [look(jitted)]
        with defaults:
            for _ in range(3):
                await turns(waits)
                seen.append(look(jitted))
        await turns(waits)
        return [*seen, look(jitted)]

    async def outside():
        seen = []
        for _ in range(6):
            await turns()
            seen.append(look(jitted))
        return seen

    async def main():
        results = await asyncio.gather(inside(keras(), 1), inside(other(), 2), outside())
        return *results, look(jitted)

    first, second, third, after = asyncio.run(main())
    assert first == [IN_FLAX, *3 * [IN_KERAS], IN_FLAX]
    assert second == [IN_FLAX, *3 * [IN_OTHER], IN_FLAX]
    assert third == 6 * [IN_FLAX]
    assert after == look(jitted) == IN_FLAX


@pytest.mark.thorough
def test_each_task_draws_its_own_kernels():
    def kernels():
        return (
            np.asarray(nn.Dense(3).init(KEY, SMALL)["params"]["kernel"]),
            np.asarray(jax.jit(nn.Dense(3).init)(KEY, SMALL)["params"]["kernel"]),
            np.asarray(nnx.Linear(2, 3, rngs=nnx.Rngs(0)).kernel[...]),
        )

    async def inside(defaults):
        with defaults:
            await turns()
            return kernels()

    async def main():
        return await asyncio.gather(
            inside(jinit.keras_defaults()),
            inside(jinit.torch_defaults()),
            asyncio.to_thread(kernels),
        )

    expected = [jinit.keras_defaults()(kernels)(), jinit.torch_defaults()(kernels)(), kernels()]
    for found, wanted in zip(asyncio.run(main()), expected, strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.thorough
def test_a_task_inherits_the_context_that_it_begins_in_and_keeps_it():
    method, constructor = nn.Module._call_wrapped_method, nnx.LayerNorm.__init__

    async def child(jitted):
        await turns(3)
        return look(jitted)

    async def main(jitted):
        with keras():
            task = asyncio.create_task(child(jitted))
            await turns()
        return look(jitted), await task

    assert asyncio.run(main(jax.jit(lambda x: apply(x=x)))) == (IN_FLAX, IN_KERAS)
    gc.collect()
    assert nn.Module._call_wrapped_method is method
    assert nnx.LayerNorm.__init__ is constructor


def test_the_context_around_a_loop_holds_in_it_and_after_it():
    jitted = jax.jit(lambda x: apply(x=x))

    async def main():
        before = look(jitted)
        with other():
            await turns()
            inside = look(jitted)
        return before, inside

    with keras():
        assert asyncio.run(main()) == (IN_KERAS, IN_OTHER)
        assert look(jitted) == IN_KERAS
    assert look(jitted) == IN_FLAX


def test_a_task_that_is_cancelled_or_never_ends_leaves_nothing():
    async def waits():
        with keras():
            await asyncio.sleep(100)

    async def main():
        tasks = [asyncio.create_task(waits()) for _ in range(2)]
        await turns(2)
        tasks[0].cancel()
        await turns(2)
        return look(jax.jit(lambda x: apply(x=x)))

    assert asyncio.run(main()) == IN_FLAX
    assert look(jax.jit(lambda x: apply(x=x))) == IN_FLAX


def test_nothing_is_traced_again_when_tasks_alternate():
    traces = []

    @jax.jit
    def jitted(x):
        traces.append(1)
        return apply(x=x)

    async def inside(defaults):
        with defaults:
            for _ in range(4):
                await turns()
                jitted(SMALL)

    async def main():
        await asyncio.gather(inside(keras()), inside(other()))

    asyncio.run(main())
    assert len(traces) == 2


def test_the_whole_process_and_a_tasks_own():
    jitted = jax.jit(lambda x: apply(x=x))

    async def inside():
        with other():
            await turns()
            return look(jitted), await asyncio.to_thread(look, jitted)

    async def main():
        return await asyncio.gather(inside(), asyncio.to_thread(look, jitted))

    with jinit.global_keras_initializers():
        assert asyncio.run(main()) == [(IN_OTHER, IN_KERAS), IN_KERAS]
        assert look(jitted) == IN_KERAS
    assert look(jitted) == IN_FLAX


def test_contexts_of_one_task_left_in_another_order():
    first, second = keras(), other()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (apply(), epsilon()) == (OTHER, 0.1)
    second.__exit__(None, None, None)
    assert (apply(), epsilon()) == (FLAX, 1e-6)


def test_a_context_left_inside_an_interceptor_of_the_user():
    defaults = keras()
    defaults.__enter__()
    with nn.intercept_methods(lambda call, args, kwargs, _: call(*args, **kwargs)):
        defaults.__exit__(None, None, None)
        assert apply() == FLAX
    assert apply() == FLAX


def test_generators_that_take_turns():
    def turns(defaults):
        with defaults:
            yield
        yield

    first, second = turns(keras()), turns(other())
    seen = []
    for turn in (first, second, first, second):
        next(turn)
        seen.append((apply(), epsilon()))
    assert seen == [(KERAS, 1e-3), (OTHER, 0.1), (OTHER, 0.1), (FLAX, 1e-6)]


def test_a_context_left_elsewhere_is_refused():
    defaults = keras()
    with defaults:
        message = (
            "keras_defaults(parameter_initialization=True, batchnorm_momentum=0.99, "
            "norm_epsilon=0.001) is left in a task or thread that did not enter it; contexts hold "
            "in the task that enters them, and in those that begin inside"
        )

        def leave():
            with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
                defaults.__exit__(None, None, None)

        in_a_thread(leave)
        assert apply() == KERAS


def test_a_switch_that_is_not_seen_is_right_or_refused():
    def outside():
        seen = apply(), epsilon()
        return seen, apply()

    def traced():
        return jax.jit(lambda x: apply(x=x))(SMALL)

    with keras():
        # As an event loop that is not asyncio's own would run another task.
        assert contextvars.Context().run(outside) == ((FLAX, 1e-6), FLAX)
        assert (apply(), epsilon()) == (KERAS, 1e-3)
        with pytest.raises(RuntimeError, match="jinit follows the tasks of asyncio's own event"):
            contextvars.Context().run(traced)
        assert traced() == KERAS
    assert traced() == FLAX


def test_a_coroutine_function_is_decorated():
    async def inside(x):
        """Waits."""
        await turns()
        return apply(x=x)

    async def main():
        return await asyncio.gather(keras()(inside)(SMALL), inside(SMALL), other()(inside)(SMALL))

    assert asyncio.run(main()) == [KERAS, FLAX, OTHER]
    assert keras()(inside).__doc__ == "Waits."


def test_an_asynchronous_generator_is_not_decorated():
    async def steps():
        yield apply()

    with pytest.raises(TypeError, match="cannot decorate the generator"):
        keras()(steps)


def test_a_wrapped_module_in_another_thread_of_a_task():
    wrapped = keras().wrap(Norm())

    async def main():
        return await asyncio.gather(asyncio.to_thread(apply, wrapped), asyncio.to_thread(apply))

    assert asyncio.run(main()) == [KERAS, FLAX]
