"""Published client programs against a live server.

They have a Python environment of their own, so that their dependencies do not change those of other tests.
``tests/clients`` has a script for each; a script is run once, and each of its functions is a test here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from echo_model import EchoModel, serving

SCRIPTS = Path(__file__).parents[1] / "clients"
CLIENTS = Path(sys.prefix) / "clients"
RUNNERS = {".py": ("python", "-P", SCRIPTS / "run.py"), ".cjs": ("node", SCRIPTS / "run.cjs")}

FUNCTION = re.compile(r"^(?:def |exports\.)([a-z]\w*)\b.*\(url", re.MULTILINE)
CHECKS = [
    (path.name, name)
    for path in sorted(SCRIPTS.iterdir())
    if path.suffix in RUNNERS and path.stem != "run"
    for name in FUNCTION.findall(path.read_text("utf-8"))
]
"""Every pair of script and function."""


def call(name: str, /, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


ANSWERS = {
    "12 degrees": "It is mild.",
    "weather twice": call("weather", city="Köln") + call("weather", city="Bonn"),
    "weather": call("weather", city="Köln"),
    "Bob is not born": call("Person", name="Bob", age=40),
    "Eve is not born": '{"name": "Eve", "age": 40}',
    "Call for Bob": call("Person", name="Bob", age=-1),
    "Who was Eve": '{"name": "Eve", "age": -1}',
    "Call for Ada": call("Person", name="Ada", age=36),
    "Who was Ada": '{"name": "Ada", "age": 36}',
    "think": "<think>Hm.</think>So it is.",
    "boom": "ab\N{COLLISION SYMBOL}",
}
"""The model's answer to a prompt that contains a word; the first word counts."""

SILENCE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
"""The environment in which clients download and report nothing."""

TIMEOUT_S = 250
"""The limit of a script in seconds; newly installed clients are compiled first."""

Outcomes = dict[str, str | None]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Outcomes]]:
    """Returns the result of each function of a script: None, or the error."""
    home = tmp_path_factory.mktemp("home")
    with serving(EchoModel(script=ANSWERS, delay_s=0)) as url:
        yield cache(lambda script: run(SCRIPTS / script, url, home))


def run(script: Path, url: str, home: Path) -> Outcomes:
    assert CLIENTS.exists(), "the clients are not installed: run `make test-all`"
    program, *arguments = RUNNERS[script.suffix]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LLM_USER_PATH": str(home)}
    command = [CLIENTS / "bin" / program, *arguments, script, url]
    environment |= SILENCE | {"NODE_PATH": str(CLIENTS / "node_modules")}
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        fault = f"{error}\n{error.stderr!s}"
        return defaultdict(lambda: fault)
    print(ended.stderr)
    return json.loads(ended.stdout)


@pytest.mark.parametrize(("script", "function"), CHECKS, ids=["-".join(check) for check in CHECKS])
def test_clients_work_with_the_server(outcomes: Callable[[str], Outcomes], script: str, function: str) -> None:
    if fault := outcomes(script)[function]:
        pytest.fail(fault, pytrace=False)
