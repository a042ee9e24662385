"""Every format: what is written, and that it reads back to the same prompts and responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from skillbasis.corpus import Corpus, SelectedRow, load_corpus, write_selection
from skillbasis.errors import ArtifactError, CorpusError, UsageError
from skillbasis.train.export import FORMATS, LlamaFactoryRun, export, push_dataset
from skillbasis.train.export.card import card, size_category
from tiny import TEMPLATE, tiny_lm

ASK, SAY = "user", "assistant"


def turns(*contents: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in contents]


# Prompts and responses that all formats can hold.
PLAIN: dict[str, tuple[list[dict[str, str]], str]] = {
    "one": (turns((ASK, "What is 3 + 4?")), "7"),
    "system": (turns(("system", "Be brief."), (ASK, "What is 3 + 4?")), "\\boxed{7}"),
    "several": (turns((ASK, "Hi"), (SAY, "Hello."), (ASK, "More?"), (SAY, "Yes."), (ASK, "3 + 4?")), "7"),
    "unicode": (turns((ASK, "Где 東京? 🗼 é é")), "Там ​→ \x85 \x0b\x1f"),
    "lines": (turns((ASK, "one\u2028two\u2029three\n\nfour\r\nfive\t")), "\n six\u2028seven \n"),
    "latex": (
        turns((ASK, r"Solve $\frac{x}{2}=\sqrt{3}$, \n is no newline")),
        '$$x=2\\sqrt3\\quad\\text{"so"}$$ \\\\ {{x}} {% y %}',
    ),
    "json": (turns((ASK, '{"role": "user"}')), '["</s>", null]'),
}
EMPTY_SYSTEM = (turns(("system", ""), (ASK, "3 + 4?")), "7")
TOOLS = (turns((ASK, "3 + 4?"), (SAY, "add(3, 4)"), ("tool", "7")), "It is 7.")
TWICE = (turns((ASK, "3 + 4?"), (ASK, "Well?")), "7")


def corpus_of(path: Path, rows: dict[str, tuple[list[dict[str, str]], str]], **columns: Any) -> Corpus:
    lines = [json.dumps({"id": i, "prompt": p, "response": r} | columns) for i, (p, r) in rows.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return load_corpus(path)


def content(corpus: Corpus) -> list[tuple[str, list[dict[str, str]], str]]:
    rows = corpus.rows
    return list(zip(rows["id"], rows["prompt"], rows["response"], strict=True))


def lines(out: Path) -> list[dict[str, Any]]:
    text = (out / "train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def header(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((out / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    return value


def load(out: Path, tmp_path: Path) -> datasets.Dataset:
    """As somebody else's program would read the folder."""
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    return loaded["train"]


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_written_reads_back_the_same(tmp_path: Path, to: str) -> None:
    corpus = corpus_of(tmp_path / "rows.jsonl", PLAIN)
    out = export(corpus, to, tmp_path / "out")
    for source in (out, out / "train.jsonl"):
        back = load_corpus(source)
        assert back.format == FORMATS[to].read_as, "found by the columns"
        assert content(back) == content(corpus) == [(i, p, r) for i, (p, r) in PLAIN.items()]
    loaded = load(out, tmp_path)
    assert loaded["id"] == list(PLAIN)
    assert [{k: v for k, v in row.items() if v is not None} for row in loaded] == lines(out)


