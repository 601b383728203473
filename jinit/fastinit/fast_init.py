"""``fast_init``: a model's initialization, compiled as the few programs that it repeats."""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Sharding

from jinit._kinds import kind_of
from jinit._progress import progress
from jinit.fastinit.counting import Count, count_leaves
from jinit.fastinit.drawing.placing import finished
from jinit.fastinit.making import lower_leaves, make_leaves
from jinit.fastinit.memory import explained
from jinit.fastinit.program import InitProgram, trace_init
from jinit.fastinit.report import InitReport, report_on
from jinit.fastinit.shardings import (
    OutShardings,
    Rules,
    check_devices,
    constrained,
    laid_out,
    shardings_of,
)
from jinit.fastinit.ways import ways_of
from jinit.modules.kinds import form_of, has_variables, is_framework_type, lacks_variables
from jinit.modules.nnx_calls import Apart, on_objects, taken_apart
from jinit.tracing import ARRAYS_OR_SHAPES, is_tracing, partition, trace_context
from jinit.typing import PyTree

__all__ = ["FastInit", "count", "fast_init"]

_LONG = 10**9  # numbers, from which on a bar is shown


def fast_init(
    init_fn: Callable[..., PyTree],
    *,
    out_shardings: OutShardings = None,
    rules: Rules | None = None,
    verbose: bool | None = None,
) -> "FastInit":
    """Makes an initialization fast, and its arrays born with their shardings.

    The function is traced once, and never run: its program is read backwards from each array that
    it returns. Arrays that are drawn number by number (normal, truncated, uniform, ...) are drawn
    by a program for each distribution, whatever their shapes and scales; constants are filled;
    what else there is (orthogonal matrices, what data decide) has a program for each kind. A
    transformer of 24 layers needs two such programs where ``jax.jit(init_fn)`` compiles hundreds.

    The values are those of ``jax.jit(init_fn)`` on the same backend, bit for bit where XLA rounds
    them in the same way: at most 1 unit in the last place away where numbers are drawn, and 1e-6
    relative where they are decomposed or depend on data. They are the same on every mesh. Keys of
    another generator than ``threefry2x32``, or ``jax_threefry_partitionable=False``, leave only the
    ordinary path, one program for everything; the report says so.

    Args:
        init_fn: What makes the variables, of any framework: ``model.init`` of linen, ``f.init`` of
            Haiku, a function that constructs and returns NNX or Equinox modules, or any function of
            arrays. Within ``keras_defaults`` it draws as Keras does.
        out_shardings: Where the arrays are born: a tree of shardings or PartitionSpecs, or a prefix
            of one; a function of path and ``jax.ShapeDtypeStruct`` that returns one; or a mesh,
            along whose axes the metadata lay them of ``nn.Partitioned``,
            ``nn.LogicallyPartitioned`` and NNX's variables. PartitionSpecs are on the mesh of
            ``jax.set_mesh``. None: as the program itself asks for; else on the default device, or
            on all of the mesh that is set.
        rules: Which axis of the mesh a logical axis is laid along, as Flax's
            ``logical_axis_rules``: pairs of names, None for no axis.
        verbose: Whether to show a bar on standard error and to print the report. None shows the bar
            for more than a billion numbers where standard error is a terminal.

    Returns:
        A function of ``init_fn``'s arguments that returns what it returns; ``.report`` says what
        the last call did, and ``.count(*args)`` how large it will be. Arguments that are not needed
        for their values may be ``jax.ShapeDtypeStruct``. A second call, with another key, traces
        and compiles nothing. Within ``jit`` and other transformations it is ``init_fn`` itself.

    Raises:
        TypeError: ``init_fn`` is not a function; when it is called, if ``out_shardings`` holds what
            is no sharding.
        ValueError: When it is called: a sharding does not fit its array, or lies on no device of
            this process; nothing is returned; an abstract argument is needed for its values.
        MemoryError: When it is called, if a device has not enough memory; the text says what for.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp, jinit
        >>> init = jinit.fast_init(nn.Dense(3).init)
        >>> variables = init(jax.random.key(0), jnp.ones((1, 2)))
        >>> jax.tree.map(jnp.shape, variables)
        {'params': {'bias': (3,), 'kernel': (2, 3)}}
        >>> [(row.way, row.what, row.leaves) for row in init.report.rows]
        [('filled', '0', ('params/bias',)), ('drawn', 'truncated normal', ('params/kernel',))]

    Source:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: a number of a
        counter-based generator can be drawn by itself.
    """
    return FastInit(init_fn, out_shardings, rules, verbose)


