"""The connection of a run of several processes."""

import inspect
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from jinit._parsing import integer, refusal
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
        if value.get(part) is not None and not is_legal(value[part]):
            raise ValueError(refusal(f"{name}[{part!r}]", value[part], legal))
    _check_rank(name, value)
    devices = value.get("local_device_ids")
    plain = {} if devices is None else {"local_device_ids": _device_numbers(devices)}
    return {**value, **plain}


def _is_address(value: object) -> bool:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return bool(host) and port.isdecimal() and len(port) < 6 and 0 < int(port) < 2**16


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_seconds(value: object) -> bool:
    return _is_count(value) and value != 0


def _are_devices(value: object) -> bool:
    """Whether it is a number or has numbers in an order, as lists, ranges and arrays have."""
    try:
        _device_numbers(value)
    except (TypeError, ValueError):
        return False
    return True


def _device_numbers(value: Any) -> int | list[int]:
    """The numbers as plain data; JAX only writes them down, so that NumPy's will do."""
    if isinstance(value, Mapping | bytes) or not hasattr(value, "__getitem__"):  # as of a set
        return _number("local_device_ids", value)
    return [_number("local_device_ids", each) for each in value]


_number = integer(0, 2**31 - 1)


_LEGAL: dict[str, tuple[Callable[[object], bool], str]] = {
    "coordinator_address": (_is_address, "'host:port' with a port in [1, 65535]"),
    "coordinator_bind_address": (_is_address, "'host:port' with a port in [1, 65535]"),
    "local_device_ids": (_are_devices, "a list of integers of at least 0"),
    **dict.fromkeys(
        ("num_processes", "process_id", "slice_index", "partition_index"),
        (_is_count, "an integer of at least 0"),
    ),
    **dict.fromkeys(
        ("initialization_timeout", "heartbeat_timeout_seconds", "shutdown_timeout_seconds"),
        (_is_seconds, "a whole number of seconds of at least 1"),
    ),
}
"""What JAX would wait for, or end the process over, instead of refusing it."""


def _check_rank(name: str, arguments: Mapping[str, Any]) -> None:
    count, rank = arguments.get("num_processes"), arguments.get("process_id")
    if count is not None and rank is not None and rank >= count:
        raise ValueError(refusal(f"{name}['process_id']", rank, f"less than num_processes={count}"))


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
    _CONNECTED["arguments"] = dict(arguments)
    try:
        jax.distributed.initialize(**arguments)
    except Exception as error:
        raise RuntimeError(
            f"distributed={dict(arguments)!r} did not connect: {error} Pass a dict with "
            "coordinator_address, num_processes and process_id, or True on a cluster that JAX "
            "knows."
        ) from error


def _current() -> Mapping[str, Any] | bool:
    return _CONNECTED.get("arguments", True) if _is_up() else False


_CONNECTED: dict[str, Any] = {}
"""The arguments by which jinit connected; nothing where the user did it."""


def _await_coordinator(arguments: Mapping[str, Any]) -> None:
    """Waits for the coordinator's port: JAX ends the process if it never opens."""
    address, rank = arguments.get("coordinator_address"), arguments.get("process_id")
    if address is None:
        return
    host, _, port = address.rpartition(":")
    seconds = arguments.get("initialization_timeout") or 300
    deadline = time.monotonic() + seconds
    while not (_answers(host.strip("[]"), port) if rank else _resolves(host.strip("[]"), port)):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"The coordinator {address!r} of distributed= did not answer process {rank} in "
                f"{seconds} s: start process 0, and check the address and the firewall."
            )
        time.sleep(0.1)


def _resolves(host: str, port: str) -> bool:
    """Whether the name is known: process 0 is the coordinator itself, and opens the port."""
    try:
        return bool(socket.getaddrinfo(host, int(port)))
    except OSError:
        return False


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
    current=_current,
    holds=lambda arguments: arguments is False or _current() in (arguments, True),
    needs_fresh_backend=True,
)
