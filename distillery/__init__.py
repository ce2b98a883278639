__version__ = "0.1.0"

from typing import Any

__all__ = ["ask", "load_run", "plan", "run", "run_stages"]


def __getattr__(name: str) -> Any:
    "What the commands do, from Python; loaded when it is used."
    if name not in __all__: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .commands import python

    return getattr(python, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
