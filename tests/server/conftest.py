"""Fixtures of the server's tests: the echo model and a live server."""

from echo_model import fake_model, http, live_server
from ollama_setup import ollama_client

__all__ = ["fake_model", "http", "live_server", "ollama_client"]
