"""The commands compare and stability on the embedded reasoner: what they print, write and refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from conftest import files
from shell import done, skillbasis
from skillbasis.artifact import read_json
from skillbasis.basis import Scores, SkillBasis

torch.set_num_threads(1)

LIMIT = ("--limit", "120", "--max-length", "256")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two readings of the embedded corpus, bases of them and their scores."""
    folder = tmp_path_factory.mktemp("comparing")
    for name, pooling, k in (("mean", "mean", "4"), ("last", "last", "3")):
        done("extract", "embedded", "--model", "embedded", "--out", folder / name, "--pooling", pooling, *LIMIT)
        done("discover", folder / name, "--out", folder / f"{name}-basis", "--k", k)
        done("score", folder / name, "--basis", folder / f"{name}-basis", "--out", folder / f"{name}.parquet")
    done("extract", "embedded", "--model", "embedded", "--out", folder / "one", "--layers", "1", *LIMIT)
    done("discover", folder / "one", "--out", folder / "one-basis", "--k", "2")
    done("score", folder / "one", "--basis", folder / "one-basis", "--out", folder / "one.parquet")
    return folder


def test_bases_of_one_shape_are_compared_by_angles(work: Path) -> None:
    shown = done("compare", work / "mean-basis", work / "last-basis")
    assert f"A: {work / 'mean-basis'}\nB: {work / 'last-basis'}\n" in shown
    assert re.search(r"spans: principal angles [\d.]+ to [\d.]+ degrees, overlap 0\.\d+ \(random: 0\.016\)", shown)
    assert re.search(r"\nA   B   cosine\n(d\d  d\d  [+-]0\.\d{3}\n){3}$", shown)
    same = done("compare", work / "mean-basis", work / "mean-basis")
    assert "angles 0.0 to 0.0 degrees, overlap 1.000" in same and same.count("+1.000") == 4


def test_all_ways_at_once_and_in_pairs(work: Path, tmp_path: Path) -> None:
    names = ("mean", "last", "one")
    bases, scores = [work / f"{name}-basis" for name in names], [work / f"{name}.parquet" for name in names]
    out = tmp_path / "out"
    common = ("--corpus", "embedded", "--out", out, "--permutations", "50")
    shown = done("compare", *bases, "--scores", *scores, *common)  # one --scores for all of them
    assert shown.count("scores of 120 shared examples") == 3 and shown.count("spans: ") == 1
    assert shown.endswith(f"\nread {out / 'comparison.md'}\n") and "axis of A" in shown
    pairs = read_json(out / "comparison.json")["pairs"]
    assert [(Path(p["a"]).name, Path(p["b"]).name) for p in pairs] == [
        ("mean-basis", "last-basis"),
        ("mean-basis", "one-basis"),
        ("last-basis", "one-basis"),
    ]
    assert [p["spans"] is None for p in pairs] == [False, True, True]
    assert all(p["scores"]["n_permutations"] == 50 and p["two_models"]["a"]["not_shared"] for p in pairs)
    page = (out / "comparison.md").read_text()
    assert page.count("# Two bases\n") == 3 and "### Direction 0, positive end" in page
    repeated = [item for file in scores for item in ("--scores", file)]
    again = done("compare", *bases, *repeated, *common)
    assert again == shown
    assert read_json(out / "comparison.json")["pairs"] == pairs
    ranks = done("compare", *bases[:2], "--scores", *scores[:2], "--correlation", "spearman")
    assert "p = 0.005" in ranks and ranks.splitlines()[-1] != shown.splitlines()[-1]


def test_stability_is_recorded_in_the_basis_and_shown_with_it(work: Path, tmp_path: Path) -> None:
    done("discover", work / "mean", "--out", tmp_path / "basis", "--k", "6")
    before = files(tmp_path / "basis")
    options = ("--bootstrap", "40", "--repeats", "2", "--seed", "3")
    elsewhere = done("stability", tmp_path / "basis", work / "mean", "--out", tmp_path / "copy", *options)
    assert files(tmp_path / "basis") == before and f"recorded in {tmp_path / 'copy'}" in elsewhere
    shown = done("stability", tmp_path / "basis", work / "mean", *options)
    assert shown.splitlines()[0].startswith("120 rows: 2 splits in halves, 40 resamples in 119 dimensions (100.0% of")
    assert len(re.findall(r"^d\d .*\[0\.\d+, [01]\.\d+\]", shown, re.MULTILINE)) == 6
    loaded = SkillBasis.load(tmp_path / "basis")
    assert files(tmp_path / "copy") == files(tmp_path / "basis") and not list(tmp_path.glob("*.partial"))
    assert loaded.stability is not None and loaded.stability["seed"] == 3 and loaded.unstable
    assert f"is below 0.9: {', '.join(f'd{k}' for k in loaded.unstable)}\n" in shown
    assert shown.count(" unstable ") == len(loaded.unstable)
    assert all(files(tmp_path / "basis")[name] == before[name] for name in ("basis.safetensors", "manifest.json"))
    done("score", work / "mean", "--basis", tmp_path / "basis", "--out", tmp_path / "scores.parquet")
    Scores.load(tmp_path / "scores.parquet").check_basis(loaded)
    compared = done("compare", tmp_path / "basis", work / "mean-basis")
    assert compared.count("(unstable)") == sum(f"d{k} (unstable)" in compared for k in loaded.unstable) > 0
    none = done("stability", tmp_path / "basis", work / "mean", "--threshold", "0.01", "--bootstrap", "0")
    assert "no resamples" in none and "no direction is unstable" in none
    assert SkillBasis.load(tmp_path / "basis").unstable == ()


