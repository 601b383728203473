"""What a precision level means: its properties as data, and the casts that follow from them."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from jinit._tables import format_table
from jinit._trees import parameter_path
from jinit.amp.casting.dtypes import BFLOAT16, FLOAT16, FLOAT32, cast_floating
from jinit.amp.casting.module_types import ModuleTypes
from jinit.amp.casting.op_lists import OPS, OpLists
from jinit.amp.casting.ranges import within_range
from jinit.modules.nnx_calls import on_state
from jinit.modules.roles import Roles, leaf_roles, param_mask
from jinit.typing import OptLevel, PyTree

__all__ = ["Policy", "opt_levels"]

KeepFp32 = Callable[[str, type | None], bool]

_BATCH_NORM = re.compile(r"batch_?norm|(?<![a-z0-9])bn\d*(?![a-z0-9])", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Holds the properties of a precision level, and casts trees by them.

    A property that is None leaves the matter as it is. ``str(policy)`` is a table of every
    property beside its level's default.

    Args:
        opt_level: ``"O0"`` to ``"O3"``.
        half_dtype: The sixteen-bit type, bfloat16 or float16.
        cast_model_type: The dtype in which parameters and floating inputs enter the function.
        patch_functions: Whether every operation is cast by its own rule (autocast).
        keep_batchnorm_fp32: Whether the parameters of batch normalization stay float32.
        master_weights: Whether the stored parameters are float32 where the computation is half;
            ``"optimizer"`` where they are half and the optimizer holds float32 masters.
        loss_scale: ``"dynamic"``, or the constant factor of the loss.
        cast_model_outputs: The dtype of floating outputs; None means float32 where
            ``cast_model_type`` is set, and no cast where it is not.
        min_loss_scale: The least dynamic scale; None means no floor.
        max_loss_scale: The greatest dynamic scale.
        ops: Which operations autocast runs in which dtype; ``print(policy.ops)`` shows them.
        keep_fp32: Says of a parameter's path and its module's type whether it stays float32.
        roles: What the user said of collections and of types of variables.

    Example:
        >>> import jax.numpy as jnp
        >>> from jinit import amp
        >>> policy = amp.initialize(lambda params, x: x @ params, opt_level="O3",
        ...                         half_dtype="bfloat16").policy
        >>> policy.cast_to_param({"params": {"kernel": jnp.ones(2), "steps": jnp.arange(2)}})
        {'params': {'kernel': Array([1, 1], dtype=bfloat16), 'steps': Array([0, 1], dtype=int32)}}
        >>> print(policy)
        amp O3 with bfloat16
          property              O3 default   in effect
         ───────────────────────────────────────────────
          cast_model_type       bfloat16     bfloat16
          patch_functions       False        False
          keep_batchnorm_fp32   False        False
          master_weights        False        False
          loss_scale            1.0          1.0
          cast_model_outputs    None         None
          min_loss_scale        None         None
          max_loss_scale        16777216.0   16777216.0
          ops                   OPS          OPS
          keep_fp32             None         None
          roles                 None         None

    Source:
        The properties of NVIDIA apex's amp levels; ``cast_to_param``, ``cast_to_compute`` and
        ``cast_to_output`` are the terms of jmp. In apex ``half_dtype`` is always float16.
    """

    opt_level: OptLevel
    half_dtype: np.dtype
    cast_model_type: np.dtype | None
    patch_functions: bool
    keep_batchnorm_fp32: bool | None
    master_weights: bool | Literal["optimizer"] | None
    loss_scale: float | Literal["dynamic"]
    cast_model_outputs: np.dtype | None = None
    min_loss_scale: float | None = None
    max_loss_scale: float = 2.0**24
    ops: OpLists = OPS
    keep_fp32: KeepFp32 | None = None
    roles: Roles = ()

    @property
    def param_dtype(self) -> np.dtype:
        """The dtype in which parameters are stored: half unless they are the masters."""
        stored_half = self.computes_in_half and self.master_weights is not True
        return self.half_dtype if stored_half else FLOAT32

    @property
    def output_dtype(self) -> np.dtype | None:
        """The dtype of floating outputs; None where the function's own is kept."""
        if self.cast_model_outputs is None and self.cast_model_type is not None:
            return FLOAT32
        return self.cast_model_outputs

    @property
    def computes_in_half(self) -> bool:
        """Whether parameters and inputs enter the function in the half type."""
        return self.cast_model_type == self.half_dtype

    def cast_to_param(self, variables: PyTree, module_types: ModuleTypes | None = None) -> PyTree:
        """Casts floating parameters to the dtype in which they are stored.

        Args:
            variables: A tree of parameters; a mapping of collections of which only
                ``"params"`` is cast; or an NNX module or its state, of which ``nnx.Param`` is.
                Batch statistics keep their dtype, and so does every leaf that is not a floating
                array.
            module_types: The type of the module at each path, as the model's
                ``module_types(variables, *inputs)`` returns them; where they are not given,
                batch normalization is found by its path.

        Returns:
            The tree, or a new module, float32 at O0, O1 and O2 and half at O3.

        Raises:
            ValueError: If it is to be float32, and a parameter is half already.
        """

        def cast(tree: PyTree) -> Any:
            self.check_params(tree)
            return self._cast_params(tree, self.param_dtype, module_types)

        return on_state(cast, variables)

    def cast_to_compute(self, variables: PyTree, module_types: ModuleTypes | None = None) -> PyTree:
        """Casts variables to the dtype in which they enter the function.

        Args:
            variables: As for ``cast_to_param``.
            module_types: As for ``cast_to_param``.

        Returns:
            The tree; batch normalization's parameters are float32 if ``keep_batchnorm_fp32``,
            and so are those that ``keep_fp32`` names. What holds activations, as a cache does, is
            half in a half function; statistics stay as they are.
        """
        cast = self.cast_parameters(variables, module_types)
        if not self.computes_in_half:
            return cast
        leaves, structure = jax.tree.flatten(cast)
        marked = zip(leaves, leaf_roles(variables, self.roles), strict=True)
        return jax.tree.unflatten(
            structure,
            [
                cast_floating(x, self.half_dtype) if role == "activation" else x
                for x, role in marked
            ],
        )

    def cast_parameters(self, variables: PyTree, module_types: ModuleTypes | None = None) -> PyTree:
        """Casts what ``cast_to_compute`` does, except what holds activations."""
        if self.cast_model_type is None:
            return variables
        return self._cast_params(variables, self.cast_model_type, module_types)

    def check_params(self, variables: PyTree) -> None:
        """Checks that parameters come in float32 where they are stored in it.

        Raises:
            ValueError: If one is half already; the paths of all such are named.
        """
        if self.param_dtype != FLOAT32:
            return
        leaves = jax.tree_util.tree_leaves_with_path(variables)
        found = [
            f"{'/'.join(parameter_path(path, variables))} ({leaf.dtype})"
            for (path, leaf), param in zip(leaves, self._params(variables), strict=True)
            if param and getattr(leaf, "dtype", None) in (FLOAT16, BFLOAT16)
        ]
        if found:
            raise ValueError(
                f"opt_level {self.opt_level!r} takes float32 parameters and casts them itself, "
                f"but half already are: {', '.join(found)}. Give them as they were initialized, "
                "or store them in half with 'O3' or master_weights='optimizer'"
            )

    def cast_to_output(self, outputs: PyTree) -> PyTree:
        """Casts floating outputs to the dtype that the caller sees.

        Args:
            outputs: Any tree.

        Returns:
            The tree with floating leaves of ``output_dtype``.
        """
        return outputs if self.output_dtype is None else cast_floating(outputs, self.output_dtype)

    def keeping_none(self) -> "Policy":
        """Returns the policy without parameters that stay float32 by themselves."""
        return dataclasses.replace(self, keep_batchnorm_fp32=False, keep_fp32=None)

    def keeps_any(self, variables: PyTree, module_types: ModuleTypes | None = None) -> bool:
        """Returns whether a parameter enters a half computation in float32."""
        return self.computes_in_half and any(self.kept_mask(variables, module_types))

    def kept_mask(self, variables: PyTree, module_types: ModuleTypes | None = None) -> list[bool]:
        """Returns for every leaf whether it is a parameter that stays float32 by itself."""
        leaves = jax.tree_util.tree_leaves_with_path(variables)
        marked = zip(leaves, self._params(variables), strict=True)
        return [
            param and self._keeps(parameter_path(path, variables), module_types or {})
            for (path, _), param in marked
        ]

    def kept_paths(
        self, variables: PyTree, module_types: ModuleTypes | None = None
    ) -> set[tuple[str, ...]]:
        """Returns the paths of the modules that own what ``kept_mask`` marks."""
        return self.owners(variables, module_types)[0]

    def owners(
        self, variables: PyTree, module_types: ModuleTypes | None = None
    ) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
        """Returns the paths of the modules with kept parameters, and of those with others."""
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
        masks = self._params(variables), self.kept_mask(variables, module_types)
        owned = [
            (parameter_path(path, variables)[:-1], kept)
            for path, param, kept in zip(paths, *masks, strict=True)
            if param
        ]
        kept, others = ({path for path, kept in owned if kept is each} for each in (True, False))
        return kept, others

    def _params(self, variables: PyTree) -> tuple[bool, ...]:
        return param_mask(variables, self.roles)

    def _keeps(self, path: tuple[str, ...], module_types: ModuleTypes) -> bool:
        module_type = module_types.get(path[:-1])
        named = path if module_type is None else [base.__name__ for base in module_type.__mro__]
        if self.keep_batchnorm_fp32 and any(map(_BATCH_NORM.search, named)):
            return True
        return self.keep_fp32 is not None and bool(self.keep_fp32("/".join(path), module_type))

    def _cast_params(
        self, variables: PyTree, dtype: np.dtype, module_types: ModuleTypes | None
    ) -> Any:
        leaves, structure = jax.tree.flatten(variables)
        masks = self._params(variables), self.kept_mask(variables, module_types)
        marked = zip(leaves, *masks, strict=True)
        return jax.tree.unflatten(
            structure,
            [_cast_param(x, FLOAT32 if kept else dtype) if p else x for x, p, kept in marked],
        )

    def __str__(self) -> str:
        default = opt_levels(self.half_dtype)[self.opt_level]
        properties = [field.name for field in dataclasses.fields(self)][2:]
        rows = [
            (name, _cell(getattr(default, name)), _cell(getattr(self, name))) for name in properties
        ]
        title = f"amp {self.opt_level} with {self.half_dtype}"
        return format_table(
            ["property", f"{self.opt_level} default", "in effect"], rows, title=title
        )


