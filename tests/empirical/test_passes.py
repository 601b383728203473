"""What a calibration costs, as work and not as time: it must not grow with depth."""

import jax
import jax.numpy as jnp
import pytest

import jinit
import jinit.empirical.traced_model
from jinit._progress import Progress
from jinit.empirical.measuring.measurement import Measurement
from jinit.empirical.measuring.passes import Passes, passes_for
from jinit.empirical.request import read_arguments
from jinit.tracing import Rolled
from tests.empirical.models import products, random_loss, tanh_net, tanh_params

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")
DEPTHS = (4, 16, 64)


WIDTH = 128


def vectors(key):
    return jax.random.normal(key, (64, WIDTH))


class Stopped(Exception):
    """Stands in for the program that was to run."""


def program_of(params):
    """The program that measures once on one key, and its arguments."""
    problem = read_arguments(
        params, tanh_net, vectors, random_loss, None, optimizer="adam", mode="fold", samples=8,
        batch_size=64, target=1.0, include=None, exclude=None, collection=None, rngs=(),
        has_aux=False,
    )  # fmt: skip
    measurement = Measurement(problem, Progress())
    found = []

    def stop(*args):
        found.append(args)
        raise Stopped

    measurement._passes = Passes(stop, stop)
    with pytest.raises(Stopped):
        measurement.before()
    return passes_for([], traced=True).measure, found[0]


def flops(compiled):
    return compiled.cost_analysis()["flops"]


@pytest.mark.thorough
def test_compiled_operations_a_key_are_a_few_forward_passes_at_any_depth(monkeypatch):
    """Compiled without loops, whose operations XLA counts once: at most 8, constant within 10%."""

    def unrolled(traced, trainable):
        return Rolled(traced, tuple((i,) for i in range(len(trainable))), frozenset())

    module = jinit.empirical.traced_model
    monkeypatch.setattr(module, "roll", unrolled)
    monkeypatch.setattr(module, "_models", type(module._models)())
    passes = []
    for depth in DEPTHS:
        params = tanh_params(depth, WIDTH)
        measure, args = program_of(params)
        forward = jax.jit(tanh_net).lower(params, jnp.ones((64, WIDTH))).compile()
        passes.append(flops(measure.lower(*args).compile()) / flops(forward))
    assert max(passes) <= 8
    assert max(passes) / min(passes) < 1.1


@pytest.mark.thorough
def test_the_products_of_the_rolled_program_are_five_forward_passes():
    """Forward, backward (two), and forward with the derivative along the step (two)."""
    for depth in DEPTHS:
        params = tanh_params(depth, WIDTH)
        measure, args = program_of(params)
        spent = products(lambda *rest, m=measure, model=args[0]: m(model, *rest), *args[1:])
        assert spent / products(tanh_net, params, jnp.ones((64, WIDTH))) == pytest.approx(
            5, rel=0.1
        )


@pytest.mark.cases
@pytest.mark.parametrize(("run", "limit"), [("empirical_init", 8), ("calibrate", 5 * (2 + 8 + 4))])
def test_the_number_of_model_evaluations_of_a_whole_call(run, limit):
    """One forward pass a key; or of five on 1 key before, 8 and one repeated meanwhile, 4 after."""
    x = jnp.ones((16, 64))
    evaluations = []
    for depth in DEPTHS:
        params = tanh_params(depth)
        tune = getattr(jinit, run)
        spent = products(lambda p, tune=tune: tune(p, tanh_net, x, jnp.sum), params)
        evaluations.append(spent / products(tanh_net, params, x))
    assert max(evaluations) / min(evaluations) < 1.1
    assert max(evaluations) <= limit * 1.001


@pytest.mark.thorough
def test_the_program_does_not_grow_with_depth():
    sizes = []
    for depth in (16, 64):
        measure, args = program_of(tanh_params(depth, WIDTH))
        sizes.append(len(measure.lower(*args).as_text().splitlines()))
    assert sizes[1] < 1.1 * sizes[0]


@pytest.mark.cases
@pytest.mark.parametrize("options", [{}, {"mode": "explicit"}, {"optimizer": "sgd"}])
def test_a_second_call_compiles_nothing_and_traces_nothing(count_compilations, options):
    traces = []

    def model(params, x):
        traces.append(1)
        return tanh_net(params, x)

    for number in range(2):
        jinit.calibrate(tanh_params(5, WIDTH, seed=number), model, vectors, random_loss, **options)
    before = len(traces)
    with count_compilations() as compiled:
        jinit.calibrate(tanh_params(5, WIDTH, seed=3), model, vectors, random_loss, **options)
    assert compiled == []
    assert len(traces) == before
