"""The start of a process: every setting decided before anything is changed, applied, recorded."""

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from jinit.settings.environment import misspelt
from jinit.settings.memory import MEMORY
from jinit.settings.precision import PRECISION
from jinit.settings.processes import START_METHOD
from jinit.settings.report import Outcome, StartupReport, versions
from jinit.settings.seeds import SEED
from jinit.settings.setting import Choice, Setting, Status
from jinit.settings.threads import THREADS

if TYPE_CHECKING:
    import jax

__all__ = ["StartupReport", "startup", "startup_report"]

SETTINGS: dict[str, Setting] = {
    setting.name: setting for setting in (START_METHOD, THREADS, MEMORY, PRECISION, SEED)
}
"""Every setting by name, in the order in which they are applied."""

_LAST: dict[str, Outcome] = {}


def startup(
    seed: int | None = None,
    threads: int | None = None,
    *,
    forkserver_instead_of_fork: bool = True,
    allow_tf32: bool = True,
    matmul_precision: str | None = None,
    memory: str | None = None,
) -> "jax.Array":
    """Starts a JAX process: its seeds, threads, processes, matmul precision and GPU memory.

    Everything is validated before anything is changed. Call it before the first JAX operation:
    once a backend is up, ``threads`` and ``memory`` come too late, which is warned of and
    reported. A second call with the same arguments starts the same streams again and changes
    nothing else.

    Each argument has an environment variable that overrides it: ``JINIT_SEED``,
    ``JINIT_THREADS``, ``JINIT_START_METHOD`` (``fork``, ``forkserver``, ``spawn``),
    ``JINIT_ALLOW_TF32`` (``0``, ``1``), ``JINIT_MATMUL_PRECISION``, ``JINIT_MEMORY``. A variable
    of JAX's own that the user has set (``XLA_PYTHON_CLIENT_PREALLOCATE``,
    ``XLA_PYTHON_CLIENT_ALLOCATOR``, ``PJRT_NPROC``, ``JAX_DEFAULT_MATMUL_PRECISION``) is never
    overwritten: it wins over both.

    Args:
        seed: An integer in [0, 2**32 - 1], beyond which ``jax.random.key`` repeats keys. It seeds
            Python's ``random``, NumPy's global generator and the returned key. None draws one;
            the report tells it.
        threads: The size of XLA's CPU thread pool, at most 256; 0 is one thread for each core
            that the process may use, None leaves it alone. XLA keeps at least one for each CPU
            device. On some versions of jaxlib the last bits of sums depend on it.
        forkserver_instead_of_fork: Whether ``multiprocessing`` starts children from a clean
            server; a forked child of a process that runs JAX may hang. False forks where the
            platform can.
        allow_tf32: Whether float32 products on a GPU may use TF32: True is the matmul precision
            ``default``, False is ``highest``.
        matmul_precision: Any value of ``jax_default_matmul_precision``; wins over
            ``allow_tf32``.
        memory: How a GPU's memory is taken: ``preallocate`` (a share at the start), ``grow`` (on
            demand), ``cuda_async`` (CUDA's growing pool) or ``vmm`` (CUDA virtual memory). None
            leaves JAX's allocator alone.

    Returns:
        The root key, ``jax.random.key(seed)``: a typed scalar, the same on each process that is
        given the same seed.

    Raises:
        TypeError: An argument is not an integer where one is needed.
        ValueError: An argument or ``JINIT_*`` variable is not legal; the text names the legal
            values.

    Warns:
        UserWarning: A ``JINIT_*`` variable is not known, a setting came too late, or another
            value than the one applied is in force.

    Example:
        >>> import jax, jinit
        >>> key = jinit.startup(seed=42)
        >>> bool(key == jax.random.key(42))
        True

    Source:
        ``minnt.startup``, which also sets expandable segments unless told not to; their
        counterparts here are ``cuda_async`` and ``vmm``, and the default leaves the allocator
        alone.
    """
    arguments = {
        "seed": seed,
        "threads": threads,
        "forkserver_instead_of_fork": forkserver_instead_of_fork,
        "allow_tf32": allow_tf32,
        "matmul_precision": matmul_precision,
        "memory": memory,
    }
    choices = {name: setting.choose(arguments) for name, setting in SETTINGS.items()}
    import jax

    choices = {name: _yield(SETTINGS[name], choice) for name, choice in choices.items()}

    statuses: dict[str, Status] = {
        name: setting.status(choices[name].value) for name, setting in SETTINGS.items()
    }
    _warn(_unknown_variables())
    _warn(_too_late(choices, statuses))
    for name, setting in SETTINGS.items():
        if statuses[name] == "applied":
            setting.apply(choices[name].value)
    key = jax.random.key(choices["seed"].value)
    _LAST.update({name: _outcome(name, choices[name], statuses[name]) for name in SETTINGS})
    _warn(_shortfalls())
    return key


def startup_report() -> StartupReport:
    """Reports what the last ``startup`` decided, and on which versions and devices.

    Returns:
        A ``StartupReport``: ``print`` it for a table, ``to_dict()`` or ``to_json()`` give plain
        data.

    Raises:
        RuntimeError: There was no ``startup`` yet.

    Example:
        >>> import jinit
        >>> key = jinit.startup(seed=42)
        >>> jinit.startup_report().settings["seed"].status
        'applied'
    """
    if not _LAST:
        raise RuntimeError("There is nothing to report yet: call jinit.startup() first.")
    import jax

    return StartupReport(
        settings=dict(_LAST),
        versions=versions(),
        backend=jax.default_backend(),
        devices=dict(Counter(device.device_kind for device in jax.devices())),
        process_count=jax.process_count(),
    )


def _yield(setting: Setting, choice: Choice) -> Choice:
    """Lets a default give way to what the user's own code had set before the first startup."""
    first = choice.origin == "default" and setting.name not in _LAST
    if setting.yields and first and setting.current and setting.current() is not None:
        return replace(choice, value=None)
    return choice


def _outcome(name: str, choice: Choice, status: Status) -> Outcome:
    origin, source = choice.origin, choice.source
    native = SETTINGS[name].user_variables()
    if native and status in ("unchanged", "overridden by the environment"):
        origin, source = "environment", ", ".join(native)
    value = SETTINGS[name].effective(choice.value)
    return Outcome(value, choice.value, origin, source, status)


def _warn(sentences: list[str]) -> None:
    if sentences:
        warnings.warn(" ".join(sentences), stacklevel=3)  # the line that called startup()


def _unknown_variables() -> list[str]:
    known = [source.name for setting in SETTINGS.values() for source in setting.variables]
    return [
        f"{name} is not a variable of jinit and changes nothing; the nearest one is {nearest}."
        for name, nearest in misspelt(known).items()
    ]


def _too_late(choices: Mapping[str, Choice], statuses: Mapping[str, Status]) -> list[str]:
    late = [choices[name] for name, status in statuses.items() if status == "too late"]
    asked = ", ".join(f"{choice.source}={choice.value!r}" for choice in late)
    remedy = "call jinit.startup() before the first JAX operation."
    return [f"JAX's backend is already up, too late for {asked}: {remedy}"] if late else []


def _shortfalls() -> list[str]:
    return [
        f"{name} was set to {found.requested!r}, but is {found.value!r}: {SETTINGS[name].caveat}."
        for name, found in _LAST.items()
        if found.status == "applied" and found.value != found.requested
    ]
