"""Haiku's transformed functions under a policy, with the signatures that they had."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jinit.amp.apply import MixedPrecisionApply
from jinit.amp.arguments import shown
from jinit.amp.policy import Policy
from jinit.modules.kinds import is_framework_type
from jinit.modules.nnx_calls import Apart
from jinit.typing import ApplyFn, PyTree

__all__ = ["HaikuModel", "Transformed", "is_haiku"]

_STATE = "state"


class Transformed(Protocol):
    """What ``hk.transform`` and ``hk.transform_with_state`` return."""

    @property
    def init(self) -> Callable[..., Any]:
        """Draws parameters, and state."""
        ...

    @property
    def apply(self) -> Callable[..., Any]:
        """Calls the function with them."""
        ...


def is_haiku(model: Any) -> bool:
    """Returns whether a model is a pair of Haiku's, with or without state."""
    return is_framework_type(model, "haiku", "Transformed") or _has_state(model)


class HaikuModel(MixedPrecisionApply):
    """A pair of Haiku's under a policy: ``init`` and ``apply`` of the same signatures.

    State is kept as it is, in float32, and comes back in the dtypes it had; the roles of a policy
    know it as the collection ``state``.

    Args:
        transformed: What ``hk.transform`` or ``hk.transform_with_state`` returned.
        policy: What is cast.

    Example:
        >>> import haiku as hk, jax, jax.numpy as jnp
        >>> from jinit import amp
        >>> model = amp.initialize(hk.transform(lambda x: hk.Linear(2)(x)), opt_level="O3",
        ...                        half_dtype="bfloat16")
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> params["linear"]["w"].dtype, model.apply(params, None, jnp.ones((1, 3))).dtype
        (dtype(bfloat16), dtype('float32'))
    """

    def __init__(self, transformed: Transformed, policy: Policy):
        self.transformed, self.has_state = transformed, _has_state(transformed)
        super().__init__(_LikeFlax(transformed.apply, self.has_state), policy)

    def run_apart(
        self, apart: Apart, wrap: Callable[[ApplyFn], Callable[[Apart], Any]] | None = None
    ) -> Any:
        """Calls the function with its arguments as Haiku has them.

        Args:
            apart: The arguments, the parameters first, and after them the state where there is one.
            wrap: As of ``MixedPrecisionApply``.
        """
        self._check_order(apart.args)
        params, *inputs = apart.args
        variables, kwargs = {"params": params}, apart.kwargs
        if self.has_state:
            variables[_STATE], *inputs = inputs
            kwargs = {**kwargs, "mutable": [_STATE]}
        given = dataclasses.replace(apart, args=(variables, *inputs), kwargs=kwargs)
        returned = super().run_apart(given, wrap)
        return (returned[0], returned[1][_STATE]) if self.has_state else returned

    def apply(self, params: PyTree, *args: PyTree, **kwargs: Any) -> PyTree:
        """Applies the function at the level.

        Args:
            params: The parameters.
            *args: The state, where there is one, the key or None, and the inputs.
            **kwargs: Keywords of the function.

        Returns:
            The output, in the policy's output dtype; where there is a state, a pair with it, in
            the dtypes that it had.

        Raises:
            TypeError: If the parameters or the state are not mappings.
        """
        return self(params, *args, **kwargs)

    def init(self, rng: Any, *args: PyTree, **kwargs: Any) -> PyTree:
        """Draws the parameters, and makes the state where there is one.

        Args:
            rng: A key.
            *args: The inputs.
            **kwargs: Keywords of the function.

        Returns:
            What Haiku returns, with the parameters in the dtype in which they are stored.

        Raises:
            ValueError: If they are stored in float32, and the function draws them in half.
        """
        drawn = self.transformed.init(rng, *args, **kwargs)
        params, *state = drawn if self.has_state else (drawn,)
        params = self.policy.cast_to_param({"params": params})["params"]
        return (params, *state) if self.has_state else params

    def _check_order(self, args: tuple[Any, ...]) -> None:
        """Raises TypeError where something else stands in the place of parameters or state."""
        names = ("params", "state") if self.has_state else ("params",)
        first = args[: len(names)]
        if len(first) < len(names) or not all(isinstance(value, Mapping) for value in first):
            given = ", ".join(map(shown, args))
            raise TypeError(
                f"{repr(self)[1:-1]} is called as model({', '.join(names)}, rng, *inputs) with "
                f"what init returned, not as model({given})"
            )

    def __reduce__(self) -> Any:
        return type(self), (self.transformed, self.policy)

    def __repr__(self) -> str:
        name = type(self.transformed).__name__
        return f"<{name}.apply at {self.policy.opt_level} with {self.policy.half_dtype}>"


@dataclasses.dataclass(frozen=True)
class _LikeFlax:
    """Haiku's apply as a function of collections, which a policy tells apart.

    Attributes:
        apply: The apply.
        stateful: Whether it takes and returns a state.
    """

    apply: Callable[..., Any]
    stateful: bool

    def __call__(
        self, variables: PyTree, *args: PyTree, mutable: Any = False, **kwargs: Any
    ) -> PyTree:
        if not self.stateful:
            return self.apply(variables["params"], *args, **kwargs)
        output, state = self.apply(variables["params"], variables[_STATE], *args, **kwargs)
        return output, {_STATE: state}


def _has_state(model: Any) -> bool:
    return is_framework_type(model, "haiku", "TransformedWithState")
