"""Stages of a recipe that read: stability is kept in the basis, labels come from a judge or a warning does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from endpoint_server import Behaviour, chat, serving
from judging import read_request, says
from scaled import Silent
from skillbasis.artifact import read_json
from skillbasis.basis import SkillBasis
from skillbasis.evaluate.backends import openai_api
from skillbasis.pipeline import run_recipe
from skillbasis.recipe import parse_recipe

torch.set_num_threads(1)
RECIPE = {"model": "embedded", "corpus": {"source": "embedded", "limit": 300}, "basis": {"k": 3}}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(openai_api, "MAX_WAIT_S", 0.01)


def run(out: Path, **changes: Any) -> Path:
    return run_recipe(parse_recipe(RECIPE | changes, "test"), out, Silent())


def ready(body: dict[str, Any], _attempt: int) -> Any:
    """Gives every direction the same label and calls everything A."""
    if read_request(body).wants == {"side"}:
        return says({"side": "A"})
    words = {"words_a": ["long", "worked", "out"], "words_b": ["short", "bare", "sum"]}
    return says({"contrast": "Group A is longer, group B is shorter.", "axes": ["length"], **words})


def test_stability_is_kept_in_the_basis_and_marked(tmp_path: Path) -> None:
    out = run(tmp_path / "run", stability={"n_bootstrap": 40, "n_repeats": 1, "threshold": 0.999})
    basis = SkillBasis.load(out / "basis")
    assert basis.stability is not None and basis.stability["n_bootstrap"] == 40
    assert basis.unstable, "hardly a direction of 300 rows is found again to 2.6 degrees"
    entries = read_json(out / "interpret" / "directions.json")["directions"]
    assert [entry["unstable"] for entry in entries] == [k in basis.unstable for k in range(3)]
    page = (out / "report.html").read_text() if (out / "report.html").exists() else ""
    assert page == "" or "unstable" in page
    before = basis.fingerprint
    run(tmp_path / "run", stability=None)
    after = SkillBasis.load(out / "basis")
    assert after.stability is None and after.fingerprint == before
    entries = read_json(out / "interpret" / "directions.json")["directions"]
    assert [entry["unstable"] for entry in entries] == [None] * 3


def test_too_few_rows_for_halves_are_a_warning(tmp_path: Path) -> None:
    out = run(tmp_path / "run", corpus={"source": "embedded", "limit": 7})
    assert SkillBasis.load(out / "basis").stability is None
    (warning,) = read_json(out / "run.json")["warnings"]
    assert warning == "half of 7 rows hold no 3 directions, so their stability is not measured"


def test_the_number_of_tokens_is_an_attribute(tmp_path: Path) -> None:
    out = run(tmp_path / "run", stability=None)
    entries = read_json(out / "interpret" / "directions.json")["directions"]
    found = {attribute["name"]: attribute for entry in entries for attribute in entry["attributes"]}
    assert abs(found["tokens"]["correlation"]) > 0.4


def labelled(tmp_path: Path, url: str) -> Path:
    judge = {"url": url, "model": "m", "held_out": 2}
    return run(tmp_path / "run", stability=None, interpret={"judge": judge})


def test_labels_are_a_stage_of_their_own(tmp_path: Path) -> None:
    with serving(ready) as server:
        out = labelled(tmp_path, server.url)
        n_asked = len(server.requests)
        assert n_asked >= 3
        entries = read_json(out / "labels" / "directions.json")["directions"]
        assert [entry["label"]["n"] for entry in entries] == [4, 4, 4]
        assert {tuple(sorted(entry["label"]["positive"])) for entry in entries} <= {
            ("long", "out", "worked"),
            ("bare", "short", "sum"),
        }
        assert "label" not in read_json(out / "interpret" / "directions.json")["directions"][0]
        labelled(tmp_path, server.url)
        assert len(server.requests) == n_asked, "done once"
        run(tmp_path / "run", stability=None)
        assert not (out / "labels").exists(), "without a judge there are no labels left to show"
        labelled(tmp_path, server.url)
        assert len(server.requests) == n_asked, "what was paid for is in the cache"


@pytest.mark.parametrize(
    ("behaviour", "said"), [(None, "cannot be reached"), (lambda _body, _attempt: chat("I refuse"), "no usable label")]
)
def test_a_judge_that_fails_costs_the_labels_and_nothing_else(
    tmp_path: Path, behaviour: Behaviour | None, said: str
) -> None:
    if behaviour is None:
        out = labelled(tmp_path, "http://127.0.0.1:9/v1")
    else:
        with serving(behaviour) as server:
            out = labelled(tmp_path, server.url)
    (warning,) = read_json(out / "run.json")["warnings"]
    assert warning.startswith("labels: ") and said in warning
    assert not (out / "labels").exists() and (out / "interpret" / "directions.json").exists()
    with serving(ready) as server:
        labelled(tmp_path, server.url)
    assert (out / "labels" / "directions.json").exists()
