"""`train` and `export` as commands: which options lead to which settings, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shell import done, skillbasis
from skillbasis.commands.training import _settings
from skillbasis.errors import UsageError
from skillbasis.train import PRESETS, LoraSettings

NONE: dict[str, Any] = {"rank": None, "alpha": None, "dropout": None}


@pytest.mark.parametrize(
    ("preset", "lora", "adapters", "expected"),
    [
        ("reasoning", None, {}, None),
        ("reasoning", True, {}, LoraSettings()),
        ("reasoning", None, {"rank": 8}, LoraSettings(rank=8)),
        ("safety", None, {}, LoraSettings()),
        ("safety", None, {"alpha": 16, "dropout": 0.0}, LoraSettings(alpha=16, dropout=0.0)),
        ("safety", False, {}, None),
    ],
)
def test_which_options_ask_for_adapters(preset: str, lora: bool | None, adapters: Any, expected: Any) -> None:
    assert _settings(preset, {}, lora, NONE | adapters).lora == expected


def test_options_change_single_settings_of_a_preset() -> None:
    settings = _settings(
        "safety", {"learning_rate": 3e-4, "epochs": None, "warmup_fraction": 0.0, "seed": 4}, None, NONE
    )
    assert (settings.learning_rate, settings.warmup_fraction, settings.seed) == (3e-4, 0.0, 4)
    assert (settings.epochs, settings.lora) == (PRESETS["safety"].epochs, PRESETS["safety"].lora)
    with pytest.raises(UsageError, match="--no-lora and --lora-rank exclude each other"):
        _settings("safety", {}, False, NONE | {"rank": 4})


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    rows = [{"id": f"r{i}", "prompt": f"What is {i} + {i}?", "response": f"\\boxed{{{2 * i}}}"} for i in range(6)]
    path = tmp_path / "chosen.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("to", ["llamafactory", "trl", "sharegpt", "alpaca", "messages"])
def test_export_says_what_it_left(chosen: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / "out"
    first, *rest = done("export", to, chosen, "--out", out).splitlines()
    assert first == f"{out}: 6 rows as {to}; README.md says how they were chosen and how to train on them"
    assert rest == (
        ["full.yaml and lora.yaml name no model; fill in model_name_or_path, or export again with --model"]
        if to == "llamafactory"
        else []
    )
    assert len((out / "train.jsonl").read_text().splitlines()) == 6


def test_export_for_llamafactory_takes_model_and_template(chosen: Path, tmp_path: Path) -> None:
    options = ("--model", "org/Mistral", "--template", "mistral")
    assert len(done("export", "llamafactory", chosen, "--out", tmp_path / "out", *options).splitlines()) == 1
    settings = yaml.safe_load((tmp_path / "out" / "full.yaml").read_text())
    assert (settings["model_name_or_path"], settings["template"]) == ("org/Mistral", "mistral")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("aplaca",), 2, "unknown export format 'aplaca' (did you mean 'alpaca'?); allowed are llamafactory, trl"),
        (("trl", "--model", "m"), 2, "--model and --template go into the YAML of llamafactory; trl has none"),
        (("trl", "--private"), 2, "--private is for --push; give --push OWNER/NAME too"),
        (("trl", "--push", "me/data"), 2, "there is no token to upload with; set HF_TOKEN, or log in"),
    ],
)
def test_export_requests_that_cannot_be_meant(
    chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, words: str
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    to, *options = arguments
    result = skillbasis("export", to, chosen, "--out", tmp_path / "out", *options)
    assert (
        result.code == code and result.err.startswith("error: ") and words in result.err and "\n" not in result.err[:-1]
    )
