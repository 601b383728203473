"""``fast_init``: the initialization of a model, compiled as the few programs that it repeats."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jinit.fastinit.making import make_leaves, ways_of
from jinit.fastinit.program import InitProgram, trace_init
from jinit.fastinit.shardings import OutShardings, Rules, laid_out, shardings_of
from jinit.modules.nnx_calls import Apart, on_objects
from jinit.tracing import is_tracing, partition, trace_context

__all__ = ["FastInit", "fast_init"]


def fast_init(init_fn, *, out_shardings=None, rules=None, verbose=None):
    return FastInit(init_fn, out_shardings, rules, verbose)


class FastInit:
    def __init__(self, init_fn, out_shardings, rules, verbose):
        functools.update_wrapper(self, init_fn)
        self.init_fn, self.out_shardings, self.rules, self.verbose = init_fn, out_shardings, rules, verbose
        self._programs = {}

    def __call__(self, *args, **kwargs):
        if is_tracing():
            return self.init_fn(*args, **kwargs)
        return on_objects(self._make, args, kwargs, makes=True)

    def _make(self, apart: Apart):
        program, arrays = self._program(apart)
        shardings = shardings_of(program, self.out_shardings, self.rules)
        ways = ways_of(program, arrays, shardings)
        made = dict(make_leaves(program, ways))
        return program.static.fill([made[n] for n in range(len(made))])

    def _program(self, apart: Apart):
        static, arrays = partition(apart)
        with laid_out(self.out_shardings, self.rules):
            avals = tuple(jax.typeof(a) for a in arrays)
            key = static, avals, trace_context()
            if not static.hashable:
                return trace_init(self.init_fn, apart), arrays
            if key not in self._programs:
                self._programs[key] = trace_init(self.init_fn, apart)
        return self._programs[key], arrays
