"""Corpora in every format and container, bad rows by place and reason, the text of a row, selections."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skillbasis.corpus import RowText, SelectedRow, load_corpus, row_text, write_selection
from skillbasis.corpus_formats import FORMATS, RowError, plain
from skillbasis.errors import CorpusError, UsageError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

USER = {"role": "user", "content": "2+2?"}
SYSTEM = {"role": "system", "content": "Be brief."}
GPT = {"role": "assistant", "content": "4"}
STRANGE = [
    "</s>",
    "two\nlines",
    "סכום of שתיים",
    "one\u2028line\u2029still\x85and\x0b\x0c",
    "\r",
    "<|im_end|>",
    "🙂",
    " ",
]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path


def pairs(n: int) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "prompt": f"question {i}", "response": f"answer {i}", "topic": f"t{i % 3}"} for i in range(n)
    ]


def load_one(tmp_path: Path, row: dict[str, Any], **options: Any) -> tuple[dict[str, Any], str]:
    corpus = load_corpus(write_jsonl(tmp_path / "one.jsonl", [row]), **options)
    return corpus.rows[0], corpus.format


# ---- formats


@pytest.mark.parametrize(
    ("row", "name", "prompt", "response"),
    [
        ({"messages": [SYSTEM, USER, GPT]}, "messages", [SYSTEM, USER], "4"),
        ({"messages": [USER, {"role": "assistant", "content": "hm"}, USER, GPT, USER]}, "messages", "long", "4"),
        ({"messages": [USER]}, "messages", [USER], ""),
        (
            {
                "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
                "system": "Be brief.",
            },
            "sharegpt",
            [SYSTEM, USER],
            "4",
        ),
        ({"conversations": [SYSTEM, USER, GPT], "system": "unused"}, "sharegpt", [SYSTEM, USER], "4"),
        ({"instruction": "2+2?", "input": "", "output": "4"}, "alpaca", [USER], "4"),
        (
            {"instruction": "Add", "input": "2+2", "output": "4", "history": [["2+2?", "4"]]},
            "alpaca",
            [USER, GPT, {"role": "user", "content": "Add\n2+2"}],
            "4",
        ),
        ({"input": [USER], "output": "4", "system_prompt": "Be brief."}, "llama-nemotron", [SYSTEM, USER], "4"),
        ({"prompt": "2+2?", "response": "4"}, "prompt-response", [USER], "4"),
        ({"prompt": [SYSTEM, USER], "completion": "4"}, "prompt-response", [SYSTEM, USER], "4"),
        ({"prompt": [USER], "completion": [GPT]}, "prompt-response", [USER], "4"),
        ({"prompt": "2+2?"}, "prompt-response", [USER], ""),
        ({"problem": "2+2?", "solution": "4"}, "problem-solution", [USER], "4"),
        ({"problem": "2+2?", "solution": None}, "problem-solution", [USER], ""),
        ({"problem": "2+2?", "response": "4", "solution": "four"}, "problem-solution", [USER], "4"),
        ({"question": "2+2?", "solution": "4"}, "problem-solution", [USER], "4"),
        ({"question": "2+2?", "response": "4", "system_prompt": "Be brief."}, "problem-solution", [SYSTEM, USER], "4"),
        ({"problem": "2+2?", "solution": "no", "messages": [USER, GPT]}, "messages", [USER], "4"),
        ({"prompt": "no", "problem": "2+2?", "solution": "4"}, "problem-solution", [USER], "4"),
    ],
)
def test_row_formats(tmp_path: Path, row: dict[str, Any], name: str, prompt: Any, response: str) -> None:
    got, found = load_one(tmp_path, row)
    assert found == name
    assert got["prompt"] == ([USER, {"role": "assistant", "content": "hm"}, USER] if prompt == "long" else prompt)
    assert got["response"] == response
    assert json.loads(got["source_row"]) == row


def test_columns_and_their_types(tmp_path: Path) -> None:
    row = {"z": [1, {"deep": None}], "id": 7, "prompt": "p", "response": "r", "answer": 4, "labels": "add", "a": 1.5}
    corpus = load_corpus(write_jsonl(tmp_path / "c.jsonl", [row]))
    assert corpus.rows.column_names == ["id", "prompt", "response", "answer", "labels", "extra", "source_row"]
    got = corpus.rows[0]
    assert (got["id"], got["answer"], got["labels"]) == ("7", "4", ["add"])
    assert json.loads(got["extra"]) == {"a": 1.5, "z": [1, {"deep": None}]}
    assert list(corpus.source_row("7")) == list(row), "the source row keeps the order of its columns"
    assert (len(corpus), corpus.ids, corpus.n_rejected) == (1, ["7"], 0)
    with pytest.raises(CorpusError, match="no row with id 'x'"):
        corpus.source_row("x")


def test_answer_is_the_response_only_of_a_question_without_solution(tmp_path: Path) -> None:
    gsm, _ = load_one(tmp_path, {"question": "q", "answer": "so it is #### 4"})
    assert (gsm["response"], gsm["answer"]) == ("so it is #### 4", None)
    both, _ = load_one(tmp_path, {"question": "q", "answer": "4", "solution": "so it is 4"})
    assert (both["response"], both["answer"]) == ("so it is 4", "4")
    only, _ = load_one(tmp_path, {"problem": "q", "answer": "4"})
    assert (only["response"], only["answer"]) == ("", "4")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("algebra", ["algebra"]),
        (["b", "a", "b"], ["b", "a"]),
        (3, ["3"]),
        (3.0, ["3"]),
        (0.5, ["0.5"]),
        (True, ["true"]),
        (None, []),
        (math.nan, []),
        ("", []),
        ([1, "x", None], ["1", "x"]),
    ],
)
def test_labels(tmp_path: Path, label: Any, expected: list[str]) -> None:
    own, _ = load_one(tmp_path, {"prompt": "p", "labels": label})
    named, _ = load_one(tmp_path, {"prompt": "p", "skill": label, "labels": "other"}, label_column="skill")
    assert own["labels"] == named["labels"] == expected
    assert json.loads(named["extra"]) == {"labels": "other"}, "the column not asked for is carried along"


def test_label_column_unknown_names_the_nearest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", pairs(3))
    with pytest.raises(UsageError) as error:
        load_corpus(path, label_column="topics")
    assert str(error.value) == (
        f"{path} has no column 'topics' (did you mean 'topic'?); its columns are id, prompt, response, topic"
    )
    sparse = write_jsonl(tmp_path / "sparse.jsonl", [{"prompt": "a"}, {"prompt": "b", "topic": "t"}])
    assert load_corpus(sparse, label_column="topic").rows["labels"][:] == [[], ["t"]]


def test_format_named_and_unknown(tmp_path: Path) -> None:
    row = {"problem": "2+2?", "solution": "4", "prompt": "templated", "response": "5"}
    assert load_one(tmp_path, row)[0]["response"] == "5"
    assert load_one(tmp_path, row | {"response": None}, format="problem-solution")[0]["prompt"] == [USER]
    with pytest.raises(UsageError, match=r"unknown format 'sharedgpt' \(did you mean 'sharegpt'\?\); formats are mess"):
        load_one(tmp_path, row, format="sharedgpt")
    with pytest.raises(CorpusError, match=r"line 1: the column 'messages' is missing \(columns: problem, sol"):
        load_one(tmp_path, row, format="messages")


def test_format_not_recognised_lists_columns_and_formats(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        load_one(tmp_path, {"text": "x", "score": 1}, on_bad_row="skip")
    message = str(error.value)
    assert "one.jsonl line 1: no known format has the columns text, score;" in message
    assert all(f"{name}: {form.columns}" in message for name, form in FORMATS.items())


# ---- containers


def test_containers_give_one_corpus(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row | {"response": text + "x"} for row, text in zip(pairs(len(STRANGE)), STRANGE, strict=True)]
    plain_file = write_jsonl(tmp_path / "a.jsonl", rows)
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain_file.read_bytes()))
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet, row_group_size=3)
    folder = tmp_path / "folder"
    folder.mkdir()
    # Order is that of the names, whatever the order of writing; other files are not corpus.
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(write_jsonl(tmp_path / "t.jsonl", rows[2:5]).read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows[5:]), folder / "c.parquet")
    write_jsonl(folder / "a.jsonl", rows[:2])
    (folder / "notes.json").write_text("{}")
    (folder / ".hidden.jsonl").write_text("not JSON")
    saved = tmp_path / "saved"
    datasets.Dataset.from_list(rows).save_to_disk(str(saved))
    by_split = tmp_path / "by_split"
    datasets.DatasetDict({"extra": datasets.Dataset.from_list(rows)}).save_to_disk(str(by_split))

    corpora = [load_corpus(path) for path in (plain_file, zipped, parquet, folder, saved)]
    corpora.append(load_corpus(str(by_split), split="extra"))
    for corpus in corpora:
        assert corpus.ids == [row["id"] for row in rows]
        assert corpus.rows["response"][:] == [row["response"] for row in rows]
        assert corpus.fingerprint == corpora[0].fingerprint
        assert [corpus.source_row(row["id"]) for row in rows] == rows
    with pytest.raises(UsageError, match="has no split 'extr' .did you mean 'extra'.*; it has extra"):
        load_corpus(by_split, split="extr")


def test_many_chunks_keep_their_order_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    rows = pairs(2500)
    corpus = load_corpus(write_jsonl(tmp_path / "c.jsonl", rows))
    assert corpus.rows["response"][:] == [row["response"] for row in rows]
    assert corpus.source_row("r2499") == rows[2499]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_unicode_line_separators_crlf_bom_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    first = json.dumps({"id": "a", "prompt": "x\u2028y\x85z"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + first.encode() + b"\r\n\n  \n" + b'{"id": "b", "prompt": 1}')
    with pytest.raises(CorpusError, match=r"c.jsonl line 4: 'prompt' is a number, not text;"):
        load_corpus(path)
    corpus = load_corpus(path, on_bad_row="skip")
    assert corpus.rows[0]["prompt"][0]["content"] == "x\u2028y\x85z"


def test_parquet_values_json_cannot_hold(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    day = datetime.datetime(2024, 2, 29, 12, 30)
    row = {"prompt": "p", "when": day, "raw": b"\x00\xff", "score": math.nan, "top": math.inf, "n": {"x": [1.5]}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "c.parquet")
    corpus = load_corpus(tmp_path / "c.parquet")
    assert json.loads(corpus.rows[0]["extra"]) == {
        "when": "2024-02-29T12:30:00",
        "raw": "AP8=",
        "score": None,
        "top": None,
        "n": {"x": [1.5]},
    }
    assert plain(datetime.timedelta(minutes=2)) == 120.0
    with pytest.raises(RowError, match="type complex has no JSON form"):
        plain({"x": [1j]})


def test_parquet_bad_text_is_one_rows_fault(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    prompts = pa.array([b"good", b"\xff\xfe", b"fine"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "c.parquet")
    with pytest.raises(CorpusError, match=r"c.parquet row 2: invalid UTF-8; fix the row or pass --on-bad-row skip"):
        load_corpus(tmp_path / "c.parquet")
    corpus = load_corpus(tmp_path / "c.parquet", on_bad_row="skip")
    assert [turns[0]["content"] for turns in corpus.rows["prompt"]] == ["good", "fine"]


# ---- bad rows, bad files


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1, 2]", "the row is a list, not an object"),
        (b"17", "the row is a number, not an object"),
        (b"null", "the row is null, not an object"),
        (b'{"prompt": "p", "response": "r"', "not valid JSON (Expecting ',' delimiter at character 32)"),
        (b'{"prompt": "\xff"}', "invalid UTF-8 at byte 13"),
        (b'{"prompt": NaN}', "'prompt' is NaN, not text"),
        (b'{"prompt": "p", "response": NaN}', "'response' is NaN, not text"),
        (b'{"prompt": "p", "response": ["r"]}', "turn 1 of 'response' is text, not an object"),
        (b'{"prompt": "p", "response": {"a": 1}}', "'response' is an object, not text"),
        (b'{"prompt": null}', "'prompt' is null, not text"),
        (b'{"response": "r"}', "the column 'prompt' is missing (columns: response)"),
        (b'{"prompt": " \\n", "response": "r"}', "the prompt is empty"),
        (b'{"prompt": [], "response": "r"}', "the prompt is empty"),
        (b'{"prompt": "p", "completion": [{"role": "user", "content": "x"}]}', "'completion' has no assistant turn"),
        (
            b'{"prompt": [{"role": "usr", "content": "x"}]}',
            "turn 1 of 'prompt' has the unknown role 'usr' (did you mean",
        ),
        (b'{"prompt": [{"role": "user", "content": null}]}', "the content of turn 1 of 'prompt' is null, not text"),
        (b'{"prompt": "p\\ud800"}', "a text holds half of a surrogate pair"),
        (b'{"prompt": "p", "answer": [4]}', "'answer' is a list, not text"),
        (b'{"prompt": "p", "labels": {"a": 1}}', "the label in 'labels' is an object, not text, a number or a list"),
        (b'{"prompt": "p", "id": 1.5}', "'id' is a number, not text or a whole number"),
        (b'{"prompt": "p", "id": " "}', "'id' is empty"),
        (b'{"prompt": "p", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "the row is nested too deeply"),
        (b'{"prompt": "p", "x": ' + b"9" * 5000 + b"}", "not valid JSON (Exceeds the limit"),
    ],
)
def test_bad_rows_stop_with_line_and_reason_or_are_skipped(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "c.jsonl"
    good = [json.dumps(row).encode() for row in pairs(3)]
    path.write_bytes(b"\n".join([*good[:2], line, good[2]]) + b"\n")
    with pytest.raises(CorpusError) as error:
        load_corpus(path)
    assert str(error.value).startswith(f"{path} line 3: {reason}")
    assert str(error.value).endswith("; fix the row or pass --on-bad-row skip")

    rejected = tmp_path / "out" / "rejected.jsonl"
    corpus = load_corpus(path, on_bad_row="skip", rejected_path=rejected)
    assert (corpus.ids, corpus.n_rejected) == (["r0", "r1", "r2"], 1)
    (record,) = [json.loads(text) for text in rejected.read_text().splitlines()]
    assert (record["file"], record["line"]) == (str(path), 3)
    assert record["reason"].startswith(reason)
    assert record["row"] == line.decode(errors="replace")[:1000]
    clean = load_corpus(write_jsonl(tmp_path / "clean.jsonl", pairs(3)), on_bad_row="skip", rejected_path=rejected)
    assert rejected.read_text() == "", "the rejects of an earlier run do not stay"
    assert clean.fingerprint == corpus.fingerprint


def test_duplicates_name_both_places(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", pairs(3))
    write_jsonl(folder / "b.jsonl", [{"id": "new", "prompt": "x"}, {"id": "r1", "prompt": "other"}])
    with pytest.raises(CorpusError) as error:
        load_corpus(folder)
    assert str(error.value).startswith(
        f"{folder}/b.jsonl line 2: the id 'r1' is already that of {folder}/a.jsonl line 2; fix the row"
    )
    corpus = load_corpus(folder, on_bad_row="skip")
    assert (corpus.ids, corpus.n_rejected) == (["r0", "r1", "r2", "new"], 1)
    assert corpus.source_row("r1")["prompt"] == "question 1", "the first stays"


def test_ids_made_from_content(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "x"}, {"prompt": "a", "response": "y"}, {"prompt": "a", "answer": "y"}]
    ids = load_corpus(write_jsonl(tmp_path / "c.jsonl", rows)).ids
    content = json.dumps([[{"role": "user", "content": "a"}], "x", None])
    assert ids[0] == hashlib.sha256(content.encode()).hexdigest()[:16]
    assert len(set(ids)) == 3
    with_other_column = [rows[0] | {"source": "web", "id": None}]
    assert load_corpus(write_jsonl(tmp_path / "d.jsonl", with_other_column)).ids == ids[:1]
    twice = write_jsonl(tmp_path / "e.jsonl", [rows[0], rows[1], rows[0]])
    with pytest.raises(CorpusError, match=r"line 3: without an id, its content is already that of .*e.jsonl line 1"):
        load_corpus(twice)


def test_missing_empty_and_wrong_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "train.jsonl", pairs(1))
    with pytest.raises(
        UsageError, match=r"no corpus at .*trian.jsonl \(did you mean 'train.jsonl'\?\); check the path"
    ):
        load_corpus(tmp_path / "trian.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no corpus at data/c.jsonl; check"):
        load_corpus("data/c.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(CorpusError, match=r"empty.jsonl holds no usable row \(0 rejected\)"):
        load_corpus(tmp_path / "empty.jsonl")
    (tmp_path / "bad.jsonl").write_text("x\ny\n")
    with pytest.raises(CorpusError, match=r"bad.jsonl holds no usable row \(2 rejected\)"):
        load_corpus(tmp_path / "bad.jsonl", on_bad_row="skip", rejected_path=tmp_path / "rejected.jsonl")
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 2
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CorpusError, match=r"nothing holds no .jsonl, .jsonl.gz, .parquet file"):
        load_corpus(tmp_path / "nothing")
    (tmp_path / "alpaca.json").write_text("[]")
    with pytest.raises(UsageError, match=r"none of the file types read .*jq -c '.\[\]' alpaca.json > alpaca.jsonl"):
        load_corpus(tmp_path / "alpaca.json")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CorpusError, match=r"c.parquet cannot be read as Parquet"):
        load_corpus(tmp_path / "c.parquet")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(CorpusError, match=r"saved cannot be read as a datasets folder"):
        load_corpus(tmp_path / "saved")


def test_broken_gzip_always_stops(tmp_path: Path) -> None:
    whole = gzip.compress(write_jsonl(tmp_path / "c.jsonl", pairs(2000)).read_bytes())
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    rejected = tmp_path / "rejected.jsonl"
    with pytest.raises(CorpusError, match=r"c.jsonl.gz cannot be read after line [1-9]\d* \(.*copy it again"):
        load_corpus(path, on_bad_row="skip", rejected_path=rejected)
    assert not rejected.exists()
    path.write_bytes(b"not gzip")
    with pytest.raises(CorpusError, match=r"c.jsonl.gz cannot be read \(Not a gzipped file"):
        load_corpus(path)
    path.write_bytes(whole[:40] + bytes(20) + whole[60:])
    with pytest.raises(CorpusError, match=r"c.jsonl.gz cannot be read"):
        load_corpus(path)


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str]] = []

    def offline(name: str, split: str) -> None:
        asked.append((name, split))
        raise ConnectionError("Couldn't reach the Hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(CorpusError) as error:
        load_corpus("owner/name", split="test")
    assert str(error.value) == (
        "'owner/name' is no path here and cannot be loaded from the hub, split 'test' (Couldn't reach the Hub); "
        "check the name and the network, or download it and give its path"
    )
    assert asked == [("owner/name", "test")]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(pairs(3)))
    assert load_corpus("owner/name").ids == ["r0", "r1", "r2"]
    for no_hub_id in ("name", "../owner/name", "/owner/name", "a/b/c"):
        with pytest.raises(UsageError, match="there is no corpus at"):
            load_corpus(no_hub_id)


# ---- limit, sample, fingerprint


def test_limit_takes_the_first_and_a_seed_samples_in_order(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", pairs(200))
    whole = load_corpus(path)
    first = load_corpus(path, limit=20)
    assert first.ids == whole.ids[:20]
    sample = load_corpus(path, limit=20, shuffle_seed=1)
    assert len(sample) == len(set(sample.ids)) == len(sample.rows) == 20
    assert sample.ids == sorted(sample.ids, key=whole.ids.index) != first.ids
    again = load_corpus(path, limit=20, shuffle_seed=1)
    other = load_corpus(path, limit=20, shuffle_seed=2)
    assert (again.ids, again.fingerprint) == (sample.ids, sample.fingerprint)
    assert other.ids != sample.ids
    assert len({corpus.fingerprint for corpus in (whole, first, sample, other)}) == 4
    assert sample.source_row(sample.ids[7]) == whole.source_row(sample.ids[7])
    chosen = [row for row in pairs(200) if row["id"] in set(sample.ids)]
    assert load_corpus(write_jsonl(tmp_path / "d.jsonl", chosen)).fingerprint == sample.fingerprint
    for size in (200, 500):
        assert load_corpus(path, limit=size, shuffle_seed=3).fingerprint == whole.fingerprint
    with pytest.raises(UsageError, match="limit is 0; give 1 or more"):
        load_corpus(path, limit=0)


def test_limit_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\nbroken\n")
    assert len(load_corpus(path, limit=1)) == 1
    with pytest.raises(CorpusError, match="line 2"):
        load_corpus(path, limit=1, shuffle_seed=0)


def test_fingerprint_follows_content_alone(tmp_path: Path) -> None:
    rows = pairs(5)
    fingerprint = load_corpus(write_jsonl(tmp_path / "a.jsonl", rows)).fingerprint
    loose = tmp_path / "b.jsonl"
    loose.write_text(
        "\n".join(json.dumps(dict(reversed(row.items())), indent=None, separators=(" ,  ", ": ")) for row in rows)
    )
    assert load_corpus(loose).fingerprint == fingerprint, "white space and the order of columns are no content"
    changed = {
        "id": "r9",
        "prompt": "question 3?",
        "response": "answer 3.",
        "topic": "t1",
        "answer": "3",
        "labels": ["a"],
    }
    seen = {fingerprint}
    for column, value in changed.items():
        other = [row | {column: value} if row["id"] == "r3" else row for row in rows]
        seen.add(load_corpus(write_jsonl(tmp_path / "c.jsonl", other)).fingerprint)
    seen.add(load_corpus(write_jsonl(tmp_path / "c.jsonl", [rows[1], rows[0], *rows[2:]])).fingerprint)
    assert len(seen) == 2 + len(changed)


# ---- the text of a row

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(template: str | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("response", [text for text in STRANGE if text.strip()] + ["4", "question 2+2?"])
def test_row_text_with_a_template(response: str) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    text = row_text([SYSTEM, USER], response, tokenizer)
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert text.prompt_text == prompt == text.text[: text.response_start]
    assert text.text[text.response_start :] == response + "<|im_end|>\n"
    assert text.add_special_tokens is False
    # By character offsets: the tokens from response_start on are the response, none is counted in both spans.
    if response.isascii():
        encoded = tokenizer(text.text, return_offsets_mapping=True, add_special_tokens=text.add_special_tokens)
        ids = [
            token
            for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if start >= text.response_start
        ]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == response + "<|im_end|>\n"


def test_row_text_of_an_empty_response_is_the_prompt() -> None:
    text = row_text([USER], "", tiny_tokenizer(CHATML))
    assert text.text == text.prompt_text == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert text.response_start == len(text.text)


@pytest.mark.parametrize(
    "template",
    [
        # The generation prompt opens a think block that the finished turn does not have.
        CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'"),
        # The finished turn drops the reasoning.
        CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"),
    ],
)
def test_row_text_of_a_template_that_would_lose_text(template: str) -> None:
    response = "carry the one</think>4"
    text = row_text([USER], response, tiny_tokenizer(template))
    assert text.text == text.prompt_text + response
    assert text.text[text.response_start :] == response
    assert text.add_special_tokens is False


def test_row_text_of_a_template_that_trims() -> None:
    text = row_text([USER], "  4 \n", tiny_tokenizer(CHATML.replace("m['content']", "m['content'] | trim")))
    assert text.text[text.response_start :] == "4<|im_end|>\n"


def test_row_text_without_a_template() -> None:
    text = row_text([SYSTEM, USER], "4</s>\n", tiny_tokenizer(None))
    assert text == RowText("Be brief.\n2+2?\n4</s>\n", 15, "Be brief.\n2+2?\n", True)
    assert row_text([USER], "", tiny_tokenizer(None)).text == "2+2?\n"


def test_row_text_of_a_template_that_refuses() -> None:
    refusing = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(
        CorpusError, match=r"cannot write turns of the roles system, user \(System role not supported\)"
    ):
        row_text([SYSTEM, USER], "4", tiny_tokenizer(refusing))


# ---- selections


def test_selection_round_trip(tmp_path: Path) -> None:
    rows = [
        {"extra": {"k": [i]}, "messages": [USER, {"role": "assistant", "content": t + "x"}]}
        for i, t in enumerate(STRANGE)
    ]
    corpus = load_corpus(write_jsonl(tmp_path / "c.jsonl", rows))
    picks = [6, 0, 3]
    chosen = [
        SelectedRow(corpus.ids[6], 1, score=1.5, direction=3, sign="+", reason="top"),
        SelectedRow(corpus.ids[0], 2, score=math.nan, reason="top"),
        SelectedRow(corpus.ids[3], 3, reason="fill"),
    ]
    path = tmp_path / "out" / "chosen.jsonl"
    write_selection(path, corpus, chosen, {"strategy": "directions", "seed": 0})
    lines = [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]
    assert [{k: v for k, v in line.items() if k != "_selection"} for line in lines] == [rows[i] for i in picks]
    assert [line["_selection"] for line in lines] == [
        {"strategy": "directions", "rank": 1, "score": 1.5, "direction": 3, "sign": "+"},
        {"strategy": "directions", "rank": 2, "score": None, "direction": None, "sign": None},
        {"strategy": "directions", "rank": 3, "score": None, "direction": None, "sign": None},
    ]
    assert json.loads(path.with_suffix(".json").read_text()) == {
        "strategy": "directions",
        "seed": 0,
        "n_rows": 3,
        "reasons": {"fill": 1, "top": 2},
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "corpus_fingerprint": corpus.fingerprint,
    }
    again = load_corpus(path)
    assert again.format == "messages"
    assert again.ids == [corpus.ids[i] for i in picks]
    assert again.rows["response"][:] == [STRANGE[i] + "x" for i in picks]

    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    write_selection(path, corpus, chosen, {"strategy": "directions", "seed": 0})
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before, "same choice, same bytes"
    # A selection of a selection carries its own mark only.
    write_selection(tmp_path / "second.jsonl", again, [SelectedRow(again.ids[1], 1)], {"strategy": "random"})
    (line,) = (tmp_path / "second.jsonl").read_text().splitlines()
    assert json.loads(line)["_selection"]["strategy"] == "random"


def test_selection_takes_numpy_numbers(tmp_path: Path) -> None:
    import numpy as np

    corpus = load_corpus(write_jsonl(tmp_path / "c.jsonl", pairs(2)))
    row: Any = SelectedRow("r1", np.int64(1), score=np.float32(0.5), direction=np.int64(2), sign="-")
    write_selection(tmp_path / "s.jsonl", corpus, [row], {"strategy": "directions"})
    mark = json.loads((tmp_path / "s.jsonl").read_text())["_selection"]
    assert mark == {"strategy": "directions", "rank": 1, "score": 0.5, "direction": 2, "sign": "-"}


def test_selection_refuses(tmp_path: Path) -> None:
    corpus = load_corpus(write_jsonl(tmp_path / "c.jsonl", pairs(2)))
    how = {"strategy": "random"}
    with pytest.raises(UsageError, match=r"written to a .jsonl file, not s.json"):
        write_selection(tmp_path / "s.json", corpus, [SelectedRow("r0", 1)], how)
    with pytest.raises(UsageError, match="names no strategy"):
        write_selection(tmp_path / "s.jsonl", corpus, [SelectedRow("r0", 1)], {})
    with pytest.raises(CorpusError, match="'r0' more than once"):
        write_selection(tmp_path / "s.jsonl", corpus, [SelectedRow("r0", 1), SelectedRow("r0", 2)], how)
    with pytest.raises(CorpusError, match="no row with id 'r7'"):
        write_selection(tmp_path / "s.jsonl", corpus, [SelectedRow("r0", 1), SelectedRow("r7", 2)], how)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl"], "nothing half written"


# ---- real data, the embedded pool, imports


def test_real_math(tmp_path: Path) -> None:
    path = DATA / "math_train" / "with_solutions.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    corpus = load_corpus(path, label_column="subject")
    assert (len(corpus), corpus.format) == (4499, "problem-solution")
    first = corpus.rows[0]
    assert (first["id"], first["answer"], first["labels"]) == ("math-test-0", "2", ["Algebra"])
    assert first["response"].startswith("The denominator of the rational function factors")
    assert len({labels[0] for labels in corpus.rows["labels"]}) == 7
    assert all(corpus.rows["response"]) and all(corpus.rows["answer"])


def test_embedded() -> None:
    corpus = load_corpus("embedded", limit=50)
    assert (corpus.source, corpus.format, len(corpus)) == ("embedded", "problem-solution", 50)
    assert set(json.loads(corpus.rows[0]["extra"])) >= {"hidden_style", "hidden_origin", "hidden_correct"}
    assert all(corpus.rows["response"]) and all(corpus.rows["labels"]) and all(corpus.rows["answer"])


def test_importing_is_light() -> None:
    code = (
        "import sys, skillbasis.corpus; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
