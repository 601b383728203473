"""What the optimized program of a compiler says of itself."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["Program", "build", "count_kernels", "placed"]

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"= (?:\([^=]*?\)|\S+) ([a-z][a-z\-]*)\(")
_LAUNCHED_IN = re.compile(r"\b(?:body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CALLED = re.compile(r" call\(.*to_apply=%?([\w.\-]+)")
_COLLECTIVE = re.compile(
    r" (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_NO_KERNELS = frozenset(
    """
    parameter constant tuple get-tuple-element bitcast after-all while conditional call
    all-reduce-done all-gather-done collective-permute-done copy-done async-done partition-id
    """.split()
)


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        temporary: The bytes that it needs beside its arguments and results.
        converts: The conversions between dtypes that are left, those inside fusions too.
        fusions: The fused loops.
        kernels: Whatever is launched: fusions, library calls, copies, collectives.
        collectives: What devices say to one another.
        seconds: How long the compiler took.
    """

    temporary: int
    converts: int
    fusions: int
    kernels: int
    collectives: int
    seconds: float

    @property
    def mebibytes(self) -> str:
        """The temporary memory, to be shown."""
        return f"{self.temporary / 2**20:.1f}"


def build(fn: Callable[..., Any], args: Sequence[Any], donate: Sequence[int] = ()) -> Program:
    """Compiles a function for the devices that its arguments, shapes with shardings, are on."""
    return read(jax.jit(fn, donate_argnums=tuple(donate)).lower(*args))


def read(lowered: Any) -> Program:
    """Compiles what was lowered."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    return Program(
        compiled.memory_analysis().temp_size_in_bytes,
        len(re.findall(r" convert\(", text)),
        len(re.findall(r" fusion\(", text)),
        count_kernels(text),
        len(_COLLECTIVE.findall(text)),
        seconds,
    )


def count_kernels(text: str) -> int:
    """Counts the instructions of an optimized program that are launched, those of a loop once.

    Example:
        >>> print(count_kernels('''ENTRY %main (x: f32[2]) -> f32[2] {
        ...   %x = f32[2]{0} parameter(0)
        ...   %y = f32[2]{0} fusion(%x), kind=kLoop, calls=%fused
        ...   ROOT %z = f32[2]{0} copy(%y)
        ... }'''))
        2
    """
    bodies = _computations(text)
    entry = next(name for name, lines in bodies.items() if lines and lines[0].startswith("ENTRY"))
    found, waiting = 0, [entry]
    seen = {entry}
    while waiting:
        for line in bodies[waiting.pop()][1:]:
            operation = _OPERATION.search(line)
            found += operation is not None and operation[1] not in _NO_KERNELS
            inner = {*_LAUNCHED_IN.findall(line), *_CALLED.findall(line)}
            for names in _BRANCHES.findall(line):
                inner |= {name.strip().lstrip("%") for name in names.split(",")}
            waiting += inner - seen
            seen |= inner
    return found


def _computations(text: str) -> dict[str, list[str]]:
    """Divides a program's text into its computations: the name to the lines, the head first."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            lines = bodies.setdefault(head[1], [])
        lines.append(line)
    return bodies


def placed(tree: Any, mesh: Mesh, spec: Callable[[Any], PartitionSpec] | None = None) -> Any:
    """Returns the shapes of a tree's arrays, on a mesh.

    Args:
        tree: Arrays, or shapes and dtypes.
        mesh: The mesh.
        spec: How a leaf is divided; None replicates all.
    """

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec() if spec is None else spec(leaf))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree)
