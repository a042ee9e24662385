"""The commands `locate` and `skills` as a shell would start them, on the embedded reasoner and on real traces."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shell import Result, done, skillbasis
from skillbasis.basis import Scores, SkillBasis
from skillbasis.corpus import load_corpus

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRACES = DATA / "traces_gsm8k_gpt3" / "solutions.jsonl.gz"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A basis of the embedded reasoner on 600 rows of its pool, their scores, and the rows as a corpus."""
    folder = tmp_path_factory.mktemp("work")
    pool = load_corpus("embedded", limit=600, shuffle_seed=0)
    (folder / "pool.jsonl").write_text("".join(row + "\n" for row in pool.rows["source_row"]), encoding="utf-8")
    done("extract", folder / "pool.jsonl", "--model", "embedded", "--out", folder / "acts")
    done("discover", folder / "acts", "--out", folder / "basis", "--k", "8")
    done("score", folder / "acts", "--basis", folder / "basis", "--out", folder / "scores.parquet")
    (folder / "skill.md").write_text("# Remainders\nWhat is left when 77 is divided by 6?\n", encoding="utf-8")
    return folder


def given(work: Path, *, corpus: str | Path | None = None) -> list[str | Path]:
    return ["--basis", work / "basis", "--scores", work / "scores.parquet", "--corpus", corpus or work / "pool.jsonl"]


def refused(result: Result, code: int, words: str) -> None:
    assert result.code == code, result.err
    assert words in result.err and result.err.startswith("error: ") and result.err.count("\n") == 1


def test_locate_prints_a_table_and_writes_json(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "there" / "location.json"
    printed = done("locate", work / "skill.md", *given(work), "--model", "embedded", "--n", "4", "--out", out)
    found = json.loads(out.read_text())
    assert len(found["coordinates"]) == 8 and len(found["nearest"]) == 4
    assert sum("divided by" in example["prompt"] for example in found["nearest"]) >= 3  # the family of remainders
    assert found["n_scored"] == 600 and 0 < found["share_inside"] < 1
    lines = printed.splitlines()
    assert lines[0].endswith("tokens; read the text as one user turn without a response")
    assert lines[1].split() == ["direction", "score", "z", "percentile"]
    assert lines[2].split()[0] == "d0" and float(lines[2].split()[1]) == pytest.approx(
        found["coordinates"][0]["score"], rel=1e-3
    )
    assert "inside the basis: " in printed and "of 600 scored examples: " in printed
    assert f"{found['nearest'][0]['cosine']:+.3f} {found['nearest'][0]['id']}: " in printed
    assert SkillBasis.load(work / "basis").fingerprint == found["basis"]


def test_locate_reads_standard_input_and_needs_no_scores(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\ufeffWhat is left when 77 is divided by 6?"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8"))))
    printed = done("locate", "-", "--basis", work / "basis", "--model", "embedded")
    assert printed.startswith("standard input: ")
    assert "percentile" not in printed and "nearest" not in printed and "scored" not in printed


def test_an_unstable_direction_is_marked_wherever_it_is_shown(work: Path, tmp_path: Path) -> None:
    basis = SkillBasis.load(work / "basis")
    entries = [{"direction": k, "unstable": k == 5, "cosine": None, "half_cosine": None} for k in range(8)]
    cosine = {"median": 0.5, "low": 0.4, "high": 0.6}
    entries = [entry | {"cosine": cosine} for entry in entries]
    record = {"basis": basis.fingerprint, "directions": entries, "n_bootstrap": 10, "n_repeats": 0, "threshold": 0.9}
    basis.with_stability(record).save(tmp_path / "basis")
    where: list[str | Path] = ["--basis", tmp_path / "basis"]
    printed = done("locate", work / "skill.md", *where, "--model", "embedded")
    assert "d5 (unstable)" in printed and printed.count("unstable") == 1
    scored = ["--scores", work / "scores.parquet", "--corpus", work / "pool.jsonl"]
    done("skills", *where, *scored, "--out", tmp_path / "skills")
    assert "| d4 | d5 (unstable) | d6 |" in (tmp_path / "skills" / "skills.md").read_text()
    words = "warning: direction 5 is unstable: other rows of the same corpus may well give others"
    along = ["select", work / "pool.jsonl", *where, "--scores", work / "scores.parquet", "--budget", "5"]
    for directions, warned in ((["5+", "1-"], True), (["1-"], False)):
        named = [word for direction in directions for word in ("--direction", direction)]
        chosen = skillbasis(*along, "--strategy", "directions", *named, "--out", tmp_path / f"{len(named)}.jsonl")
        assert (chosen.code, words in chosen.err) == (0, warned), chosen.err
        vector = skillbasis("steer", "vectors", *where, *named[:2], "--out", tmp_path / f"{len(named)}.safetensors")
        assert (vector.code, words in vector.err) == (0, warned), vector.err


