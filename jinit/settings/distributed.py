"""The connection of a run of several processes."""

import inspect
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from jinit.settings.parsing import refusal
from jinit.settings.setting import Setting, Source
from jinit.settings.undo import on_failure

__all__ = ["DISTRIBUTED"]


def _parse(name: str, value: object) -> Mapping[str, Any] | bool:
    if isinstance(value, bool):
        return {} if value else False
    legal_names = _argument_names()
    if not isinstance(value, Mapping) or not set(value) <= set(legal_names):
        legal = "True, False or a dict of " + ", ".join(map(repr, legal_names))
        raise ValueError(refusal(name, value, legal))
    for part, (is_legal, legal) in _LEGAL.items():
        if part in value and not is_legal(value[part]):
            raise ValueError(refusal(f"{name}[{part!r}]", value[part], legal))
    return dict(value)


def _is_address(value: object) -> bool:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return bool(host) and port.isdecimal() and 0 < int(port) < 2**16


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_LEGAL: dict[str, tuple[Callable[[object], bool], str]] = {
    "coordinator_address": (_is_address, "'host:port' with a port in [1, 65535]"),
    **dict.fromkeys(("num_processes", "process_id"), (_is_count, "an integer of at least 0")),
    **dict.fromkeys(
        ("initialization_timeout", "heartbeat_timeout_seconds", "shutdown_timeout_seconds"),
        (_is_count, "a whole number of seconds"),
    ),
}
"""What JAX would wait for, or end the process over, instead of refusing it."""


def _parse_text(name: str, text: str) -> Mapping[str, Any] | bool:
    try:
        value = {"0": False, "1": True}.get(text) if text in ("0", "1") else json.loads(text)
    except ValueError:
        value = text
    # In JSON 0 and 1 are numbers; only the texts "0" and "1" are switches.
    return _parse(name, value if isinstance(value, (bool, dict)) else text)


def _argument_names() -> list[str]:
    import jax

    return list(inspect.signature(jax.distributed.initialize).parameters)


def _is_up() -> bool:
    import jax

    return jax.distributed.is_initialized()


def _apply(arguments: Mapping[str, Any]) -> None:
    import jax

    _await_coordinator(arguments)
    on_failure(lambda: _is_up() and jax.distributed.shutdown())
    try:
        jax.distributed.initialize(**arguments)
    except Exception as error:
        raise RuntimeError(
            f"distributed={dict(arguments)!r} did not connect: {error} Pass a dict with "
            "coordinator_address, num_processes and process_id, or True on a cluster that JAX "
            "knows."
        ) from error


def _await_coordinator(arguments: Mapping[str, Any]) -> None:
    """Waits for the coordinator's port: JAX ends the process if it never opens."""
    address, rank = arguments.get("coordinator_address"), arguments.get("process_id")
    if not (isinstance(address, str) and rank):
        return
    seconds = arguments.get("initialization_timeout", 300)
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while not _answers(host.strip("[]"), port):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"The coordinator {address!r} of distributed= did not answer process {rank} in "
                f"{seconds} s: start process 0, and check the address and the firewall."
            )
        time.sleep(0.1)


def _answers(host: str, port: str) -> bool:
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except (OSError, ValueError, OverflowError):
        return False


DISTRIBUTED = Setting(
    name="distributed",
    variables=(Source("JINIT_DISTRIBUTED", _parse_text),),
    arguments=(Source("distributed", _parse, default=False),),
    apply=_apply,
    holds=lambda arguments: arguments is False or _is_up(),
    needs_fresh_backend=True,
)
