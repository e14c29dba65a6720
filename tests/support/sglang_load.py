"""Loads SGLang's own code on a machine without its GPU stack. Runs in SGLang's environment, not in the tests' own.

Everything that can be imported is the installed, unmodified package. What cannot (kernels, models, attention layers and
what only they need) is a stub: an attribute of a stubbed module is a class that accepts anything and does nothing.
Import this before anything of SGLang's::

    from tests.support import sglang_load
    sglang_load.prepare()
    from sglang.srt.disaggregation.common import conn
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

#: What needs a GPU, or gigabytes that only serve models: with all submodules.
STUBBED = (
    "IPython",
    "PIL",
    "sgl_kernel",
    "torchvision",
    "transformers",
    "triton",
    "sglang.srt.configs",
    "sglang.srt.constrained",
    "sglang.srt.distributed",
    "sglang.srt.layers",
    "sglang.srt.mem_cache",
    "sglang.srt.model_executor",
    "sglang.srt.models",
    "sglang.srt.multimodal",
    "sglang.srt.sampling.custom_logit_processor",
    "sglang.srt.speculative",
    "sglang.srt.utils.hf_transformers_patches",
    "sglang.srt.utils.hf_transformers",
    "sglang.srt.utils.hf_transformers_utils",
)


class _Anything(type):
    """A class any attribute of which is such a class; called with a function it gives it back, as a decorator does."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Anything(name, (_Base,), {})
        setattr(cls, name, value)
        return value

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and callable(args[0]) and not isinstance(args[0], _Anything):
            return args[0]
        return type.__call__(cls)

    def __or__(cls, other: object) -> Any:
        return object

    __ror__ = __or__

    def __iter__(cls) -> Any:
        return iter(())


class _Base(metaclass=_Anything):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else None

    def __class_getitem__(cls, item: object) -> Any:
        return cls


class _StubModule(types.ModuleType):
    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Anything(name, (_Base,), {"__module__": self.__name__})
        setattr(self, name, value)
        return value


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if any(name == stub or name.startswith(f"{stub}.") for stub in STUBBED):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _StubModule(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def prepare() -> None:
    """From here on, SGLang's modules can be imported in this process."""
    import torch

    def not_compiled(function: Any = None, **options: Any) -> Any:
        return function if function is not None else lambda function: function

    torch.compile = not_compiled  # type: ignore[assignment]
    sys.meta_path.insert(0, _Stubs())
