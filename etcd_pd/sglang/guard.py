"""A bug of etcd_pd's must not end SGLang's scheduler: what a hook raises is logged, and SGLang goes on without it."""

from __future__ import annotations

import functools
import inspect
import logging
import types
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)


class Original:
    """SGLang's own function, as an AROUND hook gets it: what it raises is SGLang's."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._function, *args, **kwargs)

    def call_answered(self, body: Mapping[str, Any], *args: Any) -> Any:
        """Call the same function, in which ``requests.get`` returns ``body``: SGLang fetches and checks in one."""
        inner: Any = inspect.unwrap(self._function)
        response = types.SimpleNamespace(status_code=200, text="", json=lambda: dict(body))
        names = {**inner.__globals__, "requests": types.SimpleNamespace(get=lambda *args, **kwargs: response)}
        answered = types.FunctionType(inner.__code__, names, inner.__name__, inner.__defaults__, inner.__closure__)
        return self._run(answered, *args)

    def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as exc:
            self.error = exc
            raise


def guard(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A BEFORE or AFTER hook that raises nothing."""

    @functools.wraps(hook)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return hook(*args, **kwargs)
        except Exception:
            log.exception("etcd_pd: a fault of its own in %s; SGLang goes on without it", hook.__name__)
            return None

    return guarded


def guard_around(hook: Callable[..., Any]) -> Callable[..., Any]:
    """An AROUND hook that raises what SGLang's own function raised, and after any other fault calls that."""

    @functools.wraps(hook)
    def guarded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        original = Original(function)
        try:
            return hook(original, *args, **kwargs)
        except Exception as exc:
            if exc is original.error:
                raise
            log.exception("etcd_pd: a fault of its own in %s; SGLang goes on without it", hook.__name__)
            return function(*args, **kwargs)

    return guarded
