"""Classes of NNX modules, decorated and wrapped, and functions that construct them."""

import copy
import functools
import inspect
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jinit
from tests.amp.reference import bits

DEFAULTS = {"keras": (jinit.keras_defaults, 1e-3), "torch": (jinit.torch_defaults, 1e-5)}
FLAX = 1e-6


class Net(nnx.Module):
    """Two layers."""

    def __init__(self, width, *, rngs, **given):
        self.first = nnx.Linear(width, width, rngs=rngs, **given)
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.first(x))


def rngs():
    return nnx.Rngs(0)


def build(width=3):
    return Net(width, rngs=rngs())


FORMS = {
    "decorated class": lambda defaults: defaults(Net)(3, rngs=rngs()),
    "wrapped class": lambda defaults: defaults.wrap(Net)(3, rngs=rngs()),
    "decorated function": lambda defaults: defaults(build)(),
    "decorated lambda": lambda defaults: defaults(lambda: build())(),
    "decorated partial": lambda defaults: defaults(functools.partial(build, 3))(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("system", DEFAULTS)
def test_every_form_builds_what_the_context_builds(system, form):
    make, epsilon = DEFAULTS[system]
    with make():
        wanted = build()
    found = FORMS[form](make())
    assert bits(nnx.state(found)) == bits(nnx.state(wanted)) != bits(nnx.state(build()))
    assert (found.norm.epsilon, build().norm.epsilon) == (epsilon, FLAX)
    assert isinstance(found, Net)
    x = jnp.ones((1, 3))
    np.testing.assert_array_equal(found(x), wanted(x))


def test_a_wrapped_class_is_the_same_class_to_its_readers():
    wrapped = jinit.keras_defaults().wrap(Net)
    assert issubclass(wrapped, Net)
    assert wrapped is jinit.keras_defaults()(Net)  # equal defaults give one class: one compilation
    assert wrapped is not jinit.torch_defaults().wrap(Net)
    assert (wrapped.__name__, wrapped.__doc__) == ("Net", "Two layers.")
    assert inspect.signature(wrapped) == inspect.signature(Net)


def test_what_is_passed_explicitly_wins():
    zeros = nnx.initializers.zeros_init()
    found = jinit.keras_defaults()(Net)(3, rngs=rngs(), kernel_init=zeros)
    assert not found.first.kernel[...].any()


def test_a_layer_of_flax_is_wrapped_inside_a_context_and_outside():
    outside = jinit.keras_defaults().wrap(nnx.LayerNorm)
    with jinit.torch_defaults():
        inside = jinit.keras_defaults().wrap(nnx.LayerNorm)
        assert inside(2, rngs=rngs()).epsilon == 1e-3  # the innermost alone is active
        assert nnx.LayerNorm(2, rngs=rngs()).epsilon == 1e-5
    assert outside is inside
    assert outside(2, rngs=rngs()).epsilon == 1e-3
    assert outside(2, rngs=rngs(), epsilon=0.5).epsilon == 0.5
    assert nnx.LayerNorm(2, rngs=rngs()).epsilon == FLAX


def test_an_error_in_the_constructor_leaves_no_defaults_behind():
    with pytest.raises(TypeError, match="width"):
        jinit.keras_defaults()(Net)(rngs=rngs())
    assert build().norm.epsilon == FLAX


@jinit.keras_defaults()
class Decorated(nnx.Module):
    def __init__(self, *, rngs):
        self.norm = nnx.LayerNorm(2, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


class Below(Decorated):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.own = nnx.LayerNorm(2, rngs=rngs)


def test_a_decorated_class_can_be_subclassed_copied_and_pickled():
    model = Below(rngs=rngs())
    assert (model.norm.epsilon, model.own.epsilon) == (1e-3, FLAX)  # its own constructor alone
    decorated = Decorated(rngs=rngs())
    for copied in (
        copy.deepcopy(decorated),
        nnx.clone(decorated),
        pickle.loads(pickle.dumps(decorated)),
        nnx.merge(*nnx.split(decorated)),
    ):
        assert copied.norm.epsilon == 1e-3
        assert isinstance(copied, Decorated)


class Plain(nnx.Module, pytree=False):
    def __init__(self, rngs):
        self.layers = [nnx.LayerNorm(2, rngs=rngs)]  # a pytree would need nnx.List


def test_a_class_that_is_no_pytree_stays_none():
    assert jinit.keras_defaults().wrap(Plain)(rngs()).layers[0].epsilon == 1e-3


@pytest.mark.parametrize("wrap", ["decorated", "wrapped"])
def test_transformations_of_the_construction(wrap):
    defaults = jinit.keras_defaults()
    wrapped = defaults(Net) if wrap == "decorated" else defaults.wrap(Net)
    wanted = bits(nnx.state(wrapped(3, rngs=rngs())))

    def made():
        return wrapped(3, rngs=rngs())

    jitted = nnx.jit(made)()
    assert jitted.norm.epsilon == 1e-3
    for mine, theirs in zip(
        jax.tree.leaves(nnx.state(jitted)), jax.tree.leaves(nnx.state(made())), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    assert nnx.eval_shape(made).norm.epsilon == 1e-3
    keys = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: wrapped(3, rngs=rngs)))
    assert keys(rngs()).first.kernel.shape == (2, 3, 3)
    assert bits(nnx.state(made())) == wanted


def test_a_wrapped_model_trains():
    model = jinit.keras_defaults()(Net)(3, rngs=rngs())
    optimizer = nnx.Optimizer(model, optax.sgd(0.05), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (8, 3))

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: ((m(x) - x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: jinit.keras_defaults().wrap(build),
            "keras_defaults().wrap takes a flax.linen module, got function; "
            "for a function use keras_defaults()(function)",
        ),
        (
            lambda: jinit.torch_defaults()(dict),
            "torch_defaults() decorates a function such as model.init, got the class dict; "
            "for a module use torch_defaults().wrap(module)",
        ),
        (
            lambda: jinit.torch_defaults()(build()),
            "torch_defaults() decorates a function such as model.init, got Net; an NNX module that "
            "is constructed keeps what it has; construct it inside: with torch_defaults(): model = "
            "Net(...)",
        ),
    ],
)
def test_what_no_form_takes(call, text):
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        call()
