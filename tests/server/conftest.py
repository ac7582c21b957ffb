"""The echo model and a live server over it."""

from echo_model import fake_model, http, live_server

__all__ = ["fake_model", "http", "live_server"]