def count(
    init_fn: Callable[..., PyTree],
    *args: PyTree,
    out_shardings: OutShardings = None,
    rules: Rules | None = None,
    **kwargs: PyTree,
) -> Count:
    """Counts what an initialization returns, before anything is allocated.

    Args:
        init_fn: What makes the variables: ``model.init``, a function that constructs a module, or
            what ``fast_init`` returned, which has its own shardings.
        args: Its arguments; any of them may be ``jax.ShapeDtypeStruct``.
        out_shardings: Where the arrays would lie: a tree of shardings or PartitionSpecs, or a
            prefix of one; a function of path and leaf that returns one; or a mesh, for Flax's
            metadata.
        rules: Which axis of the mesh a logical axis is laid along, in pairs of names.
        kwargs: Its keyword arguments.

    Returns:
        The numbers of parameters and of other state, and their bytes: in all, by top-level module,
        by dtype, and by device under the shardings.

    Raises:
        TypeError: ``init_fn`` is not a function.
        ValueError: A sharding does not fit its array, or nothing is returned.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp, jinit
        >>> print(jinit.count(nn.Dense(3).init, jax.random.key(0), jnp.ones((1, 2))))
          module   parameters   state   bytes
         ─────────────────────────────────────
          bias              3       0    12 B
          kernel            6       0    24 B
          total             9       0    36 B
        by dtype: float32 36 B
    """
    if isinstance(init_fn, FastInit):
        return init_fn.count(*args, **kwargs)
    return fast_init(init_fn, out_shardings=out_shardings, rules=rules).count(*args, **kwargs)


