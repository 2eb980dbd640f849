"""Signatures of constructors that take all that another one takes, and more."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def extends(base: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Show the parameters of `base` in the place of *args and **kwargs, to help() and to whoever filters by name."""

    def show(function: _Function) -> _Function:
        mine = signature(function)
        own = [parameter for parameter in mine.parameters.values() if parameter.kind is Parameter.KEYWORD_ONLY]
        parameters = [*signature(base).parameters.values(), *own]
        function.__signature__ = mine.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect's own hook
        return function

    return show
