"""The start of a process: every setting decided before anything is changed, applied, recorded."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinit._jax_private import backend_is_up
from jinit._known import known_arguments
from jinit.settings.environment import inherited, misspelt
from jinit.settings.flags.late import compiler_options
from jinit.settings.flags.plan import AskedFlag, FlagOutcome, FlagPlan, plan_flags
from jinit.settings.flags.text import format_flags, full_text, same_value
from jinit.settings.jax_options import DEVICE_FLAG
from jinit.settings.precision import PRECISION, check_platform
from jinit.settings.report import Outcome, StartupReport, make_report
from jinit.settings.seeds import common_seed
from jinit.settings.setting import Choice, Setting, Status
from jinit.settings.table import SETTINGS, STRICT
from jinit.settings.undo import all_or_nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jax

    from jinit.typing import MatmulPrecision, MemoryPolicy, PRNGImpl

__all__ = ["StartupReport", "startup", "startup_report"]


@dataclass
class _Record:
    """What the last startup did; the process has one."""

    settings: dict[str, Outcome] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, FlagOutcome] = field(default_factory=dict)
    compiler_options: dict[str, Any] = field(default_factory=dict)


_LAST = _Record()


@dataclass(frozen=True)
class _Plan:
    """What a startup will do."""

    choices: dict[str, Choice]
    statuses: dict[str, Status]
    flags: FlagPlan

    @cached_property
    def compiler_options(self) -> dict[str, Any]:
        """The flags that are too late for the process, for single programs."""
        return compiler_options(self.flags.late)

    def apply(self, *, before_backend: bool) -> None:
        """Applies what must come before the backend starts, or the rest."""
        for name, setting in SETTINGS.items():
            if setting.needs_fresh_backend != before_backend:
                continue
            if self.statuses[name] == "applied":
                setting.apply(self.choices[name].value)
            setting.confirm()

    def record(self, *, before_backend: bool) -> None:
        """Notes what is active now, and who asked for it."""
        done = [n for n, each in SETTINGS.items() if each.needs_fresh_backend == before_backend]
        _LAST.settings |= {name: _outcome(name, self) for name in done}
        _LAST.asked |= {name: self.choices[name].asked for name in done}
        _LAST.flags = {name: _as_before(name, each) for name, each in self.flags.outcomes.items()}
        _LAST.compiler_options = self.compiler_options


@known_arguments
def startup(
    seed: int | None = None,
    threads: int | None = None,
    *,
    forkserver_instead_of_fork: bool = True,
    allow_tf32: bool = True,
    matmul_precision: "MatmulPrecision | None" = None,
    memory: "MemoryPolicy | None" = None,
    expandable_segments: bool | None = None,
    memory_fraction: float | None = None,
    xla_flags: "Mapping[str, bool | int | float | str] | Sequence[str] | str | None" = None,
    deterministic: bool = False,
    prng_impl: "PRNGImpl | None" = None,
    enable_x64: bool | None = None,
    debug_nans: bool | None = None,
    debug_key_reuse: bool | None = None,
    platform: str | None = None,
    cpu_devices: int | None = None,
    compilation_cache: bool | str | os.PathLike[str] | None = None,
    distributed: bool | Mapping[str, object] = False,
    strict: bool = False,
) -> "jax.Array":
    """Starts a JAX process: seeds, threads, precision, memory, XLA flags, devices, processes.

    Everything is validated before anything is changed, and if the backend does not start,
    everything is changed back. Call it before the first JAX operation: once a backend is up, what
    must come before it is too late, which is warned of and reported, and the rest is applied. A
    second call with the same arguments starts the same streams again (without a seed, new ones)
    and changes nothing else; with others it says what differs.

    Each argument has an environment variable that overrides it: its name in capitals behind
    ``JINIT_``, such as ``JINIT_MATMUL_PRECISION``; switches are ``0`` or ``1``. Only that of
    ``forkserver_instead_of_fork`` is ``JINIT_START_METHOD`` (``fork``, ``forkserver``,
    ``spawn``). A variable of JAX's own that the user has set (``XLA_FLAGS``, ``PJRT_NPROC``,
    ``JAX_PLATFORMS``, ``XLA_PYTHON_CLIENT_ALLOCATOR`` and so on) is never overwritten: it wins
    over both. None leaves a setting alone.

    Args:
        seed: An integer in [0, 2**32 - 1], beyond which ``jax.random.key`` repeats keys. It seeds
            Python's ``random``, NumPy's global generator, PyTorch and TensorFlow where they are
            imported already, and the returned key. In a run of several processes the hidden
            generators of each get a stream of its own, and the key is the same on all. None draws
            one, process 0's for all; the report tells it.
        threads: The size of XLA's CPU thread pool, at most 256; None and 0 are one thread for
            each core that the process may use (None leaves ``PJRT_NPROC`` alone). XLA keeps at
            least one for each CPU device. On some versions of jaxlib the last bits of sums depend
            on it.
        forkserver_instead_of_fork: Whether ``multiprocessing`` starts children from a clean
            server; a forked child of a process that runs JAX may hang. False forks where the
            platform can.
        allow_tf32: Whether float32 products on a GPU may use TF32: True is the matmul precision
            ``default``, False is ``highest``.
        matmul_precision: Any value of ``jax_default_matmul_precision``; wins over
            ``allow_tf32``. A preset that the backend cannot run is refused.
        memory: How a GPU's memory is taken: ``preallocate`` (a share at the start), ``grow`` (on
            demand), ``cuda_async`` (CUDA's growing pool) or ``vmm`` (CUDA virtual memory). JAX
            reads it, and ``memory_fraction``, once, when it first looks for backends: where none
            starts, or they are cleared, it is too late for another, as the report then says.
        expandable_segments: PyTorch's name for the same question: True is ``cuda_async``, False
            is ``preallocate``; beside ``memory`` it must agree with it.
        memory_fraction: The share of a GPU's memory that JAX may take, in (0, 1].
        xla_flags: Flags such as ``{"xla_gpu_autotune_level": 0}`` or
            ``["--xla_gpu_autotune_level=0"]``, merged into ``XLA_FLAGS``; those of a TPU go to
            ``LIBTPU_INIT_ARGS``. A child process tries them, and those already in ``XLA_FLAGS``,
            the first time they are seen (about a second); what this jaxlib does not take, which
            would end the process, is left out with a warning.
        deterministic: Whether a GPU gives the same bits on every run
            (``xla_gpu_deterministic_ops``), at a cost in speed.
        prng_impl: The generator of keys: ``threefry2x32``, ``threefry4x32``, ``rbg``,
            ``unsafe_rbg``, ``philox2x32`` or ``philox4x32``.
        enable_x64: Whether 64-bit types are kept.
        debug_nans: Whether the first NaN raises.
        debug_key_reuse: Whether a key that is used twice raises.
        platform: ``cpu``, ``gpu`` (whichever is installed), ``cuda``, ``rocm`` or ``tpu``, or
            several in the order of preference, joined by commas, of which CUDA is passed over
            where there is no NVIDIA GPU.
        cpu_devices: The number of devices that the CPU is divided into, at most 1024.
        compilation_cache: Whether compiled programs are kept for the next run: True keeps them in
            a folder of the user's own that others cannot write to, or name a folder. Programs
            that compile in under a second are kept too.
        distributed: Whether to connect to the other processes of the run: True on a cluster that
            JAX knows, or the arguments of ``jax.distributed.initialize``. As a variable, JSON.
            JAX ends process 0 where the others do not come within ``initialization_timeout``.
        strict: Whether a setting that is too late, a flag that is not taken and a misspelt
            variable are errors, raised before anything is changed, and not warnings.

    Returns:
        The root key, ``jax.random.key(seed)``: a typed scalar, the same on each process of the
        run. ``jinit.fold_in_process(key)`` makes one for each process.

    Raises:
        TypeError: An argument is not an integer where one is needed.
        ValueError: An argument or ``JINIT_*`` variable is not legal, where the text names the
            legal values; two contradict each other; the processes of a run were given different
            seeds; or ``strict``, and a flag or variable is not known.
        PermissionError: ``compilation_cache`` is True, and others can write to its folder.
        TimeoutError: The coordinator of ``distributed`` does not answer.
        RuntimeError: The backend does not start, or has no memory left to try a preset; or
            ``strict``, and a setting is too late.

    Warns:
        UserWarning: A ``JINIT_*`` variable or flag is not known, a setting came too late or has
            a price, another value than the one applied is active, or the last call asked for
            something else.

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
    arguments = dict(locals())  # every argument, and nothing else yet
    choices = {name: setting.choose(arguments) for name, setting in SETTINGS.items()}
    plan = _make_plan(choices)
    _warn(_objections(plan, strict=STRICT.choose(arguments).value))
    with all_or_nothing():
        plan.flags.apply()
        plan.apply(before_backend=True)
        _start_backend()
    plan.record(before_backend=True)
    plan.choices["seed"] = replace(choices["seed"], value=common_seed(choices["seed"]))
    with all_or_nothing():
        plan.apply(before_backend=False)
    plan.record(before_backend=False)
    _warn(_shortfalls())
    import jax

    return jax.random.key(plan.choices["seed"].value)


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
    if not _LAST.settings:
        raise RuntimeError("There is nothing to report yet: call jinit.startup() first.")
    return make_report(_LAST.settings, _LAST.flags, _LAST.compiler_options)


def _make_plan(choices: dict[str, Choice]) -> _Plan:
    """Decides what becomes of every choice; refuses what the backend could not start with."""
    choices = {name: _yield(SETTINGS[name], choice) for name, choice in choices.items()}
    for name, choice in choices.items():
        SETTINGS[name].verify(choice)
    flags = plan_flags(_asked_flags(choices))
    plan = _Plan(choices, {n: _status(n, choice, flags) for n, choice in choices.items()}, flags)
    applied = plan.statuses["matmul_precision"] == "applied"
    precision = choices["matmul_precision"].value if applied else PRECISION.effective(None)
    check_platform(precision, choices["platform"].value)
    return plan


def _yield(setting: Setting, choice: Choice) -> Choice:
    """Lets a default give way to what the user's own code has set."""
    if not (setting.yields and setting.current) or choice.origin != "default":
        return choice
    before = _LAST.settings.get(setting.name)
    current = setting.current()
    ours = current is None or (before is not None and before.value == current)
    return choice if ours else replace(choice, value=None)


def _asked_flags(choices: Mapping[str, Choice]) -> dict[str, AskedFlag]:
    """The flags that the settings are made of.

    Raises:
        ValueError: Two settings ask for one flag with different values.
    """
    asked: dict[str, AskedFlag] = {}
    for name, choice in choices.items():
        for flag, value in SETTINGS[name].flags_of(choice.value).items():
            first = asked.setdefault(flag, AskedFlag(value, choice.origin, choice.source))
            _check_agreement(flag, first, AskedFlag(value, choice.origin, choice.source))
    devices = choices["cpu_devices"]
    if devices.asked and DEVICE_FLAG in asked:
        count = AskedFlag(str(devices.value), devices.origin, devices.source)
        _check_agreement(DEVICE_FLAG, asked[DEVICE_FLAG], count)
    return asked


def _check_agreement(flag: str, first: AskedFlag, second: AskedFlag) -> None:
    if first.origin == second.origin and not same_value(first.value, second.value):
        raise ValueError(
            f"{first.source} asks for --{flag}={full_text(first.value)}, {second.source} for "
            f"{full_text(second.value)}: they contradict each other, give only one."
        )


def _status(name: str, choice: Choice, flags: FlagPlan) -> Status:
    setting = SETTINGS[name]
    if setting.flags:
        return flags.status(setting.flags_of(choice.value))
    return setting.status(choice.value)


def _start_backend() -> None:
    import jax

    try:
        jax.devices()
    except Exception as error:
        raise RuntimeError(
            f"JAX's backend does not start, and every setting was changed back: {error}"
        ) from error


def _outcome(name: str, plan: _Plan) -> Outcome:
    """Says what became of a setting, and names who is behind the active value.

    That is whoever this call took it from, but for three cases, the first that holds: a variable
    of JAX's own that the user set, such as PJRT_NPROC; such a variable that a parent process left;
    and, where this call asked for nothing, whoever an earlier one took the same value from.
    """
    choice, status = plan.choices[name], plan.statuses[name]
    origin, source, value = choice.origin, choice.source, _value(name, plan)
    setting, before = SETTINGS[name], _LAST.settings.get(name)
    native = setting.user_variables()
    from_users = status == "unchanged" and setting.is_from_environment(value)
    texts = {variable: os.environ.get(variable, "") for variable in setting.native}
    from_parent = [v for v, text in texts.items() if inherited(v) and setting.spelling(v, text)]
    if native and (from_users or status == "overridden by the environment"):
        origin, source = "environment", ", ".join(native)
    elif from_parent and not before and status == "unchanged" and value is not None:
        origin, source = "environment", ", ".join(from_parent)
    elif before and before.value == value and status == "unchanged" and choice.asked is None:
        origin, source = before.origin, before.source
    return Outcome(value, choice.value, origin, source, status)


def _as_before(name: str, found: FlagOutcome) -> FlagOutcome:
    """Names who asked for a flag first, where it was an earlier call and not the environment."""
    before = _LAST.flags.get(name)
    if before and before.value == found.value and found.status == "unchanged":
        return replace(found, origin=before.origin, source=before.source)
    return found


def _value(name: str, plan: _Plan) -> Any:
    """The active value."""
    setting, value = SETTINGS[name], plan.choices[name].value
    if not setting.flags or setting.current:
        return setting.effective(value)
    found = {flag: plan.flags.outcomes[flag].value for flag in setting.flags_of(value)}
    return {flag: text for flag, text in found.items() if text is not None} or None


def _warn(sentences: list[str]) -> None:
    if sentences:
        warnings.warn(" ".join(sentences), stacklevel=4)  # the line that called startup()


def _objections(plan: _Plan, *, strict: bool) -> list[str]:
    """What the caller should know beforehand; what strict forbids is raised."""
    wrong, late = [*_unknown_variables(), *plan.flags.complaints], _too_late(plan)
    if strict and wrong:
        raise ValueError("; ".join(wrong) + ": correct it, or go on without it and strict=True.")
    if strict and late:
        raise RuntimeError(" ".join(late))
    left_out = [f"{complaint}: it is left out." for complaint in wrong]
    return [*left_out, *late, *_advice(plan), *_differences(plan.choices)]


def _unknown_variables() -> list[str]:
    known = [
        source.name for setting in (*SETTINGS.values(), STRICT) for source in setting.variables
    ]
    return [
        f"{name} is not a variable of jinit, of which the nearest is {nearest}"
        for name, nearest in misspelt(known).items()
    ]


def _too_late(plan: _Plan) -> list[str]:
    late = [
        name
        for name, status in plan.statuses.items()
        if status == "too late" and not SETTINGS[name].flags
    ]
    asked = [f"{plan.choices[name].source}={plan.choices[name].value!r}" for name in late]
    flags = [format_flags({name: text}) for name, text in plan.flags.late.items()]
    if not late and not flags:
        return []
    remedy = "call jinit.startup() before the first JAX operation"
    if plan.compiler_options:
        remedy += f", or pass compiler_options={plan.compiler_options} to jax.jit"
    since = "backend is already up" if backend_is_up() else "plugins are already registered"
    return [f"JAX's {since}, too late for {', '.join(asked + flags)}: {remedy}."]


def _advice(plan: _Plan) -> list[str]:
    new = [name for name, status in plan.statuses.items() if status == "applied"]
    advice = [SETTINGS[name].advice(plan.choices[name].value) for name in new]
    return [f"{sentence}." for sentence in advice if sentence]


def _differences(choices: Mapping[str, Choice]) -> list[str]:
    """What this call asks for and the last one did not."""
    now = {name: choice.asked for name, choice in choices.items()}
    differing = [name for name in _LAST.asked if _LAST.asked[name] != now[name]]
    changes = ", ".join(f"{n} was {_LAST.asked[n]!r} and is {now[n]!r}" for n in differing)
    return [f"This startup asks for something else than the last one: {changes}."] * bool(changes)


def _shortfalls() -> list[str]:
    return [
        f"{name} was set to {found.requested!r}, but is {found.value!r}: {SETTINGS[name].caveat}."
        for name, found in _LAST.settings.items()
        if SETTINGS[name].caveat and found.value != found.requested and _was_asked(name, found)
    ]


def _was_asked(name: str, found: Outcome) -> bool:
    overridden = found.status == "overridden by the environment" and _LAST.asked[name] is not None
    return found.status == "applied" or overridden
