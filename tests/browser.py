"""A real headless browser, and a user's actions on the chat page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S
from selenium import webdriver
from selenium.common.exceptions import SessionNotCreatedException, StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,900 "
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
)
PHONE = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
LAST_ANSWER = ".of-answer:last-child"
DROP = """
const [name, type, text, place] = arguments;
const transfer = new DataTransfer();
transfer.items.add(new File([text], name, { type }));
const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
document.getElementById(place).dispatchEvent(event);
"""
PASTE = """
const transfer = new DataTransfer();
transfer.setData("text/plain", arguments[0]);
const event = new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
document.getElementById("message").dispatchEvent(event);
return event.defaultPrevented;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Chromium, which `make test-all` installs if it can. Without it these tests are skipped, but fail in CI."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("the chat page is not tested: install chromium and chromium-driver")
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """Runs Chromium, which keeps its files in ``folder``."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={folder}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = started(options)
    # A window without a screen may lack the focus, which the page is tested for.
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    try:
        yield driver
    finally:
        driver.quit()


def started(options: webdriver.ChromeOptions, attempts: int = 3) -> webdriver.Chrome:
    """Starts Chromium, which on a busy machine may not open its port in time."""
    chromedriver = shutil.which("chromedriver")
    for _ in range(attempts - 1):
        with suppress(SessionNotCreatedException):
            return webdriver.Chrome(options=options, service=Service(chromedriver))
    return webdriver.Chrome(options=options, service=Service(chromedriver))


def waited(
    browser: webdriver.Chrome, get: Callable[[], Any], seconds: float, what: str, *passing: type[Exception]
) -> Any:
    """Returns what ``get`` returns once that is true; fails with what the page shows if it does not come in time."""
    try:
        return WebDriverWait(browser, seconds, 0.02, passing).until(lambda _: get())
    except TimeoutException:
        shown = browser.execute_script("return [document.readyState, document.body.innerText.slice(0, 1000)]")
        said = [entry["message"] for entry in browser.get_log("browser")]
        pytest.fail(f"{what} did not come in {seconds:.0f} s at {browser.current_url}: {shown}, {said}")


class Page:
    """The chat page at ``url``."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Waits until the page shows what its address names, or asks for a key."""
        self.wait("html.ready, #gate[open]")

    def reload(self) -> None:
        self.browser.refresh()
        self.wait_until_ready()

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def count(self, selector: str) -> int:
        return len(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def click(self, selector: str) -> None:
        """Clicks with the mouse over the element, whose controls may appear only then."""
        element = self.find(selector)
        ActionChains(self.browser).move_to_element(element).click().perform()

    def press(self, *keys: str) -> None:
        """Presses keys together, wherever the focus is."""
        chain = ActionChains(self.browser)
        for key in keys[:-1]:
            chain.key_down(key)
        chain.send_keys(keys[-1])
        for key in reversed(keys[:-1]):
            chain.key_up(key)
        chain.perform()

    def type(self, text: str) -> None:
        """Types into whatever has the focus."""
        ActionChains(self.browser).send_keys(text).perform()

    def ask(self, question: str) -> None:
        self.find("#message").send_keys(question + Keys.ENTER)

    def ask_and_wait(self, question: str) -> str:
        """Asks, waits for the end, and returns the answer."""
        self.ask(question)
        self.until(lambda: (self.texts(".question") or [""])[-1] == question)
        self.wait_for_end()
        return self.texts(".answer")[-1]

    def wait(self, selector: str, seconds: float = PATIENCE_S) -> WebElement:
        return waited(self.browser, lambda: self.find(selector), seconds, selector)

    def until(self, holds: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
        """Waits until ``holds`` returns something true; elements may be replaced meanwhile."""
        waited(self.browser, holds, seconds, "a condition", StaleElementReferenceException, IndexError)

    def wait_for_end(self) -> None:
        """Waits until the newest answer is complete."""
        self.wait(f"{LAST_ANSWER}:not([aria-busy]) .actions .copy")

    def drop(self, name: str, text: str, media_type: str = "text/plain", place: str = "scroller") -> None:
        """Drops a file on the element with the id ``place``: by default on the conversation."""
        self.browser.execute_script(DROP, name, media_type, text, place)

    def paste(self, text: str) -> bool:
        """Pastes into the message; returns whether the page took it as something else than text."""
        return bool(self.browser.execute_script(PASTE, text))

    def errors(self) -> list[str]:
        """Returns the new messages of the browser's console."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    @contextmanager
    def phone(self) -> Iterator[None]:
        """Shows the page as on a phone while the block runs."""
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        try:
            yield
        finally:
            self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
