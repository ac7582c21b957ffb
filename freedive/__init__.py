"""DeepSeek-class mixture-of-experts language models on the machine you already have.

>>> import freedive
>>> model = freedive.load("smollm2")
>>> for text in model.chat([{"role": "user", "content": "What is the capital of France?"}]):
...     print(text, end="", flush=True)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freedive.api import LanguageModel, load
    from freedive.config import EngineConfig
    from freedive.engine.generation import Usage
    from freedive.engine.sampling import Sampling
    from freedive.engine.submission import Scope
    from freedive.errors import UserError
    from freedive.reply import Reply
    from freedive.text.dialects.dialect import Call, Text, Thought
    from freedive.text.format import Format
    from freedive.text.request import ChatInput, TextInput
    from freedive.text.tools import Function

    __version__: str

__all__ = [
    "Call",
    "ChatInput",
    "EngineConfig",
    "Format",
    "Function",
    "LanguageModel",
    "Reply",
    "Sampling",
    "Scope",
    "Text",
    "TextInput",
    "Thought",
    "Usage",
    "UserError",
    "__version__",
    "load",
]

_MODULES = {
    "freedive.api": ("LanguageModel", "load"),
    "freedive.config": ("EngineConfig",),
    "freedive.engine.generation": ("Usage",),
    "freedive.engine.sampling": ("Sampling",),
    "freedive.engine.submission": ("Scope",),
    "freedive.errors": ("UserError",),
    "freedive.reply": ("Reply",),
    "freedive.text.dialects.dialect": ("Call", "Text", "Thought"),
    "freedive.text.format": ("Format",),
    "freedive.text.request": ("ChatInput", "TextInput"),
    "freedive.text.tools": ("Function",),
}
"""The public names of the package, by the module that defines them."""


def __getattr__(name: str) -> Any:
    """Imports public names at first use, so that ``freedive --help`` starts fast."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("freedive")
        except PackageNotFoundError:  # run from a source tree that is not installed
            return "0"
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'freedive' has no attribute {name!r}")
