"""A linen module under a policy, which can stand wherever the module stood."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jinit.amp.apply import MixedPrecisionApply
from jinit.amp.arguments import shown
from jinit.amp.casting.dtypes import FLOAT32
from jinit.amp.casting.module_types import linen_types
from jinit.amp.models.bound_linen_model import BoundLinenModel
from jinit.amp.policy import Policy
from jinit.typing import ApplyFn, PyTree

__all__ = ["LinenModel"]


class LinenModel(MixedPrecisionApply):
    """A linen module under a policy: its methods have the signatures of the module's.

    Called with variables it is the module's ``apply``; ``init`` draws what the module's does, and
    returns parameters as they are stored. The module's fields can be read off it. It is no linen
    module itself: inside another one initialize the outer one, or hold its parameters and call it
    with them.

    Args:
        apply_fn: The ``apply`` of the module.
        policy: What is cast.
        enabled: False runs the module as it is.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from jinit import amp
        >>> model = amp.initialize(nn.Dense(2), opt_level="O3", half_dtype="bfloat16")
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> variables["params"]["kernel"].dtype, model.apply(variables, jnp.ones((1, 3))).dtype
        (dtype(bfloat16), dtype('float32'))
        >>> model.bind(variables)(jnp.ones((1, 3))).shape, model.features
        ((1, 2), 2)
    """

    def __init__(self, apply_fn: ApplyFn, policy: Policy, *, enabled: bool = True):
        super().__init__(apply_fn, policy)
        self.enabled = enabled

    @property
    def module(self) -> Any:
        """The module, as it was given."""
        return self.apply_fn.__self__  # type: ignore[attr-defined]

    def __call__(self, variables: PyTree, *inputs: PyTree, **kwargs: Any) -> PyTree:
        """Applies the module, as ``apply`` does."""
        self._check_variables(variables, inputs)
        if not self.enabled:
            return self.apply_fn(variables, *inputs, **kwargs)
        if kwargs.get("capture_intermediates") and kwargs.get("mutable", False) is False:
            kwargs["mutable"] = ["intermediates"]  # as Flax: what is returned is a pair
        return super().__call__(variables, *inputs, **kwargs)

    def apply(self, variables: PyTree, *inputs: PyTree, **kwargs: Any) -> PyTree:
        """Applies a method of the module at the level.

        Args:
            variables: A mapping of collections.
            *inputs: The method's arguments.
            **kwargs: Its keywords, and those of ``flax.linen.Module.apply``: ``rngs``,
                ``method``, ``mutable`` and ``capture_intermediates``.

        Returns:
            What the method returns, in the policy's output dtype; with collections that are
            mutable a pair, of which the second, the updated collections, keeps its dtypes.

        Raises:
            TypeError: If ``variables`` are not a mapping.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from flax import linen as nn
            >>> from jinit import amp
            >>> model = amp.initialize(nn.Embed(4, 2), opt_level="O2", half_dtype="bfloat16")
            >>> variables = model.init(jax.random.key(0), jnp.array([1]))
            >>> model.apply(variables, jnp.ones((1, 2)), method="attend").shape
            (1, 4)
        """
        return self(variables, *inputs, **kwargs)

    def init(self, rngs: Any, *args: PyTree, **kwargs: Any) -> PyTree:
        """Draws the module's variables.

        Args:
            rngs: A key, or keys by the name of their stream.
            *args: The inputs.
            **kwargs: Keywords, and those of ``flax.linen.Module.init``.

        Returns:
            What the module's ``init`` returns, with the parameters in the dtypes in which they
            are stored: float32, or half at O3, where those of kept layers stay float32.
            Statistics, caches and the like are as the module makes them.

        Raises:
            ValueError: If they are stored in float32, and the module draws them in half.
        """
        return self._stored("init", self.module.init(rngs, *args, **kwargs), rngs, args, kwargs)

    def init_with_output(self, rngs: Any, *args: PyTree, **kwargs: Any) -> tuple[PyTree, PyTree]:
        """Draws the module's variables, and returns its output beside them.

        Args:
            rngs: As for ``init``.
            *args: Likewise.
            **kwargs: Likewise.

        Returns:
            The output, in the policy's output dtype, and the variables as of ``init``. The
            output is that of the module's own ``init_with_output``, whose parameters are float32.
        """
        output, drawn = self.module.init_with_output(rngs, *args, **kwargs)
        variables = self._stored("init", drawn, rngs, args, kwargs)
        return self.policy.cast_to_output(output) if self.enabled else output, variables

    def lazy_init(self, rngs: Any, *args: PyTree, **kwargs: Any) -> PyTree:
        """Draws the module's variables from the shapes of its inputs, as ``init`` does."""
        drawn = self.module.lazy_init(rngs, *args, **kwargs)
        return self._stored("lazy_init", drawn, rngs, args, kwargs)

    def tabulate(self, rngs: Any, *args: PyTree, **kwargs: Any) -> str:
        """Returns the table of the module's layers, which shows the dtypes that it draws."""
        return self.module.tabulate(rngs, *args, **kwargs)

    def bind(self, variables: PyTree, *args: Any, rngs: Any = None, mutable: Any = False) -> Any:
        """Returns the model with its variables, to be called like the module.

        Args:
            variables: A mapping of collections.
            *args: Nothing; Flax has it for its own.
            rngs: As for ``apply``.
            mutable: Likewise. The bound model keeps what a call updates.

        Returns:
            A ``BoundLinenModel``, or with ``enabled=False`` the module, bound.

        Raises:
            TypeError: If ``variables`` are not a mapping.
        """
        self._check_variables(variables, args)
        if not self.enabled:
            return self.module.bind(variables, *args, rngs=rngs, mutable=mutable)
        return BoundLinenModel(self, variables, rngs=rngs, mutable=mutable)

    def _stored(
        self, method: str, drawn: PyTree, rngs: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> PyTree:
        """Returns the variables that a method drew, with their parameters cast."""
        if not self.enabled:
            return drawn
        policy, types = self.policy, None
        if policy.param_dtype != FLOAT32 and (policy.keep_batchnorm_fp32 or policy.keep_fp32):
            types = linen_types(getattr(self.module, method), rngs, args, kwargs)
        return policy.cast_to_param(drawn, types)

    def _check_variables(self, variables: Any, inputs: Sequence[Any]) -> None:
        """Raises TypeError where inputs stand in the place of variables."""
        if isinstance(variables, Mapping):
            return
        advice = "pass what init returned, or bind it once, as model.bind(variables)(*inputs)"
        if any(isinstance(value, Mapping) and "params" in value for value in inputs):
            advice = "they go before the inputs"
        raise TypeError(
            f"{repr(self)[1:-1]} takes its variables first, as model(variables, *inputs), not "
            f"{shown(variables)}: {advice}. Inside another linen module initialize the outer one"
        )

    def __getattr__(self, name: str) -> Any:
        """Reads a field of the module."""
        module = self.__dict__["apply_fn"].__self__ if "apply_fn" in self.__dict__ else None
        if name in getattr(module, "__dataclass_fields__", ()) and not name.startswith("_"):
            return getattr(module, name)
        text = f"{type(self).__name__!r} object has no attribute {name!r}"
        if module is not None and callable(getattr(type(module), name, None)):
            text += (
                f": write model.apply(variables, *inputs, method={name!r}), or "
                f"model.bind(variables).{name}(*inputs)"
            )
        raise AttributeError(text)

    def __reduce__(self) -> Any:
        make = functools.partial(type(self), enabled=self.enabled)
        return make, (self.apply_fn, self.policy)

    def __eq__(self, other: object) -> bool:
        if not self.enabled:  # it is nothing else than the function
            return self.apply_fn == getattr(other, "apply_fn", other)
        if not isinstance(other, LinenModel) or not other.enabled:
            return NotImplemented
        return self.policy == other.policy and _are_equal(self.module, other.module)

    def __hash__(self) -> int:
        if not self.enabled:
            return hash(self.apply_fn)
        return hash((type(self.module), self.policy))  # the fields may be what has no hash

    def __repr__(self) -> str:
        if self.enabled:
            return super().__repr__()
        return f"<{type(self.module).__qualname__}.apply without mixed precision>"


def _are_equal(module: Any, other: Any) -> bool:
    try:
        return module is other or bool(module == other)
    except ValueError:  # fields that are arrays
        return False