def _cell(value: Any) -> str:
    if isinstance(value, OpLists):
        return "OPS" if value == OPS else "extended"
    if isinstance(value, tuple):  # roles
        pairs = (f"{getattr(kind, '__name__', kind)}: {role}" for kind, role in value)
        return ", ".join(pairs) or "None"
    return getattr(value, "__qualname__", str(value))


def opt_levels(half_dtype: np.dtype) -> dict[OptLevel, Policy]:
    """Tabulates the four levels for a half type.

    Args:
        half_dtype: bfloat16 or float16. bfloat16 has the exponents of float32, so that its loss
            needs no scale: there ``"dynamic"`` becomes 1.

    Returns:
        The policies by the name of their level.
    """
    dynamic = "dynamic" if half_dtype == FLOAT16 else 1.0
    columns = (
        "cast_model_type",
        "patch_functions",
        "keep_batchnorm_fp32",
        "master_weights",
        "loss_scale",
    )
    rows: dict[OptLevel, tuple] = {
        "O0": (FLOAT32, False, None, False, 1.0),
        "O1": (None, True, None, None, dynamic),
        "O2": (half_dtype, False, True, True, dynamic),
        "O3": (half_dtype, False, False, False, 1.0),
    }
    return {
        level: Policy(
            opt_level=level, half_dtype=half_dtype, **dict(zip(columns, row, strict=True))
        )
        for level, row in rows.items()
    }


def _cast_param(leaf: Any, dtype: np.dtype) -> Any:
    """Casts a parameter; one that float16 does not hold, as a mask of -1e9, to the nearest."""
    guarded = dtype == FLOAT16 and getattr(leaf, "dtype", None) == FLOAT32
    return cast_floating(within_range(leaf, dtype) if guarded else leaf, dtype)
