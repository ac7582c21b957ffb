"""The page's private API of conversations: every route, two keys, and pages of other origins."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, served, serving
from fastapi.testclient import TestClient

from freedive.config import ServerConfig
from freedive.server import keys
from freedive.server.app import create_app

AT = "/app/conversations"


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with TestClient(create_app(served(EchoModel())), base_url="http://localhost") as client:
        yield client


def create(http: TestClient | httpx.Client, **body: Any) -> str:
    answer = http.post(AT, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def say(http: TestClient, id: str, content: str, **more: Any) -> dict[str, Any]:
    answer = http.post(f"{AT}/{id}/messages", json={"content": content, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_conversation_is_created_read_changed_and_deleted(http: TestClient) -> None:
    id = create(http, folder="work", settings={"model": "echo", "sampling": {"top_p": 0.5}, "system": "Be brief."})
    first = say(http, id, "hello")
    answer = say(http, id, "hi", parent=first["id"], role="assistant", model="echo", reasoning="hm")
    other = say(http, id, "good day", parent=first["id"], role="assistant")
    whole = http.get(f"{AT}/{id}").json()
    assert [each["content"] for each in whole["messages"]] == ["hello", "hi", "good day"]
    assert (whole["leaf"], whole["title"], whole["named"]) == (other["id"], "hello", False)
    assert whole["settings"] == {"model": "echo", "system": "Be brief.", "sampling": {"top_p": 0.5}}
    changes = {"title": "Greeting", "folder": "", "pinned": True, "leaf": answer["id"], "settings": {"system": "x"}}
    changed = http.patch(f"{AT}/{id}", json=changes).json()
    assert {name: changed[name] for name in changes} == changes
    assert changed["named"]
    assert http.get(AT).json()["conversations"][0]["id"] == id
    assert http.delete(f"{AT}/{id}").status_code == 200
    assert http.get(f"{AT}/{id}").status_code == 404
    assert http.patch(f"{AT}/{id}", json={"deleted": False}).json()["title"] == "Greeting"
    assert len(http.get(f"{AT}/{id}").json()["messages"]) == 3
    assert http.delete(f"{AT}/{id}?forever=true").status_code == 200
    assert http.patch(f"{AT}/{id}", json={"deleted": False}).status_code == 404


def test_lists_folders_and_search(http: TestClient) -> None:
    ids = [create(http, folder="shelf", title=f"number {number}") for number in range(5)]
    say(http, ids[2], "学习率怎么选")
    first = http.get(AT, params={"folder": "shelf", "limit": 3}).json()
    rest = http.get(AT, params={"folder": "shelf", "limit": 3, "after": first["next"]}).json()
    assert {each["id"] for each in first["conversations"] + rest["conversations"]} == set(ids)
    assert rest["next"] is None
    assert {"name": "shelf", "conversations": 5} in http.get(f"{AT}/folders").json()["folders"]
    [hit] = http.get(f"{AT}/search", params={"q": "学习"}).json()["hits"]
    assert (hit["id"], hit["snippet"]["marks"]) == (ids[2], [[0, 2]])
    assert http.get(f"{AT}/search", params={"q": '" OR * ('}).status_code == 200
    assert http.get(AT, params={"after": "x"}).status_code == 400


def test_files_are_added_read_and_removed(http: TestClient) -> None:
    id = create(http)
    file = http.post(f"{AT}/{id}/files", json={"name": "a.py", "media_type": "text/x-python", "text": "x = 1"}).json()
    assert (file["num_bytes"], file["num_tokens"]) == (5, 5)
    message = say(http, id, "see", files=[file["id"]])
    assert message["files"] == [file["id"]]
    assert http.get(f"{AT}/{id}/files/{file['id']}").json() == {"text": "x = 1"}
    assert http.delete(f"{AT}/{id}/files/{file['id']}").status_code == 200
    whole = http.get(f"{AT}/{id}").json()
    assert (whole["files"], whole["messages"][0]["files"]) == ([], [])


def test_temporary_conversations_are_not_listed(http: TestClient) -> None:
    id = create(http, temporary=True)
    say(http, id, "whisper")
    assert http.get(f"{AT}/{id}").json()["messages"][0]["content"] == "whisper"
    assert id not in [each["id"] for each in http.get(AT, params={"limit": 200}).json()["conversations"]]
    assert http.get(f"{AT}/search", params={"q": "whisper"}).json()["hits"] == []
    assert b"whisper" not in http.get(f"{AT}/export").content


@pytest.mark.parametrize("encoded", [False, True])
def test_exports_are_imported_again(encoded: bool) -> None:
    with TestClient(create_app(served(EchoModel())), base_url="http://localhost") as http:
        id = create(http, title='Grüße/"x"\n<b>', folder="work")
        first = say(http, id, "hello")
        say(http, id, "hi", parent=first["id"], role="assistant")
        create(http, title="second")
        one, whole = http.get(f"{AT}/{id}/export"), http.get(f"{AT}/export")
        assert "attachment" in one.headers["content-disposition"]
        assert "\n" not in one.headers["content-disposition"]
        assert (len(one.json()), len(whole.json())) == (1, 2)
        file = {"base64": base64.b64encode(whole.content).decode()} if encoded else {"text": whole.text}
        assert len(http.post(f"{AT}/import", json=file).json()["conversations"]) == 2
        assert http.get(f"{AT}/export").json() == whole.json() * 2
        markdown = http.get(f"{AT}/{id}/export", params={"format": "markdown"})
        assert markdown.text == '# Grüße/"x" <b>\n\n## User\n\nhello\n\n## Assistant\n\nhi\n'
        assert markdown.headers["content-type"] == "text/markdown; charset=utf-8"
        assert http.get(f"{AT}/export", params={"format": "markdown"}).text.count("\n---\n") == 3


def test_an_import_is_all_or_nothing(http: TestClient) -> None:
    before = http.get(f"{AT}/export").content
    good = json.loads(before)[0] if json.loads(before) else {"freedive": 1}
    refused = http.post(f"{AT}/import", json={"text": json.dumps([good, {"freedive": 1, "leaf": 7}])})
    assert refused.status_code == 400
    assert "Conversation 2: The conversation is damaged" in refused.json()["error"]["message"]
    for body in ({}, {"text": "[]", "base64": ""}, {"base64": "?"}, {"text": "no"}):
        assert http.post(f"{AT}/import", json=body).status_code == 400
    assert http.get(f"{AT}/export").content == before


INJECTIONS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE conversation; --",
    "{{ 7 * 7 }}",
    "\u202egnp.exe",
    "javascript:alert(1)",
    "a\r\nSet-Cookie: x=1",
    "../../etc/passwd",
)


@pytest.mark.parametrize("text", INJECTIONS)
def test_injected_texts_stay_texts(http: TestClient, text: str) -> None:
    id = create(http, title=text, folder=text)
    file = http.post(f"{AT}/{id}/files", json={"name": text, "media_type": text, "text": text}).json()
    say(http, id, text, files=[file["id"]])
    whole = http.get(f"{AT}/{id}")
    assert whole.headers["content-type"] == "application/json"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert [whole.json()[name] for name in ("title", "folder")] == [text, text]
    assert (whole.json()["messages"][0]["content"], whole.json()["files"][0]["name"]) == (text, text)
    assert [each["id"] for each in http.get(AT, params={"folder": text}).json()["conversations"]] == [id]
    export = http.get(f"{AT}/{id}/export", params={"format": "markdown"})
    assert "set-cookie" not in export.headers
    assert export.headers["content-disposition"].startswith("attachment;")


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "", {"title": "x" * 301}, "title"),
        ("POST", "", {"settings": {"unknown": 1}}, "unknown"),
        ("POST", "", {"folder": 1}, "folder"),
        ("PATCH", "/{id}", {"pinned": "yes"}, "pinned"),
        ("PATCH", "/{id}", {"deleted": True}, "deleted"),
        ("PATCH", "/{id}", {"title": "\ud800"}, "title"),
        ("POST", "/{id}/messages", {}, "content"),
        ("POST", "/{id}/messages", {"content": "x", "role": "system"}, "role"),
        ("POST", "/{id}/messages", {"content": "x", "role": "assistant"}, "parent"),
        ("POST", "/{id}/files", {"name": "", "text": "x"}, "name"),
    ],
)
def test_wrong_bodies_are_refused(http: TestClient, method: str, path: str, body: Any, param: str) -> None:
    id = create(http)
    data = json.dumps(body).encode()
    refused = http.request(method, f"{AT}{path.format(id=id)}", content=data)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_unknown_ids_are_not_found(http: TestClient) -> None:
    id = create(http)
    for method, path in [
        ("GET", "/conv_0"),
        ("GET", "/temp_0"),
        ("DELETE", "/conv_0"),
        ("GET", "/conv_0/export"),
        ("GET", f"/{id}/files/file_0"),
        ("DELETE", f"/{id}/files/file_0"),
    ]:
        assert http.request(method, f"{AT}{path}").status_code == 404, path
    assert http.patch(f"{AT}/{id}", json={"leaf": "msg_0"}).status_code == 404
    assert http.post(f"{AT}/{id}/messages", json={"content": "x", "parent": "msg_0"}).status_code == 404


def test_one_key_sees_nothing_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    ann, bob = ({"authorization": f"Bearer {keys.create(name)}"} for name in ("ann", "bob"))
    path = tmp_path / "conversations.sqlite"
    with TestClient(create_app(served(EchoModel()), keys=keys.Keys(), conversations=path)) as http:
        assert http.get(AT).status_code == 401
        ids = [
            http.post(AT, json={"title": "secret", "temporary": each}, headers=ann).json()["id"]
            for each in (0 > 1, 1 > 0)
        ]
        for id in ids:
            file = http.post(f"{AT}/{id}/files", json={"name": "secret", "text": "x"}, headers=ann).json()["id"]
            message = http.post(f"{AT}/{id}/messages", json={"content": "secret"}, headers=ann).json()["id"]
            before = http.get(f"{AT}/{id}", headers=ann).json()
            assert before["messages"][0]["id"] == message
            for method, end, body in [
                ("GET", "", None),
                ("PATCH", "", {"title": "mine"}),
                ("PATCH", "", {"deleted": False}),
                ("DELETE", "", None),
                ("DELETE", "?forever=true", None),
                ("GET", "/export", None),
                ("POST", "/messages", {"content": "x"}),
                ("POST", "/messages", {"content": "x", "parent": message, "role": "assistant"}),
                ("POST", "/files", {"name": "x", "text": "x"}),
                ("GET", f"/files/{file}", None),
                ("DELETE", f"/files/{file}", None),
            ]:
                answer = http.request(method, f"{AT}/{id}{end}", json=body, headers=bob)
                assert answer.status_code == 404, (method, end)
                assert "secret" not in answer.text
            assert http.get(f"{AT}/{id}", headers=ann).json() == before
        assert http.get(AT, headers=bob).json()["conversations"] == []
        assert http.get(f"{AT}/search?q=secret", headers=bob).json()["hits"] == []
        assert http.get(f"{AT}/folders", headers=bob).json()["folders"] == []
        assert http.get(f"{AT}/export", headers=bob).json() == []
    with TestClient(create_app(served(EchoModel()), keys=keys.Keys(), conversations=path)) as http:
        assert [each["id"] for each in http.get(AT, headers=ann).json()["conversations"]] == ids[:1]


FOREIGN: list[dict[str, str]] = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:1"},
    {"origin": "http://allowed.example"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://allowed.example"},
]
REQUESTS = [
    ("GET", "", None),
    ("GET", "/search?q=secret", None),
    ("GET", "/folders", None),
    ("GET", "/export", None),
    ("POST", "", {"title": "theirs"}),
    ("POST", "/import", {"text": '[{"freedive": 1}]'}),
    ("GET", "/{id}", None),
    ("PATCH", "/{id}", {"title": "theirs"}),
    ("DELETE", "/{id}", None),
    ("POST", "/{id}/messages", {"content": "theirs"}),
    ("POST", "/{id}/files", {"name": "theirs", "text": "theirs"}),
]


def test_a_page_of_another_origin_can_neither_read_nor_write() -> None:
    config = ServerConfig(origins=("http://allowed.example",))
    with serving(EchoModel(), config=config) as url, httpx.Client(base_url=url) as client:
        id = create(client, title="secret")
        before = client.get(f"{AT}/export").content
        for headers in FOREIGN:
            for method, path, body in REQUESTS:
                answer = client.request(method, f"{AT}{path.format(id=id)}", json=body, headers=headers)
                assert answer.status_code == 403, (headers, method, path)
                assert "secret" not in answer.text
            form = client.post(AT, content="title=theirs", headers={**headers, "content-type": "text/plain"})
            assert form.status_code == 403
        assert client.get(f"{AT}/export").content == before


def test_the_servers_own_page_and_its_downloads_are_allowed() -> None:
    with serving(EchoModel()) as url, httpx.Client(base_url=url) as client:
        for headers in ({"origin": url, "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": url}):
            for path in ("", "/export"):
                assert client.get(f"{AT}{path}", headers=headers).status_code == 200
        assert client.post(AT, json={}, headers={"origin": url, "sec-fetch-site": "same-origin"}).status_code == 200


def test_a_key_does_not_open_the_conversations_to_other_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    headers = {"authorization": f"Bearer {keys.create('ann')}"}
    with serving(EchoModel(), keys=keys.Keys()) as url, httpx.Client(base_url=url, headers=headers) as client:
        assert client.get(AT).status_code == 200
        for foreign in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}):
            assert client.get(AT, headers=foreign).status_code == 403
        behind_proxy = {"origin": "https://chat.example", "sec-fetch-site": "same-origin"}
        assert client.post(AT, json={}, headers=behind_proxy).status_code == 200


def test_the_private_routes_are_not_part_of_the_described_api(http: TestClient) -> None:
    assert not any(path.startswith("/app") for path in http.get("/openapi.json").json()["paths"])


def test_what_another_device_said_meanwhile_is_not_removed_as_empty(http: TestClient) -> None:
    id = create(http)
    say(http, id, "hello")
    assert http.delete(f"{AT}/{id}?forever=true&if_empty=true").json() == {"id": id, "deleted": False}
    assert len(http.get(f"{AT}/{id}").json()["messages"]) == 1
    id = create(http)
    assert http.delete(f"{AT}/{id}?forever=true&if_empty=true").json() == {"id": id, "deleted": True}
    assert http.get(f"{AT}/{id}").status_code == 404
