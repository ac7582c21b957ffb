"""Assigns buffers of activations to the results of phases; a buffer is used again after its last reader."""

from __future__ import annotations

from typing import NamedTuple

from freedive.ops.fuse import Phase
from freedive.ops.operations import FusedExperts
from freedive.ops.record import Node


class Buffer(NamedTuple):
    """Float activations [rows, width]; ``wanted`` is true if the rows are only the output rows of a step."""

    width: int
    wanted: bool


def assign_buffers(phases: list[Phase]) -> tuple[list[Buffer], dict[Node, int]]:
    """Returns the buffers, and for the result of each phase the index of its buffer."""
    buffers: list[Buffer] = []
    places: dict[Node, int] = {}
    free: dict[Buffer, list[int]] = {}
    last_read = {node: index for index, phase in enumerate(phases) for node in phase.reads}
    for index, phase in enumerate(phases):
        dying = [node for node in dict.fromkeys(phase.reads) if last_read[node] == index]
        replaced = next((node for node in phase.residuals if _in_place(phase, node, dying)), None)
        if replaced:
            dying.remove(replaced)
            places[phase.writes[0]] = places[replaced]
        else:
            for node in phase.writes:
                buffer = Buffer(node.width, node.wanted)
                if not free.get(buffer):
                    free.setdefault(buffer, []).append(len(buffers))
                    buffers.append(buffer)
                places[node] = free[buffer].pop()
        for node in dying:
            free.setdefault(Buffer(node.width, node.wanted), []).append(places[node])
    return buffers, places


def _in_place(phase: Phase, residual: Node, dying: list[Node]) -> bool:
    """Returns whether the result may overwrite ``residual``.

    The input of a linear may not be overwritten, because other threads still read it.
    """
    return residual in dying and (isinstance(phase.operation, FusedExperts) or residual is not phase.inputs[0])
