"""Variants of paths, and encoded bodies."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest


@pytest.mark.parametrize(
    "path", ["/", "/health", "/v1/models", "/v1/models/echo", "/api/tags", "/api/version", "/docs"]
)
def test_head_returns_the_headers_of_get(http: httpx.Client, path: str) -> None:
    response = http.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == http.get(path).headers["content-type"]


def test_head_is_refused_where_get_is(http: httpx.Client) -> None:
    assert http.head("/v1/chat/completions").status_code == 405
    assert http.head("/v1/nothing").status_code == 404


@pytest.mark.parametrize("path", ["//v1/chat/completions", "/v1//chat/completions", "/v1/chat/completions/"])
def test_extra_slashes_are_ignored(http: httpx.Client, path: str) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    assert http.post(str(http.base_url).rstrip("/") + path, json=body).status_code == 200


def test_an_encoded_body_is_refused_by_its_encoding(http: httpx.Client) -> None:
    body = gzip.compress(json.dumps({"model": "echo"}).encode())
    response = http.post("/v1/chat/completions", content=body, headers={"content-encoding": "gzip"})
    assert response.status_code == 415
    assert "gzip" in response.json()["error"]["message"]
