"""The README is true: its commands exist and none is missing, its Python runs, its figures are those of the results."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from skillbasis.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Every `skillbasis ...` line of the README's code blocks, continued lines joined, comments dropped."""
    blocks = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("skillbasis ")]


def test_every_folder_has_its_line() -> None:
    listed = set(re.findall(r"^\| `([^`]+)` \|", CONTRIBUTING, re.MULTILINE))
    packages = {
        str(path.parent.relative_to(ROOT))
        for path in (ROOT / "src" / "skillbasis").glob("*/*.py")
        if "data" not in path.parts
    }
    others = {"recipes", "benchmarks", "docs", "tests"}
    assert listed == packages | others


@pytest.mark.parametrize("arguments", commands(), ids=lambda arguments: " ".join(arguments[:2]))
def test_every_command_and_option_exists(arguments: list[str]) -> None:
    name = arguments[: 2 if arguments[0] in ("steer", "world") else 1]
    result = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in (argument for argument in arguments if re.match(r"--[a-z]", argument)):
        assert option in result.output, option


def test_the_python_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1].replace("limit=2000", "limit=200"), names)
    assert len(names["rows"]) == 100  # type: ignore[arg-type]


def test_the_first_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test", "test-all", "check", "bench", "world", "docs", "vllm-env", "test-vllm", "llama-cpp"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert README.index("make demo") < README.index("make test")


def test_the_picture_is_made_of_the_committed_result() -> None:
    from skillbasis.study_forest import forest_svg

    results = ROOT / "docs/results/demo"
    study = json.loads((results / "study.json").read_text(encoding="utf-8"))
    assert (results / "forest.svg").read_text(encoding="utf-8") == forest_svg(study)
    assert "](docs/results/demo/forest.svg)" in README


def test_every_command_has_an_example() -> None:
    shown = {" ".join(line[: 2 if line[0] == "steer" else 1]) for line in commands()}
    steer = next(group.typer_instance for group in app.registered_groups if group.name == "steer")
    assert steer is not None
    there = names(app) - {"demo", "study"}  # `make demo`, and a comment on `run`
    assert there | {f"steer {name}" for name in names(steer)} == shown


def names(of: typer.Typer) -> set[str]:
    return {command.name or command.callback.__name__ for command in of.registered_commands if command.callback}


def test_the_tables_are_made_of_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import front_tables

    assert front_tables.filled(README) == README, "python benchmarks/front_tables.py"