@pytest.mark.parametrize(
    ("to", "refused"),
    [("trl", ""), ("sharegpt", ""), ("messages", ""), ("alpaca", "is blank"), ("llamafactory", "is empty")],
)
def test_an_empty_system_prompt_is_not_lost(tmp_path: Path, to: str, refused: str) -> None:
    corpus = corpus_of(tmp_path / "rows.jsonl", {"x": EMPTY_SYSTEM})
    if refused:
        with pytest.raises(CorpusError, match=f"row 'x' of .*rows.jsonl cannot be exported to {to}: .*{refused}"):
            export(corpus, to, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    else:
        assert content(load_corpus(export(corpus, to, tmp_path / "out"))) == content(corpus)


@pytest.mark.parametrize(
    ("to", "row", "reason"),
    [
        ("alpaca", TOOLS, "this prompt is user, assistant, tool"),
        ("alpaca", TWICE, "this prompt is user, user"),
        ("alpaca", (turns(("system", "Be brief.")), "7"), "this prompt is system"),
        ("alpaca", (turns((ASK, "a"), (SAY, "b"), (ASK, " ")), "7"), "read back is not what was written"),
        ("llamafactory", TWICE, "this prompt is user, user"),
        ("llamafactory", (turns((ASK, "a"), ("system", "b"), (ASK, "c")), "7"), "this prompt is user, system, user"),
        ("llamafactory", (turns((SAY, "a"), (ASK, "b")), "7"), "this prompt is assistant, user"),
        ("messages", (turns((ASK, "a")), " "), "no response to learn"),
    ],
)
def test_a_row_that_a_format_cannot_hold_is_named(tmp_path: Path, to: str, row: Any, reason: str) -> None:
    corpus = corpus_of(tmp_path / "rows.jsonl", {"fine": PLAIN["one"], "bad one": row})
    with pytest.raises(
        CorpusError, match=f"row 'bad one' of .*cannot be exported to {to}: .*{reason}.*; leave the row out"
    ):
        export(corpus, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["trl", "sharegpt", "messages"])
def test_any_order_of_turns_has_a_place(tmp_path: Path, to: str) -> None:
    rows = {"tools": TOOLS, "twice": TWICE, "begun": (turns((SAY, "a")), "b")}
    corpus = corpus_of(tmp_path / "rows.jsonl", rows)
    assert content(load_corpus(export(corpus, to, tmp_path / "out"))) == content(corpus)


def test_the_columns_are_those_the_formats_are_known_by(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "rows.jsonl", {"x": PLAIN["system"], "y": PLAIN["several"]})
    rows = {to: lines(export(corpus, to, tmp_path / to)) for to in FORMATS}
    assert rows["trl"][0] == {
        "id": "x",
        "prompt": turns(("system", "Be brief."), (ASK, "What is 3 + 4?")),
        "completion": turns((SAY, "\\boxed{7}")),
    }
    assert rows["messages"][0]["messages"] == rows["trl"][0]["prompt"] + rows["trl"][0]["completion"]
    assert rows["sharegpt"] == rows["llamafactory"]
    assert rows["sharegpt"][0]["conversations"] == [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "What is 3 + 4?"},
        {"from": "gpt", "value": "\\boxed{7}"},
    ]
    assert rows["alpaca"][1] == {
        "id": "y",
        "instruction": "3 + 4?",
        "input": "",
        "output": "7",
        "history": [["Hi", "Hello."], ["More?", "Yes."]],
        "system": "",
    }
    assert rows["alpaca"][0]["system"] == "Be brief."


# A selection


def selected(tmp_path: Path, n: int = 3, **columns: Any) -> Path:
    """A selection as `select` leaves it; the rows are in the order of choice, which is not the corpus'."""
    corpus = corpus_of(tmp_path / "pool.jsonl", PLAIN, **columns)
    chosen = [SelectedRow(id, rank, 0.5 / rank, 3, "+") for rank, id in enumerate(list(PLAIN)[::-1][:n], 1)]
    path = tmp_path / "chosen.jsonl"
    write_selection(path, corpus, chosen, {"strategy": "directions", "budget": n, "directions": ["3+"]})
    return path


@pytest.mark.parametrize("to", FORMATS)
def test_a_selection_keeps_its_order_its_marks_and_its_record(tmp_path: Path, to: str) -> None:
    path = selected(tmp_path)
    out = export(load_corpus(path), to, tmp_path / "out")
    assert [row["id"] for row in lines(out)] == ["json", "latex", "lines"]
    mark = {"strategy": "directions", "rank": 2, "score": 0.25, "direction": 3, "sign": "+"}
    assert lines(out)[1]["_selection"] == mark == load(out, tmp_path)[1]["_selection"]
    record = json.loads(path.with_suffix(".json").read_text())
    assert json.loads((out / "selection.json").read_text()) == record
    readme = (out / "README.md").read_text()
    for words in (
        "* strategy: `directions`",
        "* budget: `3`",
        '* directions: `["3+"]`',
        record["sha256"],
        "`chosen.jsonl`",
    ):
        assert words in readme, words
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["kind"], manifest["rows"], manifest["source"]) == ("export", 3, "chosen.jsonl")
    assert manifest["inputs"]["selection"] == record


def test_a_record_of_other_rows_is_refused(tmp_path: Path) -> None:
    path = selected(tmp_path)
    path.write_text(path.read_text() + json.dumps({"id": "more", "prompt": "a", "response": "b"}) + "\n")
    with pytest.raises(
        ArtifactError, match=r"chosen.json says how chosen.jsonl was chosen, but its rows have been changed"
    ):
        export(load_corpus(path), "trl", tmp_path / "out")
    path.with_suffix(".json").write_text('{"other": "file"}')
    out = export(load_corpus(path), "trl", tmp_path / "out")
    assert not (out / "selection.json").exists() and "no record of a selection" in (out / "README.md").read_text()


def test_an_export_is_an_artifact(tmp_path: Path) -> None:
    path = selected(tmp_path)
    out = export(load_corpus(path), "trl", tmp_path / "out")
    stamp = (out / "train.jsonl").stat().st_mtime_ns
    export(load_corpus(path), "trl", out)
    assert (out / "train.jsonl").stat().st_mtime_ns == stamp, "what is there is not made again"
    export(load_corpus(path), "messages", out)
    assert "messages" in lines(out)[0] and {p.name for p in tmp_path.iterdir() if "partial" in p.name} == set()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ArtifactError, match="is no export directory, so it is left as it is"):
        export(load_corpus(path), "trl", tmp_path / "mine")


