"""What a server reports: to Prometheus, as JSON, in a log and in traces, but never the content of requests."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_model import EchoEngine, EchoModel, serving
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import StatusCode
from patience import PATIENCE_S, wait_until
from prometheus_client.parser import text_string_to_metric_families

from freedive.errors import UserError
from freedive.server import keys
from freedive.server.keys import Keys
from freedive.server.log import line_log
from freedive.server.stats import percentiles
from freedive.server.tracing import spans, tracing

LABELS = ("route", "status", "model", "finish", "le")
SECRET_WORD = "abracadabra"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class ObservedServer:
    """A server with its model, a log of each kind, and the spans of its requests."""

    def __init__(self) -> None:
        self.model = EchoModel(script={"boom": "a\N{COLLISION SYMBOL}"})
        self.text, self.json, self.exporter = io.StringIO(), io.StringIO(), InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        tracer = provider.get_tracer("test")
        self.observers = (line_log("text", self.text), line_log("json", self.json), spans(tracer))
        self.url = ""

    def ask(self, prompt: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": "echo", "messages": [{"role": "user", "content": prompt}], **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    def lines(self, count: int) -> list[dict[str, Any]]:
        """Returns the log once it has ``count`` lines, since a request is logged after its answer has been sent."""
        wait_until(lambda: len(self.json.getvalue().splitlines()) == count)
        return [json.loads(line) for line in self.json.getvalue().splitlines()]

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Returns values by name and label values."""
        text = httpx.get(f"{self.url}/metrics").text
        return {
            (sample.name, *(sample.labels[name] for name in LABELS if name in sample.labels)): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def span(self, count: int) -> ReadableSpan:
        """Returns the last of ``count`` spans."""
        wait_until(lambda: len(self.exporter.get_finished_spans()) == count)
        return self.exporter.get_finished_spans()[-1]


@pytest.fixture
def observed() -> Iterator[ObservedServer]:
    observed = ObservedServer()
    with serving(observed.model, observers=observed.observers) as observed.url:
        yield observed


def test_requests_are_counted_by_route_status_and_model(observed: ObservedServer) -> None:
    observed.ask("hi")
    observed.ask("hi", stream=True)
    observed.ask("hi", temperature=-1)
    httpx.get(f"{observed.url}/v1/models/echo")
    httpx.get(f"{observed.url}/some/where")
    httpx.request("ODD", f"{observed.url}/v1/models")
    httpx.get(f"{observed.url}/static/main.js")
    httpx.get(f"{observed.url}/static/nothing.js")
    observed.lines(8)
    counts = {key[1:]: value for key, value in observed.metrics().items() if key[0] == "freedive_requests_total"}
    assert counts == {
        ("/v1/chat/completions", "200", "echo"): 2,
        ("/v1/chat/completions", "400", ""): 1,
        ("/v1/models/{name:path}", "200", ""): 1,
        ("none", "404", ""): 1,
        ("/v1/models", "405", ""): 1,
        ("/static", "200", ""): 1,
        ("/static", "404", ""): 1,
    }


def test_latencies_and_lengths_are_distributions(observed: ObservedServer) -> None:
    observed.ask("hello")
    observed.ask("hello", n=2)
    observed.lines(2)
    found = observed.metrics()
    assert found["freedive_prompt_tokens_sum", "echo"] == 2 * len("user: hello")
    assert found["freedive_answer_tokens_sum", "echo"] == 3 * len("user: hello")
    assert found["freedive_request_seconds_count", "echo"] == 2
    assert found["freedive_time_to_first_token_seconds_count", "echo"] == 3
    assert found["freedive_time_per_output_token_seconds_sum", "echo"] >= 3 * 0.001
    assert (
        found["freedive_request_seconds_sum", "echo"] >= found["freedive_time_to_first_token_seconds_sum", "echo"] / 3
    )
    assert ("process_resident_memory_bytes",) in found


def test_answers_are_counted_by_finish_reason(observed: ObservedServer) -> None:
    observed.ask("hi")
    observed.ask("hi there", max_tokens=2)
    observed.ask("boom", stream=True)
    observed.model.delay_s = 0.01
    body = {"model": "echo", "prompt": "word " * 500, "stream": True}
    with httpx.stream("POST", f"{observed.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
    assert observed.model.engine.generations[-1].cancelled.wait(PATIENCE_S)
    observed.lines(4)
    ends = {key[2]: value for key, value in observed.metrics().items() if key[0] == "freedive_answers_total"}
    assert ends == {"stop": 1, "length": 1, "failed": 1, "left": 1}


@dataclass(frozen=True)
class ManyStats:
    running: int = 1
    waiting: int = 2
    free_pages: int = 3
    num_steps: int = 4
    something_new: float = 0.5
    words: str = "no number"


def test_engines_are_read_when_they_are_scraped_whatever_they_count(
    observed: ObservedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EchoEngine, "stats", lambda self: ManyStats())
    found = observed.metrics()
    assert found["freedive_requests_running", "echo"] == 1
    assert found["freedive_requests_waiting", "echo"] == 2
    assert found["freedive_cache_free_pages", "echo"] == 3
    assert found["freedive_engine_steps_total", "echo"] == 4
    assert found["freedive_engine_something_new", "echo"] == 0.5
    assert not any("words" in key[0] for key in found)


def test_names_and_types_are_as_prometheus_advises(observed: ObservedServer) -> None:
    observed.ask("hi")
    text = httpx.get(f"{observed.url}/metrics").text
    for family in text_string_to_metric_families(text):
        if family.name.startswith("freedive_") and not family.name.endswith("_created"):
            assert family.documentation
            assert family.type in ("counter", "gauge", "histogram")
    modern = httpx.get(f"{observed.url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")


def test_stats_are_json(observed: ObservedServer) -> None:
    for _ in range(3):
        observed.ask("hello")
    observed.lines(3)
    stats = httpx.get(f"{observed.url}/v1/stats").json()
    (numbers,) = stats["models"].values()
    assert numbers.pop("experts_on_disk")["hits"] == 5
    engine = {"running": 0, "waiting": 0, "num_read": 33, "num_generated": 33, "num_cached": 0, "num_restored": 0}
    engine |= {"free_pages": 64, "num_pages": 64, "known_pages": 0}
    assert numbers == {"bytes": 1 << 20, "resident_bytes": 1 << 19, "lossy": {}, **engine}
    assert stats["uptime_s"] > 0
    assert stats["memory"]["peak_bytes"] > 1 << 20
    assert 0 < stats["latencies"]["first_token_s"]["p50"] <= stats["latencies"]["request_s"]["p99"]
    assert stats["callers"] == {"": {"requests": 3, "prompt_tokens": 33, "generated_tokens": 33}}


def test_the_load_of_experts_is_reported(observed: ObservedServer) -> None:
    experts = httpx.get(f"{observed.url}/v1/stats/experts").json()
    assert experts["models"] == {"echo": [[3, 1, 0, 0], [0, 4, 0, 0]]}
    assert experts["on_disk"]["echo"][1] == {"hits": 2, "misses": 2, "read_bytes": 1024, "stalled_s": 0.25}


def test_experts_on_disk_are_counted(observed: ObservedServer) -> None:
    numbers = httpx.get(f"{observed.url}/v1/stats").json()["models"]["echo"]["experts_on_disk"]
    totals = {"hits": 5, "misses": 3, "read_bytes": 1536, "stalled_s": 0.75}
    assert numbers == {"slots_bytes": 4096, "used_bytes": 1024, **totals}
    metrics = httpx.get(f"{observed.url}/metrics").text
    assert 'freedive_expert_misses_total{model="echo"} 3.0' in metrics
    assert 'freedive_expert_slots_used_bytes{model="echo"} 1024.0' in metrics


def test_percentiles_are_observed_values() -> None:
    assert percentiles(range(1, 101)) == {"p50": 50, "p90": 90, "p99": 99}
    assert percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}
    assert percentiles([]) == {}


def test_each_request_is_a_line_of_the_log(observed: ObservedServer) -> None:
    observed.ask("hello", {"x-request-id": "mine"})
    observed.ask("hello", temperature=-1)
    httpx.get(f"{observed.url}/health")
    first, second, third = observed.lines(3)
    assert first["id"] == "mine"
    assert (first["route"], first["status"], first["model"]) == ("/v1/chat/completions", 200, "echo")
    assert (first["prompt_tokens"], first["generated_tokens"], first["finish"]) == (11, 11, ["stop"])
    assert 0 < first["first_token_s"] <= first["seconds"]
    assert (second["status"], third["route"]) == (400, "/health")
    text = observed.text.getvalue().splitlines()
    assert len(text) == 3
    assert " POST /v1/chat/completions 200 id=mine " in text[0]
    assert "generated_tokens=11" in text[0]


def test_callers_are_named_and_their_questions_go_by_their_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    headers = {"authorization": f"Bearer {keys.create('ann')}"}
    observed = ObservedServer()
    with serving(observed.model, keys=Keys(), observers=observed.observers) as observed.url:
        observed.ask("hi", headers, user="bob")
        observed.ask("hi")
        observed.lines(2)
        stats = httpx.get(f"{observed.url}/v1/stats", headers=headers).json()
    assert [line["caller"] for line in observed.lines(3)][:2] == ["ann", ""]
    assert stats["callers"].keys() == {"ann"}
    assert observed.exporter.get_finished_spans()[0].attributes["enduser.id"] == "ann"


def test_content_and_keys_appear_nowhere(observed: ObservedServer) -> None:
    observed.ask(SECRET_WORD, {"authorization": "Bearer fd-secret"}, user=SECRET_WORD)
    httpx.get(f"{observed.url}/{SECRET_WORD}?key={SECRET_WORD}")
    observed.lines(2)
    seen = [span.to_json() for span in observed.exporter.get_finished_spans()]
    for reported in (
        observed.text.getvalue(),
        observed.json.getvalue(),
        httpx.get(f"{observed.url}/metrics").text,
        *seen,
    ):
        assert SECRET_WORD not in reported
        assert "fd-secret" not in reported
    assert SECRET_WORD not in httpx.get(f"{observed.url}/v1/stats").text


def test_a_request_is_a_span_under_its_clients(observed: ObservedServer) -> None:
    observed.ask("hello", {"traceparent": TRACE})
    span = observed.span(1)
    assert span.name == "chat echo"
    assert f"{span.context.trace_id:032x}" == TRACE.split("-")[1]
    assert f"{span.parent.span_id:016x}" == TRACE.split("-")[2]
    (first,) = span.events
    assert first.name == "first token"
    assert span.start_time < first.timestamp <= span.end_time
    known = {value for name, value in vars(gen_ai_attributes).items() if isinstance(value, str)}
    own = {name for name in span.attributes if name.startswith("gen_ai.")}
    assert own <= known
    assert span.attributes["gen_ai.usage.output_tokens"] == 11
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert span.status.status_code is StatusCode.UNSET


def test_a_failed_answer_is_a_failed_span(observed: ObservedServer) -> None:
    assert observed.ask("boom", stream=True).status_code == 200
    assert observed.span(1).status.status_code is StatusCode.ERROR
    assert observed.ask("untemplated").status_code == 500
    assert observed.span(2).attributes["error.type"] == "500"
    body = {"model": "echo", "prompt": "hi"}
    httpx.post(f"{observed.url}/v1/completions", json=body)
    assert observed.span(3).name == "text_completion echo"


def test_traces_need_an_extra_only_if_they_are_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing({}) is None
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UserError, match=r"pip install 'freedive\[otel\]'"):
        tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"})
