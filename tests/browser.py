"""A real headless browser, and a user's actions on the chat page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,900"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Chromium, which `make test-all` installs if it can. Without it these tests are skipped, but fail in CI."""
    binary, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and chromedriver):
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("the chat page is not tested: install chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    # A window without a screen may lack the focus, which the page is tested for.
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    yield driver
    driver.quit()


class Page:
    """The chat page at ``url``."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)
        self.wait("#message:focus")

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def ask(self, question: str) -> None:
        self.find("#message").send_keys(question + Keys.ENTER)

    def wait(self, selector: str, seconds: float = 20) -> WebElement:
        return WebDriverWait(self.browser, seconds, 0.02).until(lambda _: self.find(selector))

    def wait_for_end(self) -> None:
        """Waits until the newest answer is complete."""
        self.wait(".turn:last-child .meter .copy")

    def errors(self) -> list[str]:
        """Returns the new messages of the browser's console."""
        return [entry["message"] for entry in self.browser.get_log("browser")]
