"""PDF files: their text, and refusals of those without one, in a process with limits."""

from __future__ import annotations

import base64
import io
import time
import zlib

import httpx
import pytest
from answers_client import AT, sent
from pypdf import PdfWriter

from freedive.errors import UserError
from freedive.server.conversations import pdf, pdf_worker
from freedive.server.conversations.pdf import pdf_text


def made(stream: bytes, *, compressed: bool = False) -> bytes:
    """Returns a PDF file of one page with this content."""
    data = zlib.compress(stream) if compressed else stream
    coding = b"/Filter /FlateDecode " if compressed else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< " + coding + b"/Length " + str(len(data)).encode() + b" >>\nstream\n" + data + b"\nendstream",
    ]
    body, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(body))
        body += str(number).encode() + b" 0 obj\n" + each + b"\nendobj\n"
    table = b"".join(f"{place:010d} 00000 n \n".encode() for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    tail = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF".encode()
    return body + head + table + tail


TEXT = made(b"BT /F1 12 Tf 72 720 Td (Dive freely today) Tj ET")


def encrypted() -> bytes:
    writer = PdfWriter(clone_from=io.BytesIO(TEXT))
    writer.encrypt("secret", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def test_the_text_of_a_pdf_file_is_kept_and_counted(http: httpx.Client) -> None:
    id = sent(http, "")["id"]
    body = {"name": "dive.pdf", "media_type": "application/pdf", "base64": base64.b64encode(TEXT).decode()}
    file = sent(http, f"/{id}/files", **body)
    assert (file["name"], file["media_type"], file["num_tokens"]) == ("dive.pdf", "application/pdf", 17)
    assert http.get(f"{AT}/{id}/files/{file['id']}").json() == {"text": "Dive freely today"}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "damaged"),
        (b"no pdf at all", "damaged"),
        (TEXT[:150], "damaged"),
        (made(b"0 0 m 10 10 l S"), "no text"),
        (encrypted(), "encrypted"),
    ],
    ids=["nothing", "text", "half", "scan", "encrypted"],
)
def test_files_without_a_text_are_refused(http: httpx.Client, data: bytes, fault: str) -> None:
    id = sent(http, "")["id"]
    body = {"name": "x.pdf", "media_type": "application/pdf", "base64": base64.b64encode(data).decode()}
    refused = http.post(f"{AT}/{id}/files", json=body)
    assert refused.status_code == 400
    assert fault in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "base64"
    assert http.get(f"{AT}/{id}").json()["files"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text": "a", "base64": "YQ=="}, "text"),
        ({}, "text"),
        ({"base64": "YQ=="}, "media_type"),
        ({"base64": "%", "media_type": "application/pdf"}, "base64"),
    ],
    ids=str,
)
def test_a_file_has_one_content(http: httpx.Client, body: dict[str, str], param: str) -> None:
    id = sent(http, "")["id"]
    refused = http.post(f"{AT}/{id}/files", json={"name": "x", **body})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_a_file_that_grows_without_limit_is_refused_in_time() -> None:
    bomb = made(b"BT /F1 12 Tf (a) Tj ET " + b" " * (600 << 20), compressed=True)
    assert len(bomb) < 2 << 20
    before = time.monotonic()
    with pytest.raises(UserError):
        pdf_text(bomb)
    assert time.monotonic() - before < pdf.PATIENCE_S + 10


def test_the_limits_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "PATIENCE_S", 0.001)
    with pytest.raises(UserError, match="too long"):
        pdf_text(TEXT)


def test_a_long_text_is_refused() -> None:
    assert pdf_worker.read(TEXT, 5) == {"fault": "long"}
    assert pdf_worker.read(TEXT, 100) == {"text": "Dive freely today"}
