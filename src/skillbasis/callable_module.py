"""Packages that are named like their main function, and can be called like it: `skillbasis.steer(...)`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(module_name: str, function: Callable[..., Any]) -> None:
    """Lets calling a module call one of its functions; a module's class may be replaced (Python data model)."""

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    CallableModule.__doc__ = function.__doc__
    sys.modules[module_name].__class__ = CallableModule
