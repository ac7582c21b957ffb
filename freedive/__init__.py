"""DeepSeek-class mixture-of-experts language models on the machine you already have.

>>> import freedive
>>> model = freedive.load("smollm2")
>>> for piece in model.chat([{"role": "user", "content": "What is the capital of France?"}]):
...     print(piece, end="", flush=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freedive.api import LanguageModel, load
    from freedive.text.dialects.dialect import Call, Text, Thought

    __version__: str

__all__ = ["Call", "LanguageModel", "Text", "Thought", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """What takes time to import is imported when first used, so that ``freedive --help`` answers at once."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("freedive")
        except PackageNotFoundError:  # run from a source tree that is not installed
            return "0"
    if name in ("LanguageModel", "load"):
        from freedive import api

        return getattr(api, name)
    if name in ("Call", "Text", "Thought"):
        from freedive.text.dialects import dialect

        return getattr(dialect, name)
    raise AttributeError(f"module 'freedive' has no attribute {name!r}")
