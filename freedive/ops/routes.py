"""The routes of tokens to experts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Routes(NamedTuple):
    """The experts of each token of a step in one layer, and their weights, [T, num_chosen] each."""

    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
