"""The command interpret: offline as ever, with a judge behind a real server, and with a judge that fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from endpoint_server import Reply, chat, serving
from judging import PAIRS, oracle, planted_corpus, read_request
from shell import done, skillbasis
from skillbasis.artifact import read_json
from skillbasis.basis import Scores, SkillBasis
from skillbasis.evaluate.backends import openai_api

KEY = "sk-interpret-0123456789"
Inputs = tuple[str | Path, ...]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(openai_api, "MAX_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A basis of three directions, a corpus whose words follow them, and its scores."""
    folder = tmp_path_factory.mktemp("interpreting")
    corpus, planted = planted_corpus(160)
    columns = ("id", "prompt", "response")
    rows = [{name: row[name] for name in columns} for row in corpus.rows]
    rows = [row | {"prompt": row["prompt"][0]["content"]} for row in rows]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    directions = np.eye(3, 8, dtype=np.float32).reshape(3, 2, 4)
    config = {"model": "planted", "block_ids": [0, 1], "hidden_size": 4, "total_variance": 8.0, "method": "planted"}
    config |= {"corpus_fingerprint": "none", "pooling": "mean", "span": "all", "weights_fingerprint": "w"}
    config |= {"explained_variance_ratio": [0.3, 0.2, 0.1], "rows": 160, "corpus": "corpus.jsonl", "settings": {}}
    basis = SkillBasis(directions, np.zeros((2, 4), np.float32), np.array([3.0, 2.0, 1.0]), np.ones(3), config)
    basis.save(folder / "basis")
    fingerprint = SkillBasis.load(folder / "basis").fingerprint
    Scores(planted.ids, planted.scores, planted.norm, planted.raw_norm, fingerprint).save(folder / "scores.parquet")
    return ("--basis", folder / "basis", "--scores", folder / "scores.parquet", "--corpus", folder / "corpus.jsonl")


def test_without_a_judge_it_works_offline(inputs: Inputs, tmp_path: Path) -> None:
    shown = done("interpret", *inputs, "--out", tmp_path / "out", "--n-examples", "4")
    assert re.findall(r"^d(\d): \+ \S+.* \| - \S+", shown, re.MULTILINE) == ["0", "1", "2"]
    assert "label:" not in shown and "judge m" not in shown
    description = read_json(tmp_path / "out" / "directions.json")
    assert "judge" not in description and all("label" not in entry for entry in description["directions"])
    assert [len(entry["positive"]) for entry in description["directions"]] == [4, 4, 4]
    assert not (tmp_path / "out.judge.jsonl").exists()


