"""Which sharding each leaf of an initialization is born with."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jinit._trees import is_box
from jinit.fastinit.program import InitProgram, LeafSpec, Slot
from jinit.modules.kinds import is_nnx_state
from jinit.tracing import is_tracing

__all__ = ["OutShardings", "Rules", "check_devices", "constrained", "laid_out", "shardings_of"]

OutShardings: TypeAlias = Any
"""A tree of shardings or PartitionSpecs, a prefix of one, a function of path and leaf, a Mesh."""

AnyMesh: TypeAlias = Mesh | AbstractMesh

Rules: TypeAlias = Sequence[tuple[str, Any]]
"""Pairs of a logical axis and the axis, or axes, of the mesh it is laid along; None for none."""


def shardings_of(
    program: InitProgram, out_shardings: OutShardings, rules: Rules | None
) -> list[Sharding | None]:
    """Returns the sharding of every leaf, None for one that lies where JAX puts it.

    Raises:
        ValueError: One does not fit its leaf, or lies on no device of this process.
        TypeError: Something is not a sharding.
    """
    mesh = out_shardings if isinstance(out_shardings, Mesh) else _active_mesh()
    asked = _asked(program, out_shardings, rules, mesh)
    return [_resolved(leaf, asked.get(n), mesh) for n, leaf in enumerate(program.leaves)]


def _active_mesh() -> AnyMesh | None:
    """Returns the mesh that is set, which within a program has no devices."""
    sharding = jax.sharding
    mesh = sharding.get_abstract_mesh() if is_tracing() else sharding.get_mesh()
    return None if mesh.empty else mesh


def _asked(
    program: InitProgram,
    out_shardings: OutShardings,
    rules: Rules | None,
    mesh: AnyMesh | None,
) -> Mapping[int, Any]:
    """Returns by the number of a leaf what was asked for."""
    if out_shardings is None and rules is None:
        return {}
    if out_shardings is None or isinstance(out_shardings, Mesh):
        return _by_metadata(program, mesh, rules)
    if callable(out_shardings) and not isinstance(out_shardings, Sharding | PartitionSpec):
        found = [
            out_shardings(leaf.path, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
            for leaf in program.leaves
        ]
        return dict(enumerate(found))
    return _by_prefix(program.abstract, out_shardings)


def _is_sharding(node: Any) -> bool:
    return node is None or isinstance(node, Sharding | PartitionSpec)


def _by_prefix(abstract: Any, prefix: Any) -> dict[int, Any]:
    """Spreads a prefix of a tree of shardings over the leaves below each of its own."""
    if is_nnx_state(prefix):
        prefix, abstract = _bare(prefix), _bare(abstract)
    asked: dict[int, Any] = {}

    try:
        spread = jax.tree.broadcast(prefix, abstract, is_leaf=_is_sharding)
    except ValueError as error:
        raise ValueError(
            f"out_shardings is not a prefix of the tree that the initialization returns: {error}"
        ) from None
    leaves = jax.tree.leaves(spread, is_leaf=_is_sharding)
    for slot, sharding in zip(jax.tree.leaves(abstract), leaves, strict=True):
        if not _is_sharding(sharding):
            raise TypeError(
                f"out_shardings must hold shardings and PartitionSpecs, got {sharding!r}"
            )
        if isinstance(slot, Slot):
            asked[slot] = sharding
    return asked


def _bare(state: Any) -> Any:
    """Returns a state as nested dicts of what its variables hold."""
    from flax import nnx

    return nnx.to_pure_dict(state) if is_nnx_state(state) else state


def _by_metadata(program: InitProgram, mesh: AnyMesh | None, rules: Rules | None) -> dict[int, Any]:
    """Reads the axes that Flax's boxes and NNX's variables name."""
    if mesh is None:
        raise ValueError(
            "rules lay logical axes along those of a mesh: pass out_shardings=mesh, or call it "
            "within jax.set_mesh(mesh)"
        )
    from flax.linen.spmd import logical_to_mesh

    specs = _named_axes(program.abstract)
    asked = _by_prefix(program.abstract, specs if rules is None else logical_to_mesh(specs, rules))
    # A number of a leaf, as its learning-rate multiplier, may be in a box like the leaf's.
    return {slot: spec for slot, spec in asked.items() if program.leaves[slot].shape}


def _named_axes(tree: Any) -> Any:
    """Returns the PartitionSpecs that boxes and variables name, in their places."""
    import flax.linen as nn
    from flax import nnx

    def specs(node: Any) -> Any:
        return nnx.get_partition_spec(node) if is_nnx_state(node) else nn.get_partition_spec(node)

    return jax.tree.map(specs, tree, is_leaf=lambda node: is_nnx_state(node) or is_box(node))


def constrained(array: jax.Array, sharding: Sharding | None) -> jax.Array:
    """Constrains what is made within a program to a sharding."""
    if sharding is None:
        return array
    if isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types:
        return jax.sharding.reshard(array, sharding)
    return jax.lax.with_sharding_constraint(array, sharding)


@contextlib.contextmanager
def laid_out(out_shardings: OutShardings, rules: Rules | None) -> Iterator[None]:
    """Makes the mesh and the rules active that an initialization is traced under."""
    with contextlib.ExitStack() as active:
        if isinstance(out_shardings, Mesh):
            active.enter_context(jax.set_mesh(out_shardings))
        if rules is not None:
            from flax.core import spmd

            active.enter_context(spmd.logical_axis_rules(rules))
        yield


def _resolved(leaf: LeafSpec, asked: Any, mesh: AnyMesh | None) -> Sharding | None:
    sharding = leaf.constraint if asked is None else asked
    if isinstance(sharding, PartitionSpec):
        if mesh is None:
            raise ValueError(
                f"{leaf.path} has the PartitionSpec {sharding}, but no mesh: call it within "
                "jax.set_mesh(mesh), or give NamedSharding(mesh, spec)"
            )
        sharding = _on_mesh(leaf, sharding, mesh)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        sharding = None if mesh is None else _on_mesh(leaf, sharding.spec, mesh)
    if sharding is None:
        return None if mesh is None else NamedSharding(mesh, PartitionSpec())
    if not isinstance(sharding, Sharding):
        raise TypeError(f"out_shardings gives {leaf.path} {sharding!r}, which is no sharding")
    _check_fits(leaf, sharding)
    return sharding


def _on_mesh(leaf: LeafSpec, spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> NamedSharding:
    try:
        return NamedSharding(mesh, spec)
    except ValueError as error:
        raise ValueError(f"{leaf.path} has the PartitionSpec {spec}: {error}") from None


def _check_fits(leaf: LeafSpec, sharding: Sharding) -> None:
    try:
        sharding.shard_shape(leaf.shape)
    except (ValueError, IndexError) as error:
        reason = f"it has {len(leaf.shape)} axes" if isinstance(error, IndexError) else error
        raise ValueError(
            f"{leaf.path} of shape {leaf.shape} does not fit its sharding {_shown(sharding)}: "
            f"{reason}"
        ) from None


def check_devices(program: InitProgram, shardings: Sequence[Sharding | None]) -> None:
    """Raises ValueError for a leaf that is to lie on devices of other processes alone."""
    for leaf, sharding in zip(program.leaves, shardings, strict=True):
        if sharding is not None and not sharding.addressable_devices:
            raise ValueError(
                f"{leaf.path} is to lie on {_shown(sharding)}, of which no device belongs to "
                f"process {jax.process_index()}: give a mesh with devices of every process that "
                "calls this"
            )


def _shown(sharding: Sharding) -> str:
    if isinstance(sharding, NamedSharding):
        sizes = ", ".join(f"{axis}: {size}" for axis, size in sharding.mesh.shape.items())
        return f"{sharding.spec} on the mesh ({sizes})"
    return repr(sharding)
