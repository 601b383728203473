"""Applying a function under a policy: casts on the way in and on the way out."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jinit._arithmetic import is_float
from jinit._trees import collection_of
from jinit.amp.arguments import check_model
from jinit.amp.autocast_function import Autocast
from jinit.amp.casting.activations import (
    Activations,
    cast_activations,
    find_activations,
    owner_is_kept,
    restore_activations,
)
from jinit.amp.casting.dtypes import FLOAT32, cast_floating, holds_float32
from jinit.amp.casting.haiku_casts import cast_after_haiku_norms
from jinit.amp.casting.linen_casts import cast_between_modules, is_linen_apply
from jinit.amp.casting.module_types import (
    ModuleTypes,
    find_graphdef,
    graphdef_types,
    linen_types,
    nnx_types,
)
from jinit.amp.casting.nnx_casts import cast_after_norms
from jinit.amp.norms_in_float32 import NormsInFloat32
from jinit.amp.policy import Policy
from jinit.modules.kinds import is_framework_type, is_nnx_module
from jinit.modules.lost_state import check_states, holds_states
from jinit.modules.nnx_calls import (
    Apart,
    Part,
    Returned,
    call,
    on_objects,
    unwrapped,
    with_states,
    wrapped_as,
)
from jinit.tracing import partition
from jinit.typing import ApplyFn, PyTree

__all__ = ["MixedPrecisionApply", "find_apply_fn", "function_name"]


Path = tuple[str, ...]
Halves = tuple[Activations, Activations]  # of the variables, and of the other arguments


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
        self._fits: dict[Any, bool] = {}
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
        args = variables, *inputs
        given = find_activations(with_states([args, kwargs]), self.policy.roles)
        outputs = on_objects(self.run_apart, args, kwargs)
        return restore_activations(outputs, given, self.policy.roles)

    def run_apart(
        self, apart: Apart, wrap: Callable[[ApplyFn], Callable[[Apart], Any]] | None = None
    ) -> Any:
        """Calls the function with arguments that were taken apart from NNX's objects.

        Args:
            apart: The arguments, the variables first.
            wrap: Given the function that runs on cast values, returns what runs in its place.
        """
        variables = unwrapped(apart.args[0])
        self.policy.check_params(variables)
        types = self._types(apart)
        entering = self._fitting(apart, self._cast(apart, types), types)
        function = self._function_for(entering, variables, types)
        outputs = (wrap or _running)(function)(entering)
        if isinstance(outputs, Returned):
            restored = outputs.map_written(_restorer(apart.states(), entering.states()))
            return dataclasses.replace(
                restored, outputs=self.policy.cast_to_output(outputs.outputs)
            )
        if apart.kwargs.get("mutable", False) is False:
            return self.policy.cast_to_output(outputs)
        outputs, updated = outputs
        return self.policy.cast_to_output(outputs), _as_given(updated, variables)

    def _cast(self, apart: Apart, types: ModuleTypes) -> Apart:
        """Casts parameters and inputs to what they enter the function in."""
        given, *inputs = apart.args
        variables = wrapped_as(self.policy.cast_parameters(unwrapped(given), types), given)
        inputs, kwargs = tuple(inputs), apart.kwargs
        if self.policy.cast_model_type is not None:
            inputs, kwargs = cast_floating((inputs, kwargs), self.policy.cast_model_type)
        return dataclasses.replace(apart, args=(variables, *inputs), kwargs=kwargs)

    def _fitting(self, given: Apart, entering: Apart, types: ModuleTypes) -> Apart:
        """Gives state that follows activations their dtype, unless the function has its own.

        Args:
            given: The arguments as they came.
            entering: The arguments as they are cast.
            types: The types of modules.

        Returns:
            The arguments. Where a module's user said ``dtype=``, it computes in that whatever the
            level: then its state enters as it came.
        """
        variables, came = unwrapped(given.args[0]), self._activations(given)
        inside = self._dtypes_inside(variables, came, types)
        fitted = _with_activations(entering, inside)
        if inside == came:
            return fitted
        static, values = partition(given)
        key = static, tuple((x.shape, x.dtype) for x in values)
        fits = self._fits.get(key) if static.hashable else None
        if fits is None:
            fits = _can_run(self._function_for(fitted, variables, types), fitted)
            if static.hashable:
                self._fits[key] = fits
        return fitted if fits else entering

    def _activations(self, apart: Apart) -> Halves:
        """Returns the dtypes of the state that follows activations, in variables and inputs."""
        variables, *inputs = apart.args
        linen, roles = is_linen_apply(self.apply_fn), self.policy.roles
        return (
            find_activations(unwrapped(variables), roles, collections=linen),
            find_activations([inputs, apart.kwargs], roles),
        )

    def _dtypes_inside(self, variables: PyTree, came: Halves, types: ModuleTypes) -> Halves:
        """Returns the dtypes of activations where there is such state.

        Args:
            variables: As they were given.
            came: The dtypes of the state.
            types: The types of modules.
        """
        policy = self.policy
        dtype = policy.half_dtype if policy.computes_in_half else FLOAT32
        in_variables, in_inputs = (dict.fromkeys(paths, dtype) for paths in came)
        if in_variables and policy.keeps_any(variables, types):
            kept, others = policy.owners(variables, types)
            depth = 0 if collection_of(variables) is None else 1
            for path in in_variables:
                if owner_is_kept(path[depth:], kept, others):
                    in_variables[path] = FLOAT32
        return in_variables, in_inputs

    def module_types(self, variables: PyTree, *inputs: PyTree, **kwargs: Any) -> ModuleTypes:
        """Returns the type of the module at each path below the parameters.

        Args:
            variables: As the function is called with; nothing is run.
            *inputs: Likewise.
            **kwargs: Likewise.

        Returns:
            The types by path. A linen module's are found by tracing it, those of an NNX module
            in itself, or in its graph definition where the function closes over it; of any other
            function none are known.
        """
        if is_linen_apply(self.apply_fn):
            return linen_types(self.apply_fn, variables, inputs, kwargs)
        if is_nnx_module(variables):
            return nnx_types(variables)
        graphdef = find_graphdef(self.apply_fn)
        return {} if graphdef is None else graphdef_types(graphdef)

    def _function_for(self, entering: Apart, variables: PyTree, types: ModuleTypes) -> ApplyFn:
        """Returns the function as it is, or with casts inside where some are to be made."""
        if self.policy.patch_functions:
            return self._autocast
        if not self.policy.computes_in_half:
            return self.apply_fn
        kept = frozenset(self.policy.kept_paths(variables, types))
        return self._with_norms(kept, types, holds_float32(unwrapped(entering.args[0])))

    def _with_norms(self, kept: frozenset[Path], types: ModuleTypes, mixed: bool) -> NormsInFloat32:
        """Returns the function with its norms in float32; equal arguments give the same one.

        Args:
            kept: The paths of the modules with float32 parameters.
            types: The types of modules.
            mixed: Whether some variables are float32, be they parameters or statistics.
        """
        linen = is_linen_apply(self.apply_fn)
        key = kept, mixed, frozenset(types.items()) if linen and kept else None
        if key not in self._functions:
            fn = self.apply_fn
            if linen and kept:
                fn = cast_between_modules(fn, kept, types, self.policy.half_dtype)
            elif mixed and not linen:
                half = self.policy.half_dtype
                fn = cast_after_haiku_norms(cast_after_norms(fn, half), half)
            self._functions[key] = NormsInFloat32(fn, self.policy, kept=mixed and not linen)
        return self._functions[key]

    def _types(self, apart: Apart) -> ModuleTypes:
        """Returns the module types where the casts depend on them, from the last such call."""
        policy, variables = self.policy, unwrapped(apart.args[0])
        stateless = set(variables) == {"params"} if isinstance(variables, Mapping) else False
        plain = stateless and is_linen_apply(self.apply_fn)  # no batch norm has no statistics
        by_type = policy.keep_fp32 is not None or (policy.keep_batchnorm_fp32 and not plain)
        if not (policy.computes_in_half and by_type):
            return {}
        static, values = partition(apart)
        key = static, tuple((x.shape, x.dtype) for x in values)
        if not static.hashable:
            return self._found_types(apart)
        if key not in self._known_types:
            self._known_types[key] = self._found_types(apart)
        return self._known_types[key]

    def _found_types(self, apart: Apart) -> ModuleTypes:
        if isinstance(apart.args[0], Part):
            return graphdef_types(apart.graphdef, ("0",))
        try:  # wholly in half, since what is kept is not known before
            variables = self.policy.keeping_none().cast_to_compute(apart.args[0])
            inputs, kwargs = cast_floating((apart.args[1:], apart.kwargs), self.policy.half_dtype)
            return self.module_types(variables, *inputs, **kwargs)
        except (TypeError, ValueError):  # a module has its own dtype, and its cache that one
            return self.module_types(*apart.args, **apart.kwargs)

    @functools.cached_property
    def _autocast(self) -> ApplyFn:
        policy = self.policy
        return Autocast(self.apply_fn, policy.half_dtype, (0,), policy.ops, policy.roles)

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


def _running(fn: ApplyFn) -> Callable[[Apart], Any]:
    """Returns a function, under autocast or not, as one of arguments taken apart."""
    if isinstance(fn, Autocast):
        return fn.run

    def run(apart: Apart) -> Any:
        if holds_states(apart):
            check_states(fn, apart)
        return call(fn, apart)

    return run


def _can_run(function: ApplyFn, apart: Apart) -> bool:
    """Returns whether a function can be traced with some arguments."""
    static, values = partition(apart)
    try:
        jax.eval_shape(lambda values: _running(function)(static.fill(values)), values)
    except (TypeError, ValueError):  # of dtypes that do not fit; any other shows when it runs
        return False
    return True


def _with_activations(apart: Apart, dtypes: Halves) -> Apart:
    """Returns arguments with the state that follows activations cast."""
    variables, *inputs = apart.args
    cast = wrapped_as(cast_activations(unwrapped(variables), dtypes[0]), variables)
    inputs, kwargs = cast_activations([inputs, apart.kwargs], dtypes[1])
    return dataclasses.replace(apart, args=(cast, *inputs), kwargs=kwargs)


def _restorer(given: PyTree, entered: PyTree) -> Callable[[Any, Any], Any]:
    """Returns what brings the values that a function wrote back to the dtypes that they had.

    A parameter that passed through a transformed part of the function is written to without a
    change, as the half that it entered as: where that is so it is what it was.

    Args:
        given: The states that were given.
        entered: Those that entered the function.
    """
    before: dict[Any, Any] = dict(jax.tree_util.tree_leaves_with_path(given))
    cast: dict[Any, Any] = dict(jax.tree_util.tree_leaves_with_path(entered))

    def restore(path: Any, value: Any) -> Any:
        old: Any = before.get(path)
        if old is None or not is_float(old) or not is_float(value) or old.dtype == value.dtype:
            return value
        new: Any = value.astype(old.dtype)
        if old.shape != value.shape or cast[path].dtype != value.dtype:
            return new
        return jnp.where(value == cast[path], old, new)

    return restore


def _as_given(updated: Any, given: Any) -> Any:
    """Returns updated variables in the dtypes that they had, those that there were."""
    before = dict(jax.tree_util.tree_leaves_with_path(given))

    def restore(path: Any, value: Any) -> Any:
        old: Any = before.get(path)
        if old is None or not is_float(value) or not is_float(old):
            return value
        return value.astype(old.dtype)

    return jax.tree_util.tree_map_with_path(restore, updated)


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