class FastInit:
    """An initialization that is compiled as the few programs it repeats; see ``fast_init``.

    Attributes:
        report: What the last call did; None before the first, and after one within ``jit``.
    """

    def __init__(
        self,
        init_fn: Callable[..., PyTree],
        out_shardings: OutShardings = None,
        rules: Rules | None = None,
        verbose: bool | None = None,
    ) -> None:
        _check_function(init_fn)
        functools.update_wrapper(self, init_fn)
        self._init_fn, self._out_shardings, self._rules = init_fn, out_shardings, rules
        self._verbose = verbose
        self._programs: dict[Any, InitProgram] = {}
        self.report: InitReport | None = None

    def __repr__(self) -> str:
        return f"fast_init({getattr(self._init_fn, '__qualname__', self._init_fn)})"

    def __call__(self, *args: PyTree, **kwargs: PyTree) -> PyTree:
        """Returns what the function returns of these arguments."""
        if is_tracing():
            self.report = None
            if self._out_shardings is None and self._rules is None:
                return self._init_fn(*args, **kwargs)
            return on_objects(self._trace, args, kwargs, makes=True)
        return on_objects(self._make, args, kwargs, makes=True)

    def count(self, *args: PyTree, **kwargs: PyTree) -> Count:
        """Counts what a call with these arguments would return; see ``jinit.count``."""
        with taken_apart(args, kwargs, makes=True) as apart:
            program, shardings, _, _ = self._prepared(apart)
            return count_leaves(program, shardings)

    def lower(self, *args: PyTree, **kwargs: PyTree) -> list[jax.stages.Lowered]:
        """Lowers the programs that a call with these arguments would run, each once.

        Their devices are those of ``out_shardings``, which need not be there: those of a topology
        do, so that the programs of a large machine can be compiled and looked at on a small one.
        What is copied and filled without a program is not among them.
        """
        with taken_apart(args, kwargs, makes=True) as apart:
            program, shardings, arrays, _ = self._prepared(apart)
            return lower_leaves(program, ways_of(program, arrays, shardings), shardings)

    def _prepared(
        self, apart: Apart
    ) -> tuple[InitProgram, Sequence[Sharding | None], Sequence[Any], float]:
        """Returns the program, its leaves' shardings, its arrays and how long tracing took."""
        start = time.perf_counter()
        with laid_out(self._out_shardings, self._rules):
            program, arrays = self._program(apart)
            seconds = time.perf_counter() - start
            if not program.leaves:
                raise ValueError(
                    f"{self!r} returned no arrays, but {kind_of(program.abstract)}: pass "
                    "the function that makes the variables, such as model.init"
                )
            return program, shardings_of(program, self._out_shardings, self._rules), arrays, seconds

    def _program(self, apart: Apart) -> tuple[InitProgram, list[Any]]:
        static, arrays = partition(apart, ARRAYS_OR_SHAPES)
        key = static, tuple(map(_type_of, arrays)), trace_context()
        if is_tracing() or not static.hashable:  # what is traced may hold the tracers around it
            return trace_init(self._init_fn, apart), arrays
        if key not in self._programs:
            self._programs[key] = trace_init(self._init_fn, apart)
        return self._programs[key], arrays

    def _make(self, apart: Apart) -> PyTree:
        program, shardings, arrays, trace_seconds = self._prepared(apart)
        check_devices(program, shardings)
        start = time.perf_counter()
        ways = ways_of(program, arrays, shardings)
        made: dict[int, jax.Array] = {}
        with explained(program, shardings, made), progress(self._shows(program), "arrays") as bar:
            bar.begin(f"making {self!r}", len(program.leaves))
            for number, array in make_leaves(program, ways, shardings):
                weak_type = program.leaves[number].weak_type
                made[number] = finished(array, shardings[number], weak_type)
                bar.advance(array)
            jax.block_until_ready(list(made.values()))
        self.report = report_on(
            program, ways, shardings, trace_seconds, time.perf_counter() - start
        )
        if self._verbose:
            print(self.report)
        return program.static.fill([made[number] for number in range(len(made))])

    def _trace(self, apart: Apart) -> PyTree:
        """Runs the whole program, within another."""
        program, shardings, arrays, _ = self._prepared(apart)
        results = program.run([array for array, u in zip(arrays, program.used, strict=True) if u])
        return program.static.fill(list(map(constrained, results, shardings)))

    def _shows(self, program: InitProgram) -> bool:
        """Returns whether to show a bar."""
        if self._verbose is not None:
            return self._verbose
        return program.size > _LONG and sys.stderr.isatty()


def _type_of(array: Any) -> Any:
    """Returns what a program depends on of an array."""
    if isinstance(array, jax.ShapeDtypeStruct):
        return array.shape, array.dtype, array.weak_type
    return jax.typeof(array)


def _check_function(init_fn: Any) -> None:
    """Raises TypeError for a model in the place of what makes one."""
    if is_framework_type(init_fn, "flax.linen", "Module") or lacks_variables(init_fn):
        raise TypeError(
            f"fast_init takes the function that makes the variables, got {kind_of(init_fn)}: pass "
            "its init, as in jinit.fast_init(model.init)(key, x)"
        )
    if has_variables(init_fn):
        of_equinox = form_of(init_fn) == "equinox"
        example = "key: Net(key=key))(key)" if of_equinox else "rngs: Net(rngs=rngs))(nnx.Rngs(0))"
        raise TypeError(
            f"fast_init takes the function that makes the variables, got {kind_of(init_fn)}, which "
            f"has its own: pass what constructs it, as in jinit.fast_init(lambda {example}"
        )
    if not callable(init_fn):
        raise TypeError(
            f"fast_init takes the function that makes the variables, got {kind_of(init_fn)}"
        )
