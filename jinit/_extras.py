"""Optional packages: what is missing, and how to get it."""

import importlib.util

__all__ = ["require"]


def require(extra: str, *modules: str) -> None:
    """Checks that the packages of an extra are installed.

    Args:
        extra: The name of jinit's extra that installs them.
        *modules: The modules that are needed.

    Raises:
        ModuleNotFoundError: One is missing; the text says what to install.

    Example:
        >>> require("plot", "json")
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{' and '.join(missing)} not installed: run pip install 'jinit[{extra}]'"
        )
