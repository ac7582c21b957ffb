"""Fixtures of the chat page's tests: a browser, the echo model, and a live server."""

from browser import browser
from echo_model import fake_model, live_server

__all__ = ["browser", "fake_model", "live_server"]