def test_requests_that_cannot_be_meant(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "rows.jsonl", PLAIN)
    with pytest.raises(UsageError, match=r"'aplaca' \(did you mean 'alpaca'\?\); allowed are llamafactory, trl"):
        export(corpus, "aplaca", tmp_path / "out")
    with pytest.raises(UsageError, match="for the YAML of llamafactory, and trl has none"):
        export(corpus, "trl", tmp_path / "out", run=LlamaFactoryRun("m"))


# The card


def test_the_card_says_what_the_hub_asks(tmp_path: Path) -> None:
    out = export(load_corpus(selected(tmp_path)), "trl", tmp_path / "my data")
    assert header(out) == {
        "pretty_name": "my data",
        "license": "unknown",
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "tags": ["skillbasis", "sft", "trl"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train.jsonl"}]}],
    }
    assert "The rows name no license" in (out / "README.md").read_text()


def test_the_license_is_that_of_the_rows(tmp_path: Path) -> None:
    out = export(load_corpus(selected(tmp_path, license="CC-BY-4.0")), "trl", tmp_path / "out")
    assert header(out)["license"] == "cc-by-4.0" and "CC-BY-4.0: 3 rows" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("licenses", "expected", "words"),
    [
        ({"mit": 5, "cc-by-4.0": 7}, ["cc-by-4.0", "mit"], "cc-by-4.0: 7 rows; mit: 5 rows."),
        ({"Mine own": 5}, "other", "Mine own: 5 rows"),
        ({"mit": 1200, None: 3}, "unknown", "mit: 1,200 rows; without one: 3 rows"),
        ({None: 3}, "unknown", "name no license"),
    ],
)
def test_licenses_that_differ(licenses: dict[str | None, int], expected: Any, words: str) -> None:
    text = card(FORMATS["trl"], "train.jsonl", "x", 12, "pool", licenses, None)
    assert yaml.safe_load(text.split("---\n")[1])["license"] == expected and words in text


def test_messages_come_with_a_warning(tmp_path: Path) -> None:
    text = (export(corpus_of(tmp_path / "rows.jsonl", PLAIN), "messages", tmp_path / "out") / "README.md").read_text()
    assert "TRL puts the loss on the whole sequence" in text


def test_sizes_have_the_hub_s_names() -> None:
    counts = (1, 999, 1000, 99_999, 10**5, 10**6, 10**7, 10**8)
    assert [size_category(n) for n in counts] == [
        *("n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "n>100M")
    ]


def test_an_export_is_pushed_as_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append((repo_id, options))

        def upload_folder(self, **options: Any) -> str:
            calls.append(("upload", options))
            return "https://hub/datasets/me/data"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    out = export(corpus_of(tmp_path / "rows.jsonl", PLAIN), "trl", tmp_path / "out")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UsageError, match="set HF_TOKEN"):
        push_dataset(out, "me/data")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "from the environment")
    with pytest.raises(ArtifactError, match="no export directory"):
        push_dataset(tmp_path / "nothing", "me/data")
    assert calls == []
    assert push_dataset(out, "me/data", private=True) == "https://hub/datasets/me/data"
    assert calls == [
        ("me/data", {"repo_type": "dataset", "private": True, "exist_ok": True}),
        ("upload", {"repo_id": "me/data", "repo_type": "dataset", "folder_path": out}),
    ]


# What trainers make of it


def test_trl_itself_trains_on_the_export(tmp_path: Path) -> None:
    """As the README says; what is learnt is the responses and nothing else."""
    from trl import SFTConfig, SFTTrainer

    lm = tiny_lm(template=TEMPLATE)
    out = export(load_corpus(selected(tmp_path)), "trl", tmp_path / "out")
    settings = SFTConfig(
        output_dir=str(tmp_path / "run"),
        max_length=8000,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=lm.model, processing_class=lm.tokenizer, args=settings, train_dataset=load(out, tmp_path)
    )
    trainer.train()
    learnt = [[i for i in row["labels"] if i != -100] for row in trainer.train_dataset]
    responses = [PLAIN[row["id"]][1] for row in lines(out)]
    assert [lm.tokenizer.decode(ids) for ids in learnt] == [f"{response}</s>\n" for response in responses]


@pytest.mark.parametrize("name", ["gsm8k/train.jsonl.gz", "traces_skyt1/long_cot_qwen.jsonl.gz"])
def test_real_rows_come_back_from_every_format(tmp_path: Path, name: str) -> None:
    source = Path(__file__).resolve().parents[2] / "shared" / "data" / name
    if not source.exists():
        pytest.skip("the shared data are not here")
    corpus = load_corpus(source, limit=60)
    for to in FORMATS:
        assert content(load_corpus(export(corpus, to, tmp_path / to))) == content(corpus)
        assert len(load(tmp_path / to, tmp_path)) == 60
