"""A browser, the echo model, and a live server over it."""

from browser import browser
from echo_model import fake_model, live_server

__all__ = ["browser", "fake_model", "live_server"]
