"""Replaces the kernels by those of ``make sanitize``; it must be imported before freedive."""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import freedive.native

NAME = "freedive.native._native"

(path,) = Path(os.environ["FREEDIVE_SANITIZED"]).absolute().glob("_native.*.so")
assert NAME not in sys.modules
found = spec_from_file_location(NAME, path)
assert found
assert found.loader
module = module_from_spec(found)
sys.modules[NAME] = module
found.loader.exec_module(module)
freedive.native._native = module