def test_locate_refuses_in_one_sentence(work: Path, tmp_path: Path) -> None:
    where: list[str | Path] = ["--basis", work / "basis", "--model", "embedded"]
    refused(skillbasis("locate", tmp_path / "no.md", *where), 2, "no.md does not exist; give a text file, or -")
    refused(skillbasis("locate", tmp_path, *where), 2, "is a directory; give a text file")
    (tmp_path / "empty.md").write_text(" \n")
    refused(skillbasis("locate", tmp_path / "empty.md", *where), 2, "empty.md is empty; give a text to locate")
    (tmp_path / "latin.md").write_bytes("caf\u00e9 au lait".encode("latin-1"))
    refused(skillbasis("locate", tmp_path / "latin.md", *where), 2, "latin.md is not UTF-8 (invalid")
    skill = work / "skill.md"
    refused(skillbasis("locate", skill, *where, "--corpus", work / "pool.jsonl"), 2, "give --scores too")
    refused(skillbasis("locate", skill, *where, "--out", tmp_path), 2, "is a directory; give the name of a file")
    refused(skillbasis("locate", skill, "--basis", tmp_path, "--model", "embedded"), 2, "there is no basis at")
    refused(skillbasis("locate", skill, *where, "--scores", tmp_path / "no.parquet"), 2, "there is no score file at")


def test_locate_refuses_another_model(work: Path, tmp_path: Path) -> None:
    from tiny import tiny_lm

    other = tiny_lm()
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    result = skillbasis("locate", work / "skill.md", "--basis", work / "basis", "--model", tmp_path / "other")
    refused(result, 1, "the basis was found on model 'embedded'")


