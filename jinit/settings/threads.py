"""The size of XLA's CPU thread pool."""

import os

from jinit._jax_private import backend_is_up, cpu_pool_size
from jinit._parsing import Parser, integer, optional
from jinit.settings.environment import set_variable
from jinit.settings.setting import Choice, Setting, Source

__all__ = ["MAX_THREADS", "THREADS"]

MAX_THREADS = 256
"""The most threads XLA gives its pool; far above, a process dies for lack of threads."""

# Of all knobs only these work, the first before the second; OMP_NUM_THREADS and
# xla_cpu_multi_thread_eigen change nothing.
_VARIABLES = ("PJRT_NPROC", "NPROC")


def _all_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MAX_THREADS)


def _parser(*, text: bool) -> Parser:
    parse = integer(0, MAX_THREADS, note=" (0: all cores)", text=text)

    def parse_threads(name: str, value: object) -> int:
        threads = parse(name, value)
        return _all_cores() if threads == 0 else threads

    return parse_threads


def _current() -> int:
    """The threads that run, or before there are any, those that will."""
    text = next(filter(None, map(os.environ.get, _VARIABLES)), "")
    try:
        return cpu_pool_size() or max(1, int(text))
    except ValueError:  # as XLA does with what is no number
        return _all_cores()


def _verify(choice: Choice) -> None:
    for name in () if backend_is_up() else _VARIABLES:
        text = os.environ.get(name, "")
        if text.strip().isdecimal():  # what is no number, XLA takes for nothing
            _verify_count(name, text)


_verify_count = integer(0, 1024, text=True)

THREADS = Setting(
    name="threads",
    variables=(Source("JINIT_THREADS", _parser(text=True)),),
    arguments=(Source("threads", optional(_parser(text=False))),),
    apply=lambda threads: set_variable(_VARIABLES[0], str(threads)),
    current=_current,
    native=_VARIABLES[:1],
    native_values=lambda threads: (str(threads),),
    needs_fresh_backend=True,
    verify=_verify,
    caveat="XLA keeps a thread for each CPU device, and PJRT_NPROC in the environment wins",
)
