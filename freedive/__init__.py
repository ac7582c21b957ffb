"""DeepSeek-class mixture-of-experts language models on the machine you already have.

>>> import freedive
>>> model = freedive.load("smollm2")
>>> for piece in model.chat([{"role": "user", "content": "What is the capital of France?"}]):
...     print(piece, end="", flush=True)
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freedive.api import LanguageModel, load

__all__ = ["LanguageModel", "__version__", "load"]

try:
    __version__ = version("freedive")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0"


def __getattr__(name: str) -> Any:
    """The interface is imported when first used, so that ``freedive --help`` answers at once."""
    if name in ("LanguageModel", "load"):
        from freedive import api

        return getattr(api, name)
    raise AttributeError(f"module 'freedive' has no attribute {name!r}")
