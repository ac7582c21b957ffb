"""The main states of the chat page, brought about by a user's actions on a server whose model, library and fine-tuning
are made up.

``python tests/page_states.py FOLDER [STATE ...]`` draws them; the pictures of docs/page.md are among these.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from browser import LAST_ANSWER, Page, chromium
from echo_finetuning import EchoFinetuning
from echo_history import busy
from echo_library import GB, EchoLibrary, listed
from echo_model import HELD, EchoModel, serving
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains

import freedive
from freedive.server import keys
from freedive.server.history import History

LOOKS = tuple(product(("light", "dark"), ("desktop", "phone")))
QUESTION = "How far does light reach into the sea? Show the law, some code and a table."
ANSWER = r"""<think>
The Beer-Lambert law describes it: intensity falls exponentially with depth.
Clear ocean water, so about 0.03 per metre for blue light.
</think>

Light fades **exponentially** with depth, as the [Beer-Lambert law](https://example.org/law) says:

$$I(z) = I_0 \, e^{-k z}, \qquad k \approx 0.03 \text{ per m}$$

```python
import math

def share_left(depth: float, k: float = 0.03) -> float:
    "The share of blue light at this depth in metres."  # clear water
    return math.exp(-k * depth)

print(f"{share_left(200):.2%}")
```

| Zone | Depth | Light |
|------|------:|-------|
| sunlight | 0 to 200 m | plants grow |
| twilight | 200 to 1000 m | too little for plants |
| midnight | below 1000 m | none but that of animals |

> At 200 m, about `0.25 %` of the blue light is left.
"""
WIDE = f"""| {"head | " * 40}
|{"--|" * 40}
| {"body | " * 40}

$${" + ".join(f"x_{{{n}}}" for n in range(60))}$$

```diff
- {"less " * 60}
+ {"more " * 60}
```
"""
SHORT = """In clear ocean water, about **200 metres**: the *sunlight zone*.

- Red light is gone after 10 m.
- Blue light reaches deepest.
- Below 1000 m it is dark.
"""
SCRIPT = {
    "In short": SHORT,
    "How far": ANSWER,
    "How deep is": f"<think>\nThe deepest place?\n</think>\n\nEleven {HELD}kilometres.",
    "wide": WIDE,
    "exploded": "One \N{COLLISION SYMBOL}",
    "tool: 98.": "At 100 m, about **98.5 %** of the pressure is that of the water.",
    "pressure": """<think>\nPressure of the water over the whole.\n</think>\n\nI compute it. <tool_call>
{"name": "calculator", "arguments": {"expression": "round(100 * 1025 * 9.81 * 100 / (1025 * 9.81 * 100 + 15300), 1)"}}
</tool_call>""",
}
LINES = "".join(json.dumps({"prompt": f"Say {n}", "completion": f"{n} fish"}) + "\n" for n in range(20))
CHOOSE = """
const [buttons, key] = arguments;
const text = JSON.parse(document.getElementById("translations").textContent)[key];
[...document.querySelectorAll(buttons)].find((button) => button.textContent === text).click();
"""


@dataclass
class Stage:
    """An open page and what is behind it."""

    page: Page
    model: EchoModel
    tuning: EchoFinetuning

    def click(self, selector: str) -> None:
        self.page.browser.execute_script("arguments[0].click()", self.page.wait(selector))

    def choose(self, model: str, key: str) -> None:
        """Clicks the button of a model that has this text of the translations."""
        self.click("#library-open")
        self.page.wait(f'.model[aria-label="{model}"] .buttons button')
        self.page.browser.execute_script(CHOOSE, f'.model[aria-label="{model}"] .buttons button', key)


@contextmanager
def staged(
    browser: webdriver.Chrome,
    language: str = "en",
    locks: keys.Keys | None = None,
    delay_s: float = 0.0,
    model: Any = None,
) -> Iterator[Stage]:
    """Opens the page of a new server, which is empty."""
    known = {
        "small": listed("small", bytes_here=GB),
        "tuned:chats": listed("tuned:chats", bytes_here=GB, removable=True),
        "new": listed("new"),
        "half": listed("half", partial_bytes=GB // 2),
        "sparse": listed("sparse", fits=False, paged=True),
        "huge": listed("huge", fits=False),
    }
    echo, tuning = EchoModel("small", delay_s=delay_s, script=dict(SCRIPT)), EchoFinetuning()
    library = EchoLibrary(known)
    options = {"library": library, "fetch": library.fetch, "finetuning": tuning, "keys": locks}
    large = EchoModel("large", delay_s=2 * delay_s, script=dict(SCRIPT))
    with patch.object(History, "after", busy), serving(model or echo, large, **options) as url:
        browser.get(f"{url}/health")
        browser.delete_all_cookies()
        browser.add_cookie({"name": "lang", "value": language})
        browser.execute_script("localStorage.clear(); sessionStorage.clear()")
        yield Stage(Page(browser, url), echo, tuning)
        echo.released.set()
        tuning.go.set()
        library.go.set()
        browser.get("about:blank")


@contextmanager
def looking(page: Page, scheme: str, device: str) -> Iterator[None]:
    """Shows the page in light or dark colours, on a desktop or a phone, at rest: nothing fades in or out."""
    features = [("prefers-color-scheme", scheme), ("prefers-reduced-motion", "reduce")]
    media = {"features": [{"name": name, "value": value} for name, value in features]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        with page.phone() if device == "phone" else nullcontext():
            yield
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def empty(stage: Stage) -> None:
    pass


def answer(stage: Stage) -> None:
    stage.page.ask_and_wait(QUESTION)
    stage.click(".thoughts summary")
    stage.page.drop("notes.txt", "The notes of a diver")
    stage.page.wait("#attached .close")


def streaming(stage: Stage) -> None:
    stage.page.ask("How deep is the sea?")
    stage.page.until(lambda: "Eleven" in stage.page.find(".answer").text)


def branches(stage: Stage) -> None:
    stage.page.ask_and_wait("How deep can a person dive?")
    stage.click(f"{LAST_ANSWER} .again")
    stage.page.wait(".branches")
    stage.page.wait_for_end()


def editing(stage: Stage) -> None:
    stage.page.ask_and_wait("How long can a whale dive?")
    stage.click(".of-question .edit")
    stage.page.wait(".editor textarea")


def wide(stage: Stage) -> None:
    stage.page.ask_and_wait("What is wide?")
    stage.page.wait(".answer table")


def failing(stage: Stage) -> None:
    stage.page.ask("Which ship exploded?")
    stage.page.wait(".notice.error")


def deleted(stage: Stage) -> None:
    sidebar(stage)
    stage.click("#list .more")
    stage.click("#menu .entry:last-child")
    stage.page.wait(".toast button")
    stage.page.browser.execute_script("document.documentElement.classList.remove('bar-over')")
    ActionChains(stage.page.browser).move_to_element(stage.page.find(".toast button")).perform()


def sidebar(stage: Stage) -> None:
    for question in ("Which fish glows?", QUESTION):
        stage.click("#new")
        stage.page.ask_and_wait(question)
    stage.page.until(lambda: stage.page.count("#list a") == 2)
    stage.page.browser.execute_script("document.documentElement.classList.add('bar-over')")


def menu(stage: Stage) -> None:
    sidebar(stage)
    stage.click("#list .more")
    stage.page.wait("#menu:popover-open")


def search(stage: Stage) -> None:
    stage.page.ask_and_wait(QUESTION)
    stage.click("#search-open")
    stage.page.type("light")
    stage.page.wait("#search-results mark")


def settings(stage: Stage) -> None:
    stage.click("#settings-open")
    stage.page.find("#schema").send_keys("{")
    stage.click("#settings-form [type=submit]")
    stage.page.wait("#schema-wrong:not([hidden])")


def tools(stage: Stage) -> None:
    settings(stage)
    for tool in ("calculator", "files"):
        stage.click(f"#tool-{tool}")
    stage.page.browser.execute_script("document.getElementById('tool-files').scrollIntoView()")


def asking(stage: Stage) -> None:
    stage.click("#settings-open")
    stage.click("#tool-calculator")
    stage.click("#settings-form [type=submit]")
    stage.page.ask("How much of the pressure at 100 m is that of the water?")
    stage.page.wait(".ask button")


def called(stage: Stage) -> None:
    asking(stage)
    stage.click(".ask button")
    stage.page.wait_for_end()
    stage.click(".call summary")


def models(stage: Stage) -> None:
    stage.click("#library-open")
    stage.click('.model[aria-label="sparse"] summary')
    verdict = stage.page.wait(".verdict")
    stage.page.browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", verdict)


def beside(stage: Stage) -> None:
    stage.click("#beside")
    stage.page.ask("In short: how far does light reach?")
    stage.page.until(lambda: stage.page.count(".pair .meter") == 2)


def experts(stage: Stage) -> None:
    stage.page.browser.add_cookie({"name": "experts", "value": "open"})
    stage.page.reload()
    stage.model.delay_s = 0.02  # so that the panel asks for them before the end
    stage.page.ask("Tell me a long story about a whale and a diver in the sea.")
    stage.page.wait_for_end()
    stage.page.wait(".token")
    stage.click("#experts summary")


def finetune(stage: Stage) -> None:
    stage.choose("small", "tune_model")
    stage.page.wait("#finetune[open]")
    stage.page.drop("chats.jsonl", LINES, "", "finetune-drop")
    stage.page.wait("#finetune-plan dl")
    stage.click("#finetune summary")


def learning(stage: Stage) -> None:
    finetune(stage)
    stage.click("#finetune-form [type=submit]")
    stage.page.wait("#finetune-curve polyline.trained")


def learned(stage: Stage) -> None:
    learning(stage)
    stage.tuning.go.set()
    stage.page.until(lambda: stage.page.count("#finetune-sample dt") == 4)


def help(stage: Stage) -> None:
    stage.click("#help-open")


def confirm(stage: Stage) -> None:
    stage.choose("tuned:chats", "remove_model")
    stage.page.wait("#confirm[open]")


def statistics(stage: Stage) -> None:
    stage.page.ask_and_wait("Which whale dives deepest?")
    stage.click("#stats-open")
    stage.page.wait("#charts figure")
    stage.click("summary")


def gate(stage: Stage) -> None:
    stage.page.find("#key").send_keys("fd-wrong\n")
    stage.page.wait("#wrong:not([hidden])")


STATES: dict[str, Callable[[Stage], None]] = {
    state.__name__: state
    for state in (
        *(empty, answer, streaming, branches, editing, wide, failing, sidebar, menu, deleted, search, settings, models),
        *(tools, asking, called),
        *(beside, experts, finetune, learning, learned, statistics, help, confirm, gate),
    )
}


def draw(folder: Path, names: list[str]) -> None:
    """Writes pictures of the states in all looks to ``folder``. Answers grow at the pace of a small model."""
    with (
        TemporaryDirectory() as home,
        chromium(Path(home) / "chromium") as browser,
        freedive.load("nano", cache_tokens=4096) as nano,
    ):
        os.environ["FREEDIVE_HOME"] = home
        keys.create("ann")
        real, locked = {"experts": nano}, {"gate": keys.Keys()}
        for name in names or STATES:
            browser.set_window_size(1200, 1210 if name == "answer" else 900)
            with staged(browser, locks=locked.get(name), delay_s=0.01, model=real.get(name)) as stage:
                STATES[name](stage)
                for scheme, device in LOOKS:
                    with looking(stage.page, scheme, device):
                        browser.execute_script("document.activeElement.blur()")
                        (folder / f"{name}-{scheme}-{device}.png").write_bytes(browser.get_screenshot_as_png())


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2:])
