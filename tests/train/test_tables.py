"""Tables and pairs of question and answer become chats, and every wrong line is named."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.errors import UserError
from freedive.train.data import sources
from freedive.train.data.pairs import ANSWERS, QUESTIONS, chat_of


def read(path: Path) -> list[dict[str, Any]]:
    return list(sources.read([str(path)]))


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def written(folder: Path, content: str | bytes, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_question_and_an_answer_have_many_names(question: str, answer: str) -> None:
    assert {"messages": chat_of({question.title(): "a", f" {answer} ": "b", "id": 7}, "")} == chat("a", "b")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "Translate", "input": "Haus", "output": "house"}, chat("Translate\n\nHaus", "house")),
        ({"instruction": "Greet", "input": "", "output": "Hello"}, chat("Greet", "Hello")),
        ({"text": "whole", "answer": "b", "question": "a"}, {"text": "whole"}),
    ],
)
def test_records_of_known_data_sets_are_read(record: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    assert read(written(tmp_path, json.dumps(record), "x.jsonl")) == [expected]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "question": "b", "answer": "c"}, "line 2 has both prompt and question"),
        ({"prompt": "a", "answer": "c", "output": "d"}, "line 2 has both answer and output"),
        ({"prompt": "a", "answer": ""}, "line 2 has no text as answer"),
        ({"prompt": None, "answer": "b"}, "line 2 has no text as prompt"),
        ({"prompt": "a", "answer": 7}, "line 2 has no text as answer"),
        ({"prompt": "a"}, "line 2 is no record"),
        ({"prompt": "a", "answer": "b", "system": "Be brief"}, "line 2 has system"),
    ],
)
def test_a_pair_that_is_not_whole_is_named(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    first = json.dumps({"prompt": "a", "answer": "b"})
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, f"{first}\n{json.dumps(record)}\n", "x.jsonl"))


@pytest.mark.parametrize(
    "content",
    [
        "Question,Answer\na,b\n",
        "id;question;answer\r\n1;a;b\r\n",
        "question\tanswer\na\tb",
        '"question","answer"\n\n"a","b"\n,\n',
        "\ufeffquestion,answer\na,b\n",
    ],
)
def test_tables_are_read_whatever_separates_their_cells(content: str, tmp_path: Path) -> None:
    assert read(written(tmp_path, content)) == [chat("a", "b")]
    assert read(written(tmp_path, content.encode("utf-16"), "y.TSV")) == [chat("a", "b")]


def test_cells_are_text_also_if_they_look_like_formulas_or_numbers(tmp_path: Path) -> None:
    content = 'question,answer\n"=1+1,\n""so""",007\n'
    assert read(written(tmp_path, content)) == [chat('=1+1,\n"so"', "007")]


def test_a_table_may_have_texts(tmp_path: Path) -> None:
    assert read(written(tmp_path, "text,label\nyes,1\n")) == [{"text": "yes"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "line 2 is no record"),
        ("question,question,answer\n", "line 1 names two columns 'question'"),
        ("question,answer\na,b\nc\n", "line 3 has 1 cells, and there are 2 columns"),
        ("question,answer\na,b,c\n", "line 2 has 3 cells"),
        ('question,answer\n"a\n1",b\nc,\n', "line 4 has no text as answer"),
        ('question,answer\na,b\n"c,d\n', "line 3 is not a row of a table"),
        ('question,answer\na,"b"c\n', "line 2 is not a row of a table"),
        (f"question,answer\na,{'x' * 200_000}\n", "line 2 is not a row of a table: field larger"),
        ("question,answer\na,b\né,c\n".encode("latin-1"), "UTF-16 .line 3."),
        ("question,answer\n", "holds no text"),
        ("", "holds no text"),
    ],
)
def test_a_damaged_table_is_refused_by_its_line(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, content))


CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0\ufeff"), min_size=1).filter(
    str.strip
)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1), separator=st.sampled_from(",;\t"))
def test_what_a_spreadsheet_writes_is_read_back(
    rows: list[tuple[str, str]], separator: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = io.StringIO()
    csv.writer(table, delimiter=separator, lineterminator="\n").writerows([("question", "answer"), *rows])
    path = written(tmp_path_factory.getbasetemp(), table.getvalue(), "property.csv")
    assert read(path) == [chat(*row) for row in rows]


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200), name=st.sampled_from(["x.csv", "x.jsonl", "x.json", "x.tsv"]))
def test_any_bytes_are_read_or_refused_with_a_reason(
    content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = written(tmp_path_factory.getbasetemp(), content, name)
    try:
        outcome = name if read(path) else "nothing"
    except UserError as error:
        outcome = str(error)
    assert name in outcome
