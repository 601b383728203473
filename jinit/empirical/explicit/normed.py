"""The original's wrappers, for Flax linen: the scales of a layer as variables of a module."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jinit._arithmetic import is_float
from jinit._kinds import kind_of
from jinit.empirical.explicit.normed_apply import scale_gradient
from jinit.empirical.explicit.scale_tree import COLLECTION, NAMES, wrapped_modules

__all__ = ["Normed", "WrappedModel", "get_wrapped_submodules", "wrap_all_leaf_modules"]


def _applied(
    call: Callable[..., Any], inputs: Sequence[Any], options: Mapping[str, Any], scales: Any
) -> Any:
    """Returns ``GS_gy(a * call(GS_gx(x)))``, GS_s multiplying gradients by s on their way back."""
    a, gx, gy = scales
    y = call(*(scale_gradient(x, gx) if is_float(x) else x for x in inputs), **options)
    return scale_gradient(y * a.astype(y.dtype), gy)


class Normed(nn.Module):
    """Wraps a module f in forward and backward scales.

    ``Normed(f)(x) = GS_gy(a * f(GS_gx(x)))``, where GS_s is the identity, and multiplies the
    gradient by s. The scales are variables of shape () in the collection ``normed``, 1 until
    ``calibrate(..., mode="explicit")`` tunes them; they are saved with a checkpoint, and not
    trained. Its parameters are not drawn anew.

    Attributes:
        module: The module; it returns one array.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, jinit
        >>> from jinit.empirical import Normed
        >>> model = nn.Sequential([Normed(nn.Dense(8)), nn.relu, Normed(nn.Dense(2))])
        >>> x = jax.random.normal(jax.random.key(0), (64, 4))
        >>> variables = model.init(jax.random.key(1), x)
        >>> result = jinit.calibrate(variables, model.apply, x, jnp.sum, mode="explicit")
        >>> y = model.apply(result.params, x)
        >>> print(f"{jnp.sqrt(jnp.mean(y**2)):.2f}")
        1.00

    Source:
        ``Normed`` of the system empirical-init.
    """

    module: nn.Module

    @nn.compact
    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Applies the module."""
        if not isinstance(self.module, nn.Module):
            hint = "; call it" if isinstance(self.module, type) else ""
            raise TypeError(f"Normed wraps a linen module, not {kind_of(self.module)}{hint}")
        scales = [
            self.variable(COLLECTION, name, jnp.ones, (), jnp.float32).value for name in NAMES
        ]
        # a module made inside another one's method would be that one's
        own = self.module.clone(parent=self, name="wrapped")
        return _applied(own, inputs, options, scales)


@dataclass(frozen=True)
class WrappedModel:
    """A linen model whose leaf modules are applied as ``Normed`` applies them.

    Attributes:
        model: The model.
    """

    model: nn.Module

    def init(self, *args: Any, **options: Any) -> Any:
        """Returns what ``model.init`` does, and the scales in the collection ``normed``."""
        with nn.intercept_methods(_intercept):
            return self.model.init(*args, **options)

    def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
        """Returns what ``model.apply`` does, with the scales applied."""
        with nn.intercept_methods(_intercept):
            return self.model.apply(variables, *args, **options)

    def __call__(self, variables: Any, *args: Any, **options: Any) -> Any:
        """Returns what ``apply`` does, so that it may stand where a linen module does."""
        return self.apply(variables, *args, **options)

    @property
    def __name__(self) -> str:
        return type(self.model).__name__


def _intercept(call: Any, inputs: Any, options: Any, context: Any) -> Any:
    """Scales a leaf module's call; while the model is initialized, gives it scales of 1."""
    module = context.module
    if context.method_name != "__call__":
        return call(*inputs, **options)
    if module.has_variable(COLLECTION, NAMES[0]):
        scales = [module.get_variable(COLLECTION, name) for name in NAMES]
        return _applied(call, inputs, options, scales)
    output = call(*inputs, **options)
    if module.is_initializing() and _is_leaf(module):
        for name in NAMES:
            module.put_variable(COLLECTION, name, jnp.ones((), jnp.float32))
    return output


def _is_leaf(module: nn.Module) -> bool:
    """Returns whether a module has parameters, and no submodule that has any."""
    own = module.variables.get("params", {})
    return bool(own) and not any(isinstance(value, Mapping) for value in own.values())


def wrap_all_leaf_modules(model: nn.Module) -> WrappedModel:
    """Wraps every module of a linen model that has parameters and no submodules.

    The tree of parameters stays as it is. Inside ``nn.scan``, ``nn.vmap`` and ``nn.RNN`` Flax
    admits no new collection: pass such a model to ``calibrate(..., mode="explicit")`` unwrapped,
    which needs no wrapper.

    Args:
        model: A linen module.

    Returns:
        An object with the model's ``init`` and ``apply``; calling it applies it.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, jinit
        >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
        >>> model = jinit.empirical.wrap_all_leaf_modules(model)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> sorted(jinit.empirical.get_wrapped_submodules(variables))
        ['layers_0', 'layers_2']

    Source:
        ``wrap_all_leaf_modules`` of the system empirical-init, a decorator of a module's
        constructor there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"wrap_all_leaf_modules takes a linen module, not {type(model).__name__}; for other "
            'frameworks and functions use calibrate(..., mode="explicit"), which needs no wrapper'
        )
    return WrappedModel(model)


def get_wrapped_submodules(model: Any, *inputs: Any) -> dict[str, dict[str, Any]]:
    """Returns the scales of every wrapped module by its path, such as ``Block_0/Dense_1``.

    Args:
        model: Variables; or a model (``wrap_all_leaf_modules`` or a module that has ``Normed``
            in it) that is initialized abstractly to find them.
        *inputs: The model's example inputs.

    Returns:
        By path the scales ``a``, ``gx`` and ``gy``; of a model their shapes.

    Source:
        ``get_wrapped_submodules`` of the system empirical-init.
    """
    variables = model
    if not isinstance(model, Mapping):
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return wrapped_modules(variables)
