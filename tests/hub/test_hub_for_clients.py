"""Models that the clients of a server ask it to fetch."""

from __future__ import annotations

from pathlib import Path

import pytest
from standin import StandIn

from freedive.commands.serve import fetched
from freedive.errors import NotFound
from freedive.server.ollama.pull import Progress


def test_a_model_is_fetched_and_tells_how_far_it_is(hub: StandIn) -> None:
    hub.repositories["owner/name"] = {"m-Q4_0.gguf": b"w" * 1000}
    progress = Progress()
    known = fetched({}, "hf:owner/name", progress)
    assert (known.name, known.num_bytes) == ("hf:owner/name", 1000)
    assert (progress.total, progress.completed) == (1000, 1000)


def test_files_of_this_machine_are_not_for_clients_to_name(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"w")
    for name in (str(file), str(tmp_path), f"file:{file}", "~/m.gguf", "m.gguf"):
        with pytest.raises(NotFound, match="is not a model of the catalogue"):
            fetched({}, name, Progress())
