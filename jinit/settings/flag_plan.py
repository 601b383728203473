"""What becomes of every XLA flag: those in the environment, and those that are asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

from jinit.settings._jax_private import backend_is_up
from jinit.settings.environment import set_variable, written
from jinit.settings.flag_check import UNCHECKED, check_flags, check_tpu_flags
from jinit.settings.flag_text import Tokens, format_flags, read_variable, split_flags
from jinit.settings.setting import Origin, Status

__all__ = ["AskedFlag", "FlagOutcome", "FlagPlan", "plan_flags"]

XLA, TPU = "XLA_FLAGS", "LIBTPU_INIT_ARGS"
_WORST_FIRST: tuple[Status, ...] = (
    "refused",
    "too late",
    "overridden by the environment",
    "applied",
    "unchanged",
)
_TPU_PREFIXES = ("xla_tpu_", "xla_jf_", "xla_sc_", "xla_vf_", "xla_msa_", "megascale_", "tpu_")


@dataclass(frozen=True)
class AskedFlag:
    """A flag that somebody asks for."""

    value: str | None
    origin: Origin
    source: str


@dataclass(frozen=True)
class FlagOutcome:
    """What became of one flag.

    Attributes:
        value: The text in force, None where the flag is not set.
        requested: The text asked for.
        origin: Where ``value`` comes from; of what is not in force, where ``requested`` does.
        source: The argument or variable that is the origin.
        status: Whether the call set the flag, and why where it did not.
        variable: The variable that the flag is read from.
        note: What is wrong with it.
    """

    value: str | None
    requested: str | None
    origin: Origin
    source: str
    status: Status
    variable: str
    note: str = ""


@dataclass(frozen=True)
class FlagPlan:
    """The flags of the process.

    Attributes:
        outcomes: What becomes of each flag, by its name.
        variables: The texts that the variables get, and of these the part that is jinit's own.
        complaints: What is left out of the environment and of what was asked for, and why; each
            without the end of its sentence.
    """

    outcomes: Mapping[str, FlagOutcome]
    variables: Mapping[str, tuple[str, str]]
    complaints: tuple[str, ...]

    def apply(self) -> None:
        """Writes the variables."""
        for name, (text, ours) in self.variables.items():
            set_variable(name, text, ours)

    @property
    def late(self) -> dict[str, str | None]:
        """The flags that are asked for too late."""
        found = {name: each for name, each in self.outcomes.items() if each.status == "too late"}
        return {name: each.requested for name, each in found.items()}

    def status(self, names: Mapping[str, str]) -> Status:
        """What becomes of several flags together: the worst of what becomes of each."""
        found: list[Status] = [self.outcomes[name].status for name in names]
        return min(found, key=_WORST_FIRST.index) if found else "unchanged"


def plan_flags(asked: Mapping[str, AskedFlag]) -> FlagPlan:
    """Decides on every flag, before anything is changed.

    Args:
        asked: The flags that are asked for, by name. What the user has put in XLA_FLAGS or
            LIBTPU_INIT_ARGS wins over them.
    """
    read = {variable: read_variable(variable) for variable in (XLA, TPU)}
    present = {
        name: AskedFlag(value, "environment", variable)
        for variable, tokens in read.items()
        for name, value in tokens.flags.items()
    }
    weak = {name for name, flag in present.items() if name in asked and _is_ours(name, flag)}
    wanted = dict(asked) | {name: flag for name, flag in present.items() if name not in weak}
    up = backend_is_up()
    new = {n: flag for n, flag in wanted.items() if not (up and _same(flag, present.get(n)))}
    homes, faults = _check(new)
    outcomes = {
        name: _outcome(
            flag, present.get(name), asked.get(name), homes.get(name, XLA), faults.get(name, "")
        )
        for name, flag in wanted.items()
    }
    complaints = [_complaint(name, found) for name, found in outcomes.items()]
    ignored = [] if up else [_ignored(variable, tokens) for variable, tokens in read.items()]
    texts = {} if up else _texts(outcomes)
    return FlagPlan(outcomes, texts, tuple(filter(None, ignored + complaints)))


def _is_ours(name: str, flag: AskedFlag) -> bool:
    """Whether jinit put the flag there, in this process or in the one that started it."""
    ours = split_flags(written().get(flag.source, "")).flags
    return name in ours and ours[name] == _text(flag.value)


def _text(value: str | None) -> str:
    """The value in full: a flag without one is a boolean."""
    return "true" if value is None else value


def _same(flag: AskedFlag, there: AskedFlag | None) -> bool:
    return there is not None and _text(flag.value) == _text(there.value)


def _outcome(
    flag: AskedFlag, there: AskedFlag | None, request: AskedFlag | None, home: str, fault: str
) -> FlagOutcome:
    value, requested = _text(flag.value), _text((request or flag).value)
    tolerated = fault == UNCHECKED and (there is flag or home == TPU)
    if fault and not tolerated:
        return FlagOutcome(None, requested, flag.origin, flag.source, "refused", home, fault)
    status: Status = "unchanged" if _same(flag, there) else "applied"
    if value != requested:
        status = "overridden by the environment"
    elif status == "applied" and backend_is_up():
        status, value = "too late", there and _text(there.value)
    return FlagOutcome(value, requested, flag.origin, flag.source, status, home, fault)


def _check(wanted: Mapping[str, AskedFlag]) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the variable in which each flag belongs, and what is wrong with those at fault."""
    values = {name: flag.value for name, flag in wanted.items()}
    tpu = {name: value for name, value in values.items() if _is_for_tpu(name, wanted[name])}
    xla = {name: value for name, value in values.items() if name not in tpu}
    faults = check_flags(xla)
    moved = {name: xla.pop(name) for name in faults if not check_tpu_flags({name: None})}
    kept = {name: fault for name, fault in faults.items() if name not in moved}
    homes = dict.fromkeys(xla, XLA) | dict.fromkeys([*tpu, *moved], TPU)
    return homes, kept | check_tpu_flags(tpu)


def _is_for_tpu(name: str, flag: AskedFlag) -> bool:
    return name.startswith(_TPU_PREFIXES) or flag.source == TPU


def _texts(outcomes: Mapping[str, FlagOutcome]) -> dict[str, tuple[str, str]]:
    """What is to be written where: the whole text, and the part of it that is ours."""
    texts = {}
    for variable in (XLA, TPU):
        flags = {n: f.value for n, f in outcomes.items() if f.variable == variable}
        flags = {name: value for name, value in flags.items() if value is not None}
        ours = {n: v for n, v in flags.items() if outcomes[n].origin != "environment"}
        texts[variable] = (format_flags(flags), format_flags(ours))
    return texts


def _complaint(name: str, found: FlagOutcome) -> str:
    if found.status != "refused":
        return ""
    flag = format_flags({name: found.requested})
    return f"{found.source}: {flag} {found.note}"


def _ignored(variable: str, tokens: Tokens) -> str:
    if not tokens.ignored:
        return ""
    return (
        f"{variable}: {tokens.ignored!r} is neither a flag, which begins with --, nor a file of "
        "flags that can be read"
    )
