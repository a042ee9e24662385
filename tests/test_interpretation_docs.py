"""docs/interpretation.md is true: its commands and options exist, its recipe blocks are such, so are its figures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from skillbasis.basis.stability import STABLE
from skillbasis.cli import app
from skillbasis.interpret.two_models import SAME
from skillbasis.recipe import parse_recipe

ROOT = Path(__file__).resolve().parents[1]
DOC = (ROOT / "docs" / "interpretation.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
    return [code for name, code in fenced if name == language]


COMMANDS = [shlex.split(line) for line in "\n".join(blocks("")).replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]) + f" {len(words)}")
def test_every_command_and_option_exists(words: list[str]) -> None:
    assert words[0] == "skillbasis"
    shown = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for word in words[2:]:
        assert not word.startswith("--") or word in shown.output, word


def test_options_named_in_the_text_exist() -> None:
    shown = "".join(
        CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
        for name in ("interpret", "stability", "compare", "skills", "locate", "discover")
    )
    named = set(re.findall(r"`(--[a-z-]+)", DOC))
    assert len(named) > 12 and {option for option in named if option not in shown} == set()


def test_the_recipe_blocks_are_such() -> None:
    raw = {"model": "embedded", "corpus": "embedded"}
    (block,) = blocks("yaml")
    recipe = parse_recipe(raw | yaml.safe_load(block), "the page")
    assert recipe.sensitivity is not None and recipe.sensitivity.k == [8, 10, 16, 32]
    (line,) = re.findall(r"`(basis: \{[^`]+\})`", DOC)
    assert parse_recipe(raw | yaml.safe_load(line), "the page").basis.method == "sae"


def test_figures_are_those_of_the_code() -> None:
    words = " ".join(DOC.split())
    assert f"the lower end of its interval is below {STABLE:g}" in words
    assert SAME == 0.5 and "its match has at least half of its variance" in words
