"""Where routers send tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Routes(NamedTuple):
    """Of one layer, for the tokens of a step: their experts and the weights of these, [T, num_chosen] each."""

    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
