"""What becomes of every XLA flag: those in the environment, and those that are asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

from jinit._jax_private import active_flags, backend_is_up
from jinit.settings.environment import FLAG_VARIABLES, set_variable, wrote_flag
from jinit.settings.flags.check import UNCHECKED, check_flags, check_tpu_flags
from jinit.settings.flags.text import (
    format_flags,
    full_text,
    read_variable,
    same_value,
)
from jinit.settings.setting import Origin, Status

__all__ = ["AskedFlag", "FlagOutcome", "FlagPlan", "plan_flags", "present_flags"]

XLA, TPU = FLAG_VARIABLES
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
        value: The active text, None where the flag is not set.
        requested: The text asked for.
        origin: Where ``value`` comes from; of what is not active, where ``requested`` does.
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
            LIBTPU_INIT_ARGS wins over them, unless it is refused.
    """
    written_down = _flags_in_variables()
    present = present_flags()
    outcomes = _decide(asked, present, written_down)
    complaints = [_complaint(name, found) for name, found in outcomes.items()]
    # What stands in the environment wins; where it is refused, what was asked for counts after all.
    useless = {n for n in asked if outcomes[n].status == "refused" and n in present}
    if useless:
        rest = {name: flag for name, flag in present.items() if name not in useless}
        outcomes = _decide(asked, rest, written_down)
    if backend_is_up():
        return FlagPlan(outcomes, {}, tuple(filter(None, complaints)))
    ignored = [_ignored(variable) for variable in (XLA, TPU)]
    return FlagPlan(outcomes, _texts(outcomes), tuple(filter(None, ignored + complaints)))


def present_flags() -> dict[str, AskedFlag]:
    """The flags in the environment; once a backend is up, those of them that it started with."""
    flags = _flags_in_variables()
    if not backend_is_up():
        return flags
    read = active_flags()
    return {name: flag for name, flag in flags.items() if _was_read(name, flag, read)}


def _flags_in_variables() -> dict[str, AskedFlag]:
    return {
        name: AskedFlag(value, "environment", variable)
        for variable in (XLA, TPU)
        for name, value in read_variable(variable).flags.items()
    }


def _was_read(name: str, flag: AskedFlag, read: Mapping[str, str]) -> bool:
    """Whether XLA has the value; of what it does not tell, the environment is believed."""
    if name in read:
        return same_value(read[name], flag.value)
    number = full_text(flag.value).replace("true", "1").lstrip("-").replace(".", "", 1)
    nonzero = number.isdecimal() and number.strip("0") != ""
    return flag.source == TPU or not nonzero


def _decide(
    asked: Mapping[str, AskedFlag],
    present: Mapping[str, AskedFlag],
    written_down: Mapping[str, AskedFlag],
) -> dict[str, FlagOutcome]:
    """Decides on every flag: those asked for, unless the user's environment says otherwise.

    The user's are those in the environment that this process did not write. So of
    ``startup(xla_flags={"a": 1, "b": 1})`` with XLA_FLAGS="--a=2", a stays 2 ("overridden by the
    environment") and b becomes 1 ("applied"). Once a backend is up, ``present`` is what it started
    with and ``written_down`` what the variables hold: what came into them since is wanted too
    late, and what the backend runs with is settled, so that no child process is asked about it.
    """
    users = {n: flag for n, flag in present.items() if n not in asked or not _is_ours(n, flag)}
    late = {n: f for n, f in written_down.items() if n not in present and n not in asked}
    wanted = {**asked, **users, **(late if backend_is_up() else {})}
    settled = {n for n, flag in wanted.items() if backend_is_up() and _same(flag, present.get(n))}
    homes, faults = _check({n: flag for n, flag in wanted.items() if n not in settled})
    return {
        name: _outcome(
            flag, present.get(name), asked.get(name), homes.get(name, XLA), faults.get(name, "")
        )
        for name, flag in wanted.items()
    }


def _is_ours(name: str, flag: AskedFlag) -> bool:
    return wrote_flag(flag.source, name, flag.value)


def _same(flag: AskedFlag, there: AskedFlag | None) -> bool:
    return there is not None and same_value(flag.value, there.value)


def _outcome(
    flag: AskedFlag, there: AskedFlag | None, request: AskedFlag | None, home: str, fault: str
) -> FlagOutcome:
    value, requested = full_text(flag.value), full_text((request or flag).value)
    tolerated = fault == UNCHECKED and (there is flag or home == TPU)
    if fault and not tolerated:
        return FlagOutcome(None, value, flag.origin, flag.source, "refused", home, fault)
    status: Status = "unchanged" if _same(flag, there) else "applied"
    if not same_value(value, requested):
        status = "overridden by the environment"
    elif status == "applied" and backend_is_up():
        status, value = "too late", there and full_text(there.value)
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
        ours = {name: value for name, value in flags.items() if _stays_ours(name, outcomes[name])}
        texts[variable] = (format_flags(flags), format_flags(ours))
    return texts


def _stays_ours(name: str, found: FlagOutcome) -> bool:
    there = AskedFlag(found.value, "environment", found.source)
    return found.origin != "environment" or _is_ours(name, there)


def _complaint(name: str, found: FlagOutcome) -> str:
    if found.status != "refused":
        return ""
    flag = format_flags({name: found.requested})
    return f"{found.source}: {flag} {found.note}"


def _ignored(variable: str) -> str:
    ignored = read_variable(variable).ignored
    if not ignored:
        return ""
    return (
        f"{variable}: {ignored!r} is neither a flag, which begins with --, nor a file of flags "
        "that can be read"
    )
