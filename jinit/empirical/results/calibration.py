"""What ``calibrate`` returns."""

import copy
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jax

from jinit.empirical.results.files import applying, read, write
from jinit.empirical.results.findings_report import report_of
from jinit.empirical.results.report import Report
from jinit.empirical.results.saved import Saved, applied_with, saved
from jinit.empirical.results.transform import scale_by_multipliers
from jinit.empirical.solve import Findings

if TYPE_CHECKING:
    import optax

__all__ = ["Calibration"]

P = TypeVar("P")

_PARTS = ("params", "multipliers", "scales")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "multipliers", "scales", "_findings"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Calibration(Generic[P]):
    """What ``calibrate`` measured; a pytree, so that it may be returned from a jitted function.

    It can be pickled: the arrays, the report, and ``apply_fn`` where pickle takes the function; and
    saved to a file that holds arrays and JSON, without the function.

    Attributes:
        params: The tree with the structure, dtypes and shardings of the one given, or a module of
            its kind: rescaled, or in explicit mode such that ``apply_fn`` rescales it. Linen's
            variables hold in explicit mode the scales as well, in the collection ``normed``.
        multipliers: A tree of the structure given that holds each leaf's float32 learning-rate
            multiplier: of shape (), or with the leaf's axes up to the last that a scan over its
            layers goes along, those between of length 1. Of a module of NNX or Equinox it is like
            what an optimizer sees: ``nnx.state(model, nnx.Param)``, or
            ``eqx.filter(model, eqx.is_inexact_array)``.
            In explicit mode all are 1.
        scales: In fold mode a tree of the same shapes: what each leaf was multiplied by. In
            explicit mode what ``apply_fn`` applies, nested by the leaves' paths: of every leaf
            ``a`` (what it is multiplied by) and ``gy`` (what its gradient is multiplied by
            as well), and of every layer, at the leaf that carries it, ``gx`` (the gradient that
            leaves the layer through its input is multiplied by ``gx * gy``).
    """

    params: P
    multipliers: Any
    scales: Any
    _findings: Findings | Saved

    @functools.cached_property
    def apply_fn(self) -> Callable[..., Any]:
        """The function to train: the one given, or in explicit mode one that applies the scales.

        It takes the arguments of the one given, a module first; ``params`` of this result belong to
        it. A module of NNX is left as the plain call would leave it.
        """
        return applied_with(self._findings, self.scales)

    @property
    def growth(self) -> jax.Array:
        """What ``step="network"`` divided the multipliers by, of shape (); else 1."""
        return self._findings.growth

    @functools.cached_property
    def report(self) -> Report:
        """The RMS of activation, gradient and update of every layer, before and after.

        Of a calibration that was mapped, as by ``jax.vmap``, it is one of all members.
        """
        if isinstance(self._findings, Saved):
            return self._findings.facts.report
        return report_of(self._findings)

    def transform(self) -> "optax.GradientTransformation":
        """Returns the optax transformation that multiplies every update by its multiplier.

        It stands after Adam or momentum and before weight decay and the learning rate. The
        multipliers are its state, so they are saved with the optimizer.

        Example:
            >>> import jax, jax.numpy as jnp, jinit, optax
            >>> params = {"w": jnp.eye(4)}
            >>> result = jinit.calibrate(params, lambda p, x: x @ p["w"], jnp.ones((2, 4)), jnp.sum)
            >>> tx = optax.chain(
            ...     optax.scale_by_adam(), result.transform(), optax.scale_by_learning_rate(1e-2)
            ... )
            >>> updates, state = tx.update({"w": jnp.ones((4, 4))}, tx.init(params))
            >>> bool(jnp.allclose(updates["w"], -1e-2 * result.multipliers["w"]))
            True
        """
        return scale_by_multipliers(self.multipliers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the arrays and the report to a file, as an npz archive with JSON in it.

        The function is not in it: hand it to ``load``.

        Args:
            path: The file; what it held is lost.

        Raises:
            TypeError: The trees hold something else than dicts by string, lists, tuples and
                arrays; nothing is written then.

        Example:
            >>> import jax.numpy as jnp, jinit, os, tempfile
            >>> model = lambda p, x: x @ p["w"]
            >>> result = jinit.calibrate({"w": jnp.eye(4)}, model, jnp.ones((2, 4)), jnp.sum)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = os.path.join(folder, "calibration.npz")
            ...     result.save(path)
            ...     loaded = jinit.Calibration.load(path, model)
            >>> loaded.report == result.report
            True
        """
        write(path, {name: getattr(self, name) for name in _PARTS}, saved(self._findings))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        apply_fn: Callable[..., Any] | None = None,
        *,
        like: Any = None,
    ) -> "Calibration":
        """Reads what ``save`` wrote.

        Args:
            path: The file.
            apply_fn: The function that was calibrated, or linen's module; only ``apply_fn`` of the
                result needs it. One that was calibrated without a function needs ``like`` alone.
            like: A module like the one that was calibrated: ``params`` is such a module then, and
                a dict by its paths otherwise.

        Returns:
            The calibration, its arrays on the default device.

        Raises:
            ValueError: The file is not one of a calibration, or of another format, or ``like`` is
                another module.
            TypeError: ``like`` is no module, or ``apply_fn`` is one that holds its variables.
        """
        parts, findings = read(path, applying(apply_fn), like)
        return cls(**parts, _findings=findings)

    def __repr__(self) -> str:
        return f"Calibration of {len(jax.tree.leaves(self.multipliers))} leaves\n{self.report}"

    def __reduce__(self) -> tuple[Any, ...]:
        return Calibration, (self.params, self.multipliers, self.scales, saved(self._findings))

    def __copy__(self) -> "Calibration[P]":
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Calibration[P]":
        params, multipliers, scales = copy.deepcopy(
            (self.params, self.multipliers, self.scales), memo
        )
        return Calibration(params, multipliers, scales, self._findings)
