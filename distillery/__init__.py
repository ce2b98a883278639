__version__ = "0.1.0"

from importlib import import_module
from typing import Any

PLACES = {**dict.fromkeys(("ask", "load_run", "plan", "run", "run_stages"), "commands.python"),
          **dict.fromkeys(("compare", "gate", "card"), "commands.decide"),
          **dict.fromkeys(("items_needed", "declare", "look"), "commands.plan")}
__all__ = [*PLACES]


def __getattr__(name: str) -> Any:
    "What the commands do, from Python; loaded when it is used."
    if name not in PLACES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