def test_skills_of_the_embedded_world(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "skills"
    printed = done(
        *("skills", *given(work), "--out", out),
        *("--label-column", "labels", "--label-column", "hidden_style"),
        *("--correct-column", "hidden_correct", "--shuffles", "2"),
    )
    found = json.loads((out / "skills.json").read_text())
    families = [label for label in found["taxonomy"]["labels"] if label["column"] == "labels"]
    assert len(families) == 8 and all(label["joint"]["auc"] > 0.95 for label in families)
    assert all(len(label["directions"]) == len(label["p_holm"]) == 8 for label in families)
    assert all(label["shuffled"]["n"] == 2 for label in families)
    families_share, styles_share = (c["basis_r2"]["total"]["mean"] for c in found["taxonomy"]["columns"])
    assert families_share > 0.5 and found["taxonomy"]["all_columns"]["total"]["mean"] > families_share > styles_share
    assert 0.8 < found["compositionality"]["index"]["mean"] <= 1.02
    config = SkillBasis.load(work / "basis").config
    assert found["compactness"]["cumulative"] == pytest.approx(np.cumsum(config["explained_variance_ratio"]))
    names = [predictor["name"] for predictor in found["grounding"]["predictors"]]
    assert names[:3] == ["scores", "length", "labels"] and found["grounding"]["label_columns"] == [
        "labels",
        "hidden_style",
    ]
    prompts = found["taxonomy"]["n_groups"]
    assert found["n_rows"] == 600 and prompts < 600  # some questions come twice
    for words in (
        "labels (600 rows): mean joint AUC 0.9",
        "compositionality 0.",
        "compactness: 8 directions",
        "scores less",
    ):
        assert words in printed
    text = (out / "skills.md").read_text()
    assert text.count("| `labels` | `linear` |") == 2  # its areas, and the control
    assert "## Is it grounded?" in text and f"600 rows in {prompts} groups with the same prompt" in text
    again = done("skills", *given(work), "--out", tmp_path / "again")
    assert "predicted from" not in again
    assert json.loads((tmp_path / "again" / "skills.json").read_text())["grounding"] is None


def test_skills_refuses_in_one_sentence(work: Path, tmp_path: Path) -> None:
    where = [*given(work), "--out", tmp_path / "out"]
    refused(skillbasis("skills", *where, "--label-column", "hidden_stile"), 2, "(did you mean 'hidden_style'?)")
    refused(skillbasis("skills", *where, "--group-column", "problem"), 2, "the scored rows have no column 'problem'")
    refused(skillbasis("skills", *where, "--correct-column", "hidden_style"), 1, "is neither true nor false")
    refused(skillbasis("skills", *where, "--folds", "600"), 2, "600 folds of 5")
    refused(skillbasis("skills", *where, "--min-rows", "400"), 1, "no label can be looked at: labels = 'addition': ")
    rows = [{"id": f"r{i}", "prompt": "a", "response": "b"} for i in range(3)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = [*given(work, corpus=tmp_path / "other.jsonl"), "--out", tmp_path / "out"]
    refused(skillbasis("skills", *other), 1, "600 of 600 scored examples are not in the corpus, for instance 'pool-")
    scores = Scores.load(work / "scores.parquet")
    Scores(scores.ids, scores.values, scores.norm, scores.raw_norm, "0" * 16).save(tmp_path / "s.parquet")
    strange = ["--basis", work / "basis", "--scores", tmp_path / "s.parquet", "--corpus", work / "pool.jsonl"]
    refused(skillbasis("skills", *strange, "--out", tmp_path / "out"), 1, "the scores were made with another basis")
    assert not (tmp_path / "out").exists()


def corpus_of(work: Path, path: Path, **columns: Any) -> Path:
    """Rows with the ids that were scored and columns of one's own."""
    ids = Scores.load(work / "scores.parquet").ids
    rows = [
        {"id": row_id, "prompt": f"q{i}", "response": "a"} | {name: values[i] for name, values in columns.items()}
        for i, row_id in enumerate(ids)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_one_class_is_refused_and_nothing_a_label_says_acts(work: Path, tmp_path: Path) -> None:
    evil = "a|b <script>`x`\n# head \x1b[2J"
    corpus = corpus_of(
        work,
        tmp_path / "c.jsonl",
        labels=[["only"]] * 600,
        kind=[evil if i % 2 else "plain" if i % 3 else "third" for i in range(600)],
        correct=[True] * 600,
    )
    where = [*given(work, corpus=corpus), "--out", tmp_path / "out"]
    refused(
        skillbasis("skills", *where), 1, "labels = 'only': all of 600 rows carry it: there is nothing to compare with"
    )
    one_class = skillbasis("skills", *where, "--label-column", "kind", "--correct-column", "correct")
    refused(one_class, 1, "whether answers are right cannot be predicted: all of 600 rows are right")
    printed = done("skills", *where, "--label-column", "kind")
    text = (tmp_path / "out" / "skills.md").read_text()
    assert "\x1b" not in text and "\x1b" not in printed
    assert "<script" not in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 3
    assert all(len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1 for table in tables)
    assert not any(line.startswith("# head") for line in text.splitlines())


@pytest.mark.skipif(not TRACES.exists(), reason="the test data are not here")
def test_skills_on_traces_of_models_grouped_by_problem(tmp_path: Path) -> None:
    done("extract", TRACES, "--model", "embedded", "--out", tmp_path / "acts", "--limit", "150", "--max-length", "200")
    done("discover", tmp_path / "acts", "--out", tmp_path / "basis", "--k", "4")
    done("score", tmp_path / "acts", "--basis", tmp_path / "basis", "--out", tmp_path / "scores.parquet")
    options = ["--label-column", "model", "--group-column", "problem_id", "--correct-column", "correct"]
    printed = done("skills", *given(tmp_path, corpus=TRACES), "--out", tmp_path / "skills", *options)
    found = json.loads((tmp_path / "skills" / "skills.json").read_text())
    assert {label["label"] for label in found["taxonomy"]["labels"]} == {
        f"gpt3-{size}_{way}" for size in ("175b", "6b") for way in ("finetuning", "verification")
    }
    assert 100 < found["taxonomy"]["n_groups"] < 150
    assert "right answers: " in printed and "compositionality: not measured" in printed
