"""Applying a function under a policy: casts on the way in and on the way out."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jinit._trees import is_framework_type
from jinit.amp.arguments import check_model
from jinit.amp.autocast import autocast
from jinit.amp.casting.dtypes import cast_floating
from jinit.amp.casting.linen_casts import cast_between_modules, is_linen_apply
from jinit.amp.casting.module_types import (
    ModuleTypes,
    find_graphdef,
    linen_types,
    nnx_types,
)
from jinit.amp.norms_in_float32 import NormsInFloat32
from jinit.amp.policy import Policy
from jinit.tracing import partition
from jinit.typing import ApplyFn, PyTree

__all__ = ["MixedPrecisionApply", "find_apply_fn", "function_name"]


Path = tuple[str, ...]
_CACHE = "cache"  # the name of Flax's own modules for keys and values of earlier positions


class MixedPrecisionApply:
    """Calls an apply function under a policy.

    Two are equal, and hash alike, if their functions and policies are: passed to ``jax.jit`` as
    a static argument, the second compiles nothing.

    Args:
        apply_fn: ``apply_fn(variables, *inputs, **kwargs)``.
        policy: What is cast.
    """

    def __init__(self, apply_fn: ApplyFn, policy: Policy):
        self.apply_fn = apply_fn
        self.policy = policy
        self._known_types: dict[Any, ModuleTypes] = {}
        self._functions: dict[Any, NormsInFloat32] = {}
        functools.update_wrapper(self, apply_fn, updated=())

    def __call__(self, variables: PyTree, *inputs: PyTree, **kwargs: Any) -> PyTree:
        """Casts variables and inputs, applies the function and casts its outputs.

        Args:
            variables: The parameters, or a mapping of collections with ``"params"`` among them.
            *inputs: The function's inputs, arrays or trees.
            **kwargs: Its keywords. With Flax's ``mutable=`` the function returns a pair, of which
                the second, the updated variables, keeps its dtypes.

        Returns:
            What the function returns, in the policy's output dtype.
        """
        return self.run(variables, inputs, kwargs)

    def run(
        self,
        variables: PyTree,
        inputs: tuple[Any, ...],
        kwargs: dict[str, Any],
        wrap: Callable[[ApplyFn], ApplyFn] | None = None,
    ) -> PyTree:
        """Calls the function, as ``__call__`` does.

        Args:
            variables: As for ``__call__``.
            inputs: Likewise.
            kwargs: Likewise.
            wrap: Given the function that runs on cast values, returns what runs in its place.
        """
        types = self._types(variables, inputs, kwargs)
        function = self._function_for(variables, types)
        self.policy.check_params(variables)
        given = variables
        variables = self._with_cache(self.policy.cast_to_compute(variables, types))
        if self.policy.cast_model_type is not None:
            inputs, kwargs = cast_floating((inputs, kwargs), self.policy.cast_model_type)
        outputs = (function if wrap is None else wrap(function))(variables, *inputs, **kwargs)
        if kwargs.get("mutable", False) is False:
            return self.policy.cast_to_output(outputs)
        outputs, updated = outputs
        return self.policy.cast_to_output(outputs), _as_given(updated, given)

    def _with_cache(self, variables: PyTree) -> Any:
        """Casts the collection ``cache``: what is written into it is data of the function."""
        if not self.policy.computes_in_half or not _has_cache(variables):
            return variables
        cache = cast_floating(variables[_CACHE], self.policy.half_dtype)
        return {**variables, _CACHE: cache}

    def module_types(self, variables: PyTree, *inputs: PyTree, **kwargs: Any) -> ModuleTypes:
        """Returns the type of the module at each path below the parameters.

        Args:
            variables: As the function is called with; nothing is run.
            *inputs: Likewise.
            **kwargs: Likewise.

        Returns:
            The types by path. A linen module's are found by tracing it, those of an NNX module
            in its graph definition, which the function closes over; of any other function none
            are known.
        """
        if is_linen_apply(self.apply_fn):
            return linen_types(self.apply_fn, variables, inputs, kwargs)
        graphdef = find_graphdef(self.apply_fn)
        return {} if graphdef is None else nnx_types(graphdef)

    def _function_for(self, variables: PyTree, types: ModuleTypes) -> ApplyFn:
        """Returns the function as it is, or with casts inside where some are to be made."""
        if self.policy.patch_functions:
            return self._autocast
        if not self.policy.computes_in_half:
            return self.apply_fn
        kept = frozenset(self.policy.kept_paths(variables, types))
        return self._with_norms(kept, types)

    def _with_norms(self, kept: frozenset[Path], types: ModuleTypes) -> NormsInFloat32:
        """Returns the function with its norms in float32; equal arguments give the same one."""
        linen = is_linen_apply(self.apply_fn)
        key = kept, frozenset(types.items()) if linen and kept else None
        if key not in self._functions:
            fn = self.apply_fn
            if linen and kept:
                fn = cast_between_modules(fn, kept, types, self.policy.half_dtype)
            self._functions[key] = NormsInFloat32(fn, self.policy, kept=bool(kept) and not linen)
        return self._functions[key]

    def _types(self, variables: PyTree, inputs: Any, kwargs: Any) -> ModuleTypes:
        """Returns the module types where the casts depend on them, from the last such call."""
        policy = self.policy
        stateless = set(variables) == {"params"} if isinstance(variables, Mapping) else False
        plain = stateless and is_linen_apply(self.apply_fn)  # no batch norm has no statistics
        by_type = policy.keep_fp32 is not None or (policy.keep_batchnorm_fp32 and not plain)
        if not (policy.computes_in_half and by_type):
            return {}
        static, values = partition((variables, inputs, kwargs))
        key = static, tuple((x.shape, x.dtype) for x in values)
        if not static.hashable:
            return self.module_types(variables, *inputs, **kwargs)
        if key not in self._known_types:
            self._known_types[key] = self.module_types(variables, *inputs, **kwargs)
        return self._known_types[key]

    @functools.cached_property
    def _autocast(self) -> ApplyFn:
        return autocast(self.apply_fn, self.policy)

    def __reduce__(self) -> Any:
        return type(self), (self.apply_fn, self.policy)  # without what was compiled

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MixedPrecisionApply):
            return NotImplemented
        return (self.apply_fn, self.policy) == (other.apply_fn, other.policy)

    def __hash__(self) -> int:
        return hash((self.apply_fn, self.policy))

    def __repr__(self) -> str:
        name = function_name(self.apply_fn)
        return f"<{name} at {self.policy.opt_level} with {self.policy.half_dtype}>"


def _has_cache(variables: PyTree) -> bool:
    return isinstance(variables, Mapping) and "params" in variables and _CACHE in variables


def _as_given(updated: Any, given: Any) -> Any:
    """Returns updated variables with a cache of the dtypes that it had, if it had any."""
    if not (_has_cache(given) and isinstance(updated, Mapping) and _CACHE in updated):
        return updated
    if jax.tree.structure(updated[_CACHE]) != jax.tree.structure(given[_CACHE]):
        return updated
    cache = jax.tree.map(lambda new, old: new.astype(old.dtype), updated[_CACHE], given[_CACHE])
    return {**updated, _CACHE: cache}


def function_name(fn: Callable[..., Any]) -> str:
    """Names a function; a method by the class of its object."""
    owner = getattr(fn, "__self__", None)
    if owner is not None:
        return f"{type(owner).__qualname__}.{fn.__name__}"
    return getattr(fn, "__qualname__", type(fn).__qualname__)


def find_apply_fn(model: Any) -> ApplyFn:
    """Finds the apply function of a model.

    Args:
        model: An ``apply_fn(variables, *inputs, **kwargs)``, or a linen module.

    Returns:
        The function, or the module's ``apply``.

    Raises:
        TypeError: If the model is neither.
        ValueError: If it went through ``initialize`` before.
    """
    owner = getattr(model, "__self__", model)  # of a method
    if isinstance(owner, MixedPrecisionApply):
        raise ValueError(f"the model {owner!r} was initialized twice")
    if is_framework_type(model, "flax.linen", "Module"):
        return model.apply
    check_model(model)
    return model