def test_with_a_judge_directions_are_labelled_and_labels_tested(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    prices = ("--judge-price-in", "2", "--judge-price-out", "10")
    command = ("interpret", *inputs, "--out", tmp_path / "out", "--judge-model", "m", "--judge-key-env", "JUDGE_KEY")
    with serving(oracle, key=KEY) as server:
        shown = done(*command, "--judge-url", server.url, "--judge-held-out", "6", *prices)
        n_asked = len(server.requests)
        again = done(*command, "--judge-url", server.url, "--judge-held-out", "6", *prices)
        assert len(server.requests) == n_asked, "a second run pays nothing"
        done(*command, "--judge-url", server.url, "--judge-held-out", "8")
        assert n_asked < len(server.requests) < 2 * n_asked, "more examples: what is known is not asked again"
    lines = re.findall(
        r"^    label: (.*) \| (.*); held-out examples sorted rightly 1\.00 \[0\.76, 1\.00\] of 12, "
        r"by the label of d(\d) (\d\.\d\d) \[.*\] of 12$",
        shown,
        re.MULTILINE,
    )
    assert [(line[0], line[1]) for line in lines] == [(", ".join(a), ", ".join(b)) for a, b in PAIRS]
    assert [int(line[2]) != k for k, line in enumerate(lines)] == [True] * 3
    cost = re.search(
        r"^judge m: (\d+) answers asked for, 0 from the cache; ([\d,]+) tokens in, .*, cost \S+$", shown, re.M
    )
    assert cost is not None and int(cost[1]) == n_asked
    assert f"judge m: 0 answers asked for, {n_asked} from the cache; 0 tokens in, 0 out, cost 0" in again
    description = read_json(tmp_path / "out" / "directions.json")
    for k, entry in enumerate(description["directions"]):
        label = entry["label"]
        assert (label["positive"], label["negative"]) == tuple(map(list, PAIRS[k]))
        assert (label["accuracy"], label["n"]) == (1.0, 16) and label["shuffled"]["n"] == 16
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["inputs"]["judge"]["model"] == "m" and manifest["inputs"]["judge"]["n_held_out"] == 8
    text = (tmp_path / "out" / "directions.md").read_text()
    assert "Label: `wait`, `check`, `verify` (positive end) against" in text
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in kept + shown
    assert (tmp_path / "out.judge.jsonl").exists(), "beside the directory, which is replaced as a whole"


def test_a_judge_that_cannot_be_reached_leaves_the_description(inputs: Inputs, tmp_path: Path) -> None:
    where = ("--judge-url", "http://127.0.0.1:1/v1", "--judge-model", "m")
    result = skillbasis("interpret", *inputs, "--out", tmp_path / "out", *where)
    assert result.code == 1
    assert re.search(
        r"^error: http://127.0.0.1:1/v1/chat/completions cannot be reached after 3 attempts: .*the same command goes "
        r"on with the answers still missing \(.*out is complete but for labels: 0 of 3 directions have one\)$",
        result.err.strip(),
    )
    assert re.findall(r"^d(\d): \+ \S+.* \| - \S+", result.out, re.MULTILINE) == ["0", "1", "2"]
    description = read_json(tmp_path / "out" / "directions.json")
    assert [entry["label_reason"] for entry in description["directions"]] == ["the judge was stopped before"] * 3
    assert "cannot be reached" in description["judge"]["stopped"]
    assert len(description["directions"][0]["positive"]) == 10
    assert "## Direction 2" in (tmp_path / "out" / "directions.md").read_text()


def test_a_judge_that_dies_midway_goes_on_by_the_same_command(inputs: Inputs, tmp_path: Path) -> None:
    broken = True

    def behaviour(body: dict[str, Any], attempt: int) -> Reply:
        return (401, {"error": "expired"}, {}) if broken and len(server.requests) > 9 else oracle(body, attempt)

    with serving(behaviour) as server:
        command = ("interpret", *inputs, "--out", tmp_path / "out", "--judge-url", server.url, "--judge-model", "m")
        result = skillbasis(*command, "--judge-concurrency", "1", "--judge-held-out", "4")
        assert result.code == 1 and "wants a key, and OPENAI_API_KEY is not set" in result.err
        assert "3 of 3 directions have one" in result.err
        assert "(8 were to be)" in result.out or "none (not asked)" in result.out
        labels = [entry["label"] for entry in read_json(tmp_path / "out" / "directions.json")["directions"]]
        asked = sum(label["n_asked"] + label["shuffled"]["n_asked"] for label in labels)
        assert [label["positive"] for label in labels] == [list(pair[0]) for pair in PAIRS] and 6 <= asked < 24
        n_before, broken = len(server.requests), False
        done(*command, "--judge-concurrency", "1", "--judge-held-out", "4")
        assert len(server.requests) - n_before <= 48 + 3 - 9
    description = read_json(tmp_path / "out" / "directions.json")
    assert description["judge"]["stopped"] is None
    assert [entry["label"]["accuracy"] for entry in description["directions"]] == [1.0] * 3


def test_a_judge_that_answers_nonsense(inputs: Inputs, tmp_path: Path) -> None:
    good = False

    def behaviour(body: dict[str, Any], attempt: int) -> Reply:
        return oracle(body, attempt) if good else chat("\x1b[31mLorem ipsum {dolor}")

    with serving(behaviour) as server:
        command = ("interpret", *inputs, "--out", tmp_path / "out", "--judge-url", server.url, "--judge-model", "m")
        result = skillbasis(*command)
        assert result.code == 1 and len(server.requests) == 9
        assert "the judge gave no usable label for any of 3 directions" in result.err and "--judge-again" in result.err
        assert "    no label: none of 3 answers could be used, the last because it holds no JSON object" in result.out
        assert len(read_json(tmp_path / "out" / "directions.json")["directions"]) == 3
        good = True
        assert skillbasis(*command).code == 1 and len(server.requests) == 9, "what was answered is not paid again"
        assert "label: wait, check, verify | guess, maybe, perhaps" in done(*command, "--judge-again")


def test_options_of_the_judge(inputs: Inputs, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def behaviour(body: dict[str, Any], attempt: int) -> Reply:
        seen.append(body)
        return oracle(body, attempt)

    with serving(behaviour) as server:
        command = ("interpret", *inputs, "--out", tmp_path / "out", "--judge-url", server.url, "--judge-model", "m")
        options = ("--judge-max-tokens", "77", "--judge-characters", "100", "--judge-held-out", "0", "--seed", "4")
        shown = done(*command, *options, "--judge-cache", tmp_path / "kept" / "answers.jsonl")
    assert len(seen) == 3 and {(body["max_tokens"], body["seed"]) for body in seen} == {(77, 4)}
    assert all("characters left out" in text for text in read_request(seen[0]).texts.values())
    assert "sorted rightly none (no held-out examples)" in shown
    assert (tmp_path / "kept" / "answers.jsonl").exists() and not (tmp_path / "out.judge.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge-model", "m"], "names a model that --judge-url serves; give --judge-url too"),
        (["--judge-url", "http://h/v1"], "needs --judge-model, the name under which it serves the judge"),
        (["--judge-url", "h:1", "--judge-model", "m"], "is no URL of an endpoint"),
        (["--judge-url", "http://u:p@h/v1", "--judge-model", "m"], "carries a password"),
        (["--judge-url", "http://h/v1", "--judge-model", "m", "--judge-price-in", "1"], "give both, or neither"),
        (["--judge-url", "http://h/v1", "--judge-model", "m", "--judge-concurrency", "0"], "takes 1 to 256 requests"),
        (["--judge-url", "http://h/v1", "--judge-model", "m", "--judge-timeout", "0"], "timeout_s must be above 0"),
        (["--judge-url", "http://h/v1", "--judge-model", "m", "--judge-held-out", "-1"], "0 or more, not -1"),
        (["--judge-url", "http://h/v1", "--judge-model", "m", "--judge-characters", "5"], "at least 100 characters"),
    ],
)
def test_options_that_cannot_be_meant(inputs: Inputs, tmp_path: Path, options: list[str], message: str) -> None:
    result = skillbasis("interpret", *inputs, "--out", tmp_path / "out", *options)
    assert result.code == 2 and message in result.err
    assert not (tmp_path / "out").exists()


def test_a_cache_that_is_another_file_is_left_alone(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"mine": 1}\n')
    where = ("--judge-url", "http://h/v1", "--judge-model", "m", "--judge-cache", tmp_path / "mine.jsonl")
    result = skillbasis("interpret", *inputs, "--out", tmp_path / "out", *where)
    assert result.code == 1 and "holds no answers of a judge, so it is left as it is" in result.err
    assert (tmp_path / "mine.jsonl").read_text() == '{"mine": 1}\n'
