"""Competition mathematics through the command line, on the embedded reasoner and on random models of three families."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from conftest import files
from skillbasis import cli
from skillbasis.activations import ActivationStore
from skillbasis.artifact import read_json
from skillbasis.basis import Scores, SkillBasis
from skillbasis.lm import load_model

torch.set_num_threads(1)

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "data" / "math_train" / "with_solutions.jsonl.gz"
pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason=f"no real text: {CORPUS} is not there")

N_ROWS, MAX_LENGTH, K = 200, 128, 3
SAMPLE = ("--limit", str(N_ROWS), "--shuffle-seed", "0", "--label-column", "subject")
SUBJECTS = ["Algebra", "Counting & Probability", "Geometry", "Intermediate Algebra", "Number Theory", "Prealgebra"]
SUBJECTS += ["Precalculus"]
MODELS = {"embedded": 128, "qwen2": 32, "mistral": 32, "llama": 32}
"""Name and hidden size; each has four blocks."""


def shell(*arguments: str | Path) -> tuple[str, str]:
    """Runs a command that must succeed; returns what it printed, on stdout and on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["skillbasis", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert left.value.code == 0, err.getvalue()
    return out.getvalue(), err.getvalue()


def done(*arguments: str | Path) -> str:
    """Runs a command that must say nothing on stderr; returns what it printed."""
    out, err = shell(*arguments)
    assert err == ""
    return out


@pytest.fixture(scope="module")
def source() -> list[dict[str, Any]]:
    """All rows of the corpus, in order."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@dataclass(frozen=True)
class Reading:
    """What extract, discover, score and interpret made of the sample."""

    model: str
    hidden_size: int
    folder: Path
    printed: str


def read(model: str | Path, folder: Path) -> str:
    """Runs the four commands into a folder; returns what interpret printed."""
    acts, basis, scores = folder / "acts", folder / "basis", folder / "scores.parquet"
    done("extract", CORPUS, "--model", model, "--out", acts, "--max-length", str(MAX_LENGTH), *SAMPLE)
    done("discover", acts, "--out", basis, "--k", str(K))
    done("score", acts, "--basis", basis, "--out", scores)
    inputs = ("--basis", basis, "--scores", scores, "--corpus", CORPUS, "--label-column", "subject")
    return done("interpret", *inputs, "--out", folder / "meaning", "--n-examples", "3")


@pytest.fixture(scope="module", params=MODELS)
def reading(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_path: Callable[..., Path]
) -> Reading:
    name = request.param
    model = name if name == "embedded" else str(model_path(name))
    folder = tmp_path_factory.mktemp(name)
    return Reading(model, MODELS[name], folder, read(model, folder))


def test_the_sample_is_the_documented_one_in_corpus_order(reading: Reading, source: list[dict[str, Any]]) -> None:
    drawn = np.sort(np.random.default_rng(0).choice(len(source), N_ROWS, replace=False))
    store = ActivationStore.open(reading.folder / "acts")
    assert store.ids == [source[i]["id"] for i in drawn] == Scores.load(reading.folder / "scores.parquet").ids
    assert store.to_numpy().shape == (N_ROWS, 2, reading.hidden_size)
    assert 0 < store.manifest["n_truncated"] < N_ROWS
    assert SkillBasis.load(reading.folder / "basis").directions.shape == (K, 2, reading.hidden_size)


def test_activations_are_means_of_hidden_states_over_the_tokens(reading: Reading, source: list[dict[str, Any]]) -> None:
    """Holds rows against a plain forward pass of transformers over the text as the format prescribes it."""
    lm, store = load_model(reading.model), ActivationStore.open(reading.folder / "acts")
    by_id = {row["id"]: row for row in source}
    values = store.to_numpy()
    for place in (0, 57, N_ROWS - 1):
        row = by_id[store.ids[place]]
        ids = lm.tokenizer(f"{row['problem']}\n{row['solution']}")["input_ids"][:MAX_LENGTH]
        with torch.no_grad():
            states = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert ids[0] == lm.tokenizer.bos_token_id
        by_hand = torch.stack([states[block + 1][0, 1:].mean(dim=0) for block in store.block_ids])
        # Batches are padded, so sums run in another order: float32 rounding.
        np.testing.assert_allclose(values[place], by_hand.numpy(), rtol=1e-4, atol=1e-4)


def test_directions_are_described_by_what_is_known_of_the_rows(reading: Reading, source: list[dict[str, Any]]) -> None:
    description = read_json(reading.folder / "meaning" / "directions.json")
    assert [line[:3] for line in reading.printed.splitlines()[:K]] == [f"d{k}:" for k in range(K)]
    solutions = {row["id"]: row for row in source}
    named = set()
    for entry in description["directions"]:
        named |= {attribute["name"] for attribute in entry["attributes"]}
        examples = entry["positive"] + entry["negative"]
        assert len(examples) == 6
        assert all(example["id"] in solutions for example in examples)
    text = (reading.folder / "meaning" / "directions.md").read_text()
    known = {"level", *(f"label={subject}" for subject in SUBJECTS)}
    assert named & known, named
    assert all(f"`{name}`" in text for name in named & known)
    # 7 subjects, the level, and the measured attributes of the text, each on every direction
    assert description["n_attributes_tested"] % K == 0 and description["n_attributes_tested"] >= 8 * K


def select(reading: Reading, out: Path, strategy: str, budget: int, *options: str) -> list[dict[str, Any]]:
    scores = ("--scores", reading.folder / "scores.parquet", "--basis", reading.folder / "basis")
    done("select", CORPUS, "--strategy", strategy, "--budget", str(budget), "--out", out, *scores, *SAMPLE, *options)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_human_balanced_takes_as_many_of_every_subject(reading: Reading, tmp_path: Path) -> None:
    rows = select(reading, tmp_path / "chosen.jsonl", "human-balanced", 35)
    assert Counter(row["subject"] for row in rows) == dict.fromkeys(SUBJECTS, 5)


def test_selected_rows_are_source_rows_and_rank_high(
    reading: Reading, source: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "chosen.jsonl"
    rows = select(reading, out, "directions", 20, "--direction", "0+", "--direction", "1-", "--top-share", "0")
    first = files(tmp_path)
    by_id = {row["id"]: row for row in source}
    scores = Scores.load(reading.folder / "scores.parquet")
    for direction, sign, part in ((0, 1.0, rows[:10]), (1, -1.0, rows[10:])):
        values = dict(zip(scores.ids, sign * scores.cosine[:, direction], strict=True))
        taken = [row["id"] for row in part]
        free = [row_id for row_id in scores.ids if direction == 0 or row_id not in {row["id"] for row in rows[:10]}]
        assert taken == sorted(free, key=lambda row_id: -values[row_id])[:10]
    for row in rows:
        mark = row.pop("_selection")
        assert row == by_id[row["id"]]
        assert set(mark) == {"strategy", "rank", "score", "direction", "sign"}
    select(reading, out, "directions", 20, "--direction", "0+", "--direction", "1-", "--top-share", "0")
    assert files(tmp_path) == first


def test_the_same_commands_give_the_same_bytes(reading: Reading, tmp_path: Path) -> None:
    read(reading.model, tmp_path)
    again, before = files(tmp_path), files(reading.folder)
    compared = [name for name in before if name.endswith((".safetensors", ".parquet", "directions.json"))]
    assert len(compared) == 5
    assert {name: again[name] for name in compared} == {name: before[name] for name in compared}
    assert select(reading, tmp_path / "a.jsonl", "random", 30, "--seed", "7") == select(
        reading, tmp_path / "b.jsonl", "random", 30, "--seed", "7"
    )


def test_the_shipped_recipe_can_read_the_longest_rows(source: list[dict[str, Any]], tmp_path: Path) -> None:
    longest = sorted(source, key=lambda row: -len(row["problem"]))[:24]
    (tmp_path / "longest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in longest))
    recipe = yaml.safe_load((Path(__file__).resolve().parents[1] / "recipes" / "real-text.yaml").read_text())
    assert CORPUS.name == recipe["corpus"]["source"]
    recipe["corpus"]["source"] = str(tmp_path / "longest.jsonl")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out, _ = shell("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert out == f"report: {tmp_path / 'run' / 'report.html'}\n"
    assert "math-test-375" in ActivationStore.open(tmp_path / "run" / "activations").ids