def test_what_compare_refuses(work: Path, tmp_path: Path) -> None:
    mean, last, one = (work / f"{name}-basis" for name in ("mean", "last", "one"))
    of_mean, of_last = work / "mean.parquet", work / "last.parquet"
    table = Scores.load(of_last)
    Scores([f"x{i}" for i in range(120)], table.values, table.norm, table.raw_norm).save(tmp_path / "foreign.parquet")
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"id": "a", "prompt": "q", "response": "r"}) + "\n")
    refused = [
        ((mean,), 2, "two bases or more are compared, not 1; give their directories"),
        ((mean, one), 1, "the bases are of different shape (embedded, blocks [1, 2], hidden size 128; embedded, "),
        ((mean, last, "--scores", of_mean), 2, "there are 2 bases and 1 score files; give one for each, or none"),
        ((mean, last, "--scores", of_last, of_mean), 1, "the scores were made with another basis"),
        ((mean, last, "--scores", of_mean, tmp_path / "foreign.parquet"), 1, "share no examples by id (120 and 120"),
        ((mean, last, "--corpus", "embedded"), 2, "--corpus needs --scores of its rows along each basis"),
        ((mean, last, "--scores", of_mean, of_last, "--corpus", "embedded"), 2, "which fills pages; give --out DIR"),
        ((mean, tmp_path / "absent"), 2, "there is no basis at"),
        ((mean, last, "--scores", of_mean, tmp_path / "absent.parquet"), 2, "there is no score file at"),
        ((mean, last, "--correlation", "kendall", "--scores", of_mean, of_last), 2, "unknown correlation 'kendall'"),
        ((mean, last, "--permutations", "0"), 2, "Invalid value for '--permutations'"),
    ]
    for arguments, code, message in refused:
        result = skillbasis("compare", *arguments)
        assert (result.code, message in " ".join(result.err.split())) == (code, True), result.err
    out = ("--corpus", tmp_path / "corpus.jsonl", "--out", tmp_path / "out")
    result = skillbasis("compare", mean, last, "--scores", of_mean, of_last, *out)
    assert result.code == 1 and "120 of 120 scored examples are not in the corpus" in result.err
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("important")
    result = skillbasis("compare", mean, last, "--out", tmp_path / "mine")
    assert result.code == 1 and "exists and is no comparison directory, so it is left as it is" in result.err
    assert files(tmp_path / "mine") == {"thesis.tex": b"important"}


def test_what_stability_refuses(work: Path, tmp_path: Path) -> None:
    mean = work / "mean-basis"
    before = files(mean)
    done("extract", "embedded", "--model", "embedded", "--out", tmp_path / "few", "--limit", "9", "--max-length", "256")
    done("discover", tmp_path / "few", "--out", tmp_path / "few-basis", "--k", "4")
    refused = [
        ((mean, work / "last"), 1, "do not belong together: pooling is last of the activations and mean in the basis"),
        ((mean, work / "one"), 1, "do not belong together: block_ids is [1]"),
        ((mean, tmp_path / "few"), 1, "the basis was found on another corpus"),
        ((tmp_path / "few-basis", tmp_path / "few"), 2, "half of 9 rows are too few to find 4 directions in"),
        ((mean, work / "mean-basis"), 1, "holds 'basis', not activations; give an activations directory"),
        ((tmp_path / "absent", work / "mean"), 2, "is no directory here, so nothing can be recorded in it"),
        ((mean, work / "mean", "--bootstrap", "3"), 2, "3 resamples are too few for an interval"),
        ((mean, work / "mean", "--threshold", "1.5"), 2, "the threshold is a cosine between 0 and 1, not 1.5"),
    ]
    for arguments, code, message in refused:
        result = skillbasis("stability", *arguments)
        assert (result.code, message in " ".join(result.err.split())) == (code, True), result.err
    assert files(mean) == before
