"""How ``multiprocessing`` starts a child process."""

from jinit._parsing import choice
from jinit.settings.setting import Setting, Source
from jinit.settings.undo import on_failure

__all__ = ["START_METHOD"]

_parse_method = choice(("fork", "forkserver", "spawn"))
_parse_bool = choice({True: "forkserver", False: "fork"})


def _current() -> str | None:
    import multiprocessing  # 15 ms that importing jinit need not cost

    return multiprocessing.get_start_method(allow_none=True)


def _apply(method: str) -> None:
    import multiprocessing

    before = _current()
    on_failure(lambda: multiprocessing.set_start_method(before, force=True))
    multiprocessing.set_start_method(method, force=True)


def _supported(method: str) -> str:
    import multiprocessing

    return method if method in multiprocessing.get_all_start_methods() else "spawn"


def _instead_of_fork(name: str, value: object) -> str:
    method = _parse_bool(name, value)
    # Who has already chosen spawn does not fork: nothing is there to be replaced.
    kept = method == "forkserver" and _current() == "spawn"
    return "spawn" if kept else _supported(method)


START_METHOD = Setting(
    name="start_method",
    variables=(
        Source("JINIT_START_METHOD", lambda name, text: _supported(_parse_method(name, text))),
    ),
    arguments=(Source("forkserver_instead_of_fork", _instead_of_fork, default=True),),
    apply=_apply,
    current=_current,
)
