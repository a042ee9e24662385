"""The documentation is true: its commands parse, its code runs, its links lead somewhere, its result files are named.

What of the code is not run stands in a list with the reason; a reason without code to it is an error as well.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import skillbasis
from fences import PAGES, ROOT, Fence, fences, words
from shell import skillbasis as skillbasis_command
from skillbasis.artifact import read_json
from skillbasis.cli import app
from skillbasis.recipe import parse_recipe
from skillbasis.recipe_blocks import ActivationsBlock, BasisBlock, SamplingBlock, SensitivityBlock, StudyBlock
from skillbasis.select import STRATEGIES
from skillbasis.world.assets import pool_path

FENCES = [fence for page in PAGES for fence in fences(page)]
COMMANDS = [(fence, command) for fence in FENCES for command in fence.commands]
PYTHON = [fence for fence in FENCES if fence.language == "python"]

# Pages of which every command and all Python is run, in the order of the page, in one directory.
RUN_WHOLE = ("docs/tutorial.md", "docs/guides/gguf.md")
RUN_ELSEWHERE = {"docs/formats.md": "tests/test_docs_formats.py"}
ABOUT_THE_MACHINE = "skillbasis doctor"  # looks at what is installed, not at what a page made; tests/test_doctor.py
# Commands of other pages: why they are only parsed. The first pattern that is found counts.
ONLY_PARSED = {
    r"--(judge-|base-)?url\b": "asks an endpoint",
    r"--backend vllm|--tensor-parallel": "needs vLLM and GPUs",
    r"--engine ray|--n-gpus|--gpu ": "is of a cluster or its GPUs; tests/test_cluster.py and test_plan.py run it here",
    r"--(model|base) (M|NAME|DIR|Qwen/\S+|meta-llama/\S+)\b": "names a model that is not shipped",
    r"^skillbasis (demo|run|study|plan|report|explore) ": "is a whole run; tests/test_pipeline.py, test_plan.py",
    r"runs/(demo|base|mine|x/)": "goes on with a run that is not there; tests/test_cli*.py run the command",
    r"(mine|rows|corpus|responses|answers|pool)\.jsonl": "reads a file of the reader's",
    r"^skillbasis (doctor|recipes)": "says what is on a machine; tests/test_doctor.py and test_packaging.py",
    r"^skillbasis (interpret|judge|steer|skills|evaluate|diff|stability|score)": "names what the reader has made",
    r"^skillbasis (discover|extract|compare|locate|export)": "names files of the reader's; tests/test_cli*.py run it",
    r"^skillbasis (select|train)": "tests/test_selection_docs.py and test_train.py run it",
}
# Blocks of Python that are only compiled, by page and 1-based number among the page's blocks of Python.
ONLY_COMPILED = {
    ("docs/backends.md", 1): "needs vLLM",
    ("docs/backends.md", 2): "asks an endpoint",
    ("docs/guides/ray.md", 1): "starts a Ray cluster; tests/test_cluster.py",
    ("docs/guides/vllm.md", 1): "needs vLLM",
    ("docs/safety.md", 1): "asks an endpoint",
    ("docs/steering.md", 1): "a fragment: what is generated is left open",
    ("docs/steering.md", 2): "needs vLLM",
    ("docs/tasks.md", 1): "reads a benchmark from the hub",
}
# What a reader of a page has before its Python: commands, run first.
_EVALUATED = "--task embedded --rollouts 2 --temperature 0.8 --max-tokens 30 --limit 6"
BEFORE = {
    "docs/comparing.md": [
        f"skillbasis evaluate --model embedded {_EVALUATED} --out runs/base",
        f"skillbasis evaluate --model embedded {_EVALUATED} --seed 1 --out runs/steered",
    ],
    "docs/training.md": ["skillbasis select pool.jsonl --strategy random --budget 24 --out chosen.jsonl"],
}
# Fewer rows and problems than a page names, so that all pages run in a minute; the slow test takes a page as it stands.
FEWER = (
    (r"^(skillbasis \w+) embedded ", r"\1 pool.jsonl "),
    (r"--corpus embedded\b", "--corpus pool.jsonl"),
    (r'load_corpus\("embedded"', 'load_corpus("pool.jsonl"'),
    (r"--limit 2000\b", "--limit 240"),
    (r"limit=(2000|4000)\b", "limit=240"),
    (r"--rows 300\b", "--rows 24"),
    (r"--budget 500\b", "--budget 48"),
    (r"budget=500\b", "budget=48"),
    (r"(--task embedded:test) (--rollouts)", r"\1 --limit 8 \2"),
    (r"--direction 1\+ --direction 1-(.*) --seeds 2\b", r"\1 --seeds 1"),
    (r"--problems 120\b", "--problems 8"),
    (r'load_task\("embedded:test"\)', 'load_task("embedded:test", limit=8)'),
    (r"--max-tokens 112\b", "--max-tokens 40"),
    (r"max_tokens=112\b", "max_tokens=40"),
)
N_POOL = 400


def fewer(code: str) -> str:
    for pattern, replacement in FEWER:
        code = re.sub(pattern, replacement, code, flags=re.MULTILINE)
    return code


@contextmanager
def pool_folder(path: Path) -> Iterator[None]:
    """Makes a directory the one a reader is in, with first rows of the pool; added strategies are taken away again."""
    with gzip.open(pool_path(), "rt", encoding="utf-8") as pool:
        (path / "pool.jsonl").write_text("".join(islice(pool, N_POOL)), encoding="utf-8")
    known = dict(STRATEGIES)
    try:
        with chdir(path):
            yield
    finally:
        STRATEGIES.clear()
        STRATEGIES.update(known)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with pool_folder(tmp_path):
        yield tmp_path


def run(command: str) -> None:
    """Runs a command in this process; progress may go to stderr."""
    result = skillbasis_command(*words(command))
    assert result.code == 0, (command, result.err)


def run_page(page: str, change: Callable[[str], str], *, commands: bool) -> dict[str, Any]:
    """Runs the blocks of a page in their order; returns the names its Python left."""
    names: dict[str, Any] = {}
    for command in BEFORE.get(page, []):
        run(change(command))
    n_python = 0
    for fence in fences(page):
        if commands:
            for command in fence.commands:
                if not command.startswith(ABOUT_THE_MACHINE):
                    run(change(command))
        if fence.language == "python":
            n_python += 1
            if (page, n_python) not in ONLY_COMPILED:
                exec(compile(change(fence.code), fence.place, "exec"), names)
    return names


# Commands


@pytest.mark.parametrize(("fence", "command"), COMMANDS, ids=[f"{fence.place} {c[:40]}" for fence, c in COMMANDS])
def test_every_command_is_understood(fence: Fence, command: str) -> None:
    parser, arguments = typer.main.get_command(app), words(command)
    while hasattr(parser, "commands"):
        assert arguments[0] in parser.commands, f"{fence.place}: there is no command {arguments[0]}"
        parser = parser.commands[arguments.pop(0)]
    parser.make_context(command, arguments)  # an unknown option, a missing one or a wrong value raises


def test_what_is_only_parsed_has_its_reason() -> None:
    found = dict.fromkeys(ONLY_PARSED, 0)
    for fence, command in COMMANDS:
        if fence.page in (*RUN_WHOLE, *RUN_ELSEWHERE):
            continue
        reasons = [pattern for pattern in ONLY_PARSED if re.search(pattern, command)]
        assert reasons, f"{fence.place}: say why it is not run: {command}"
        found[reasons[0]] += 1
    assert {pattern for pattern, n in found.items() if not n} == set()


def test_other_tools_are_named_on_purpose() -> None:
    """Lines of shell blocks that are no commands of ours; a misspelt `skillbasis` would hide among them."""
    known = ("make ", "pip ", "python ", "vllm ", "ray ", "echo ", "torchrun ", "accelerate ", "llama-", "curl ", "cd ")
    for fence in FENCES:
        if fence.language == "bash":
            for line in fence.code.replace("\\\n", " ").splitlines():
                assert not line.strip() or line.startswith((*known, "#", "skillbasis ", "export ")), (fence.place, line)


# Python


@pytest.mark.parametrize("fence", PYTHON, ids=lambda fence: fence.place)
def test_python_compiles(fence: Fence) -> None:
    compile(fence.code, fence.place, "exec")


@pytest.mark.parametrize("page", sorted(({fence.page for fence in PYTHON} | set(RUN_WHOLE)) - RUN_ELSEWHERE.keys()))
def test_the_code_of_a_page_runs(page: str, folder: Path) -> None:
    blocks = [fence for fence in PYTHON if fence.page == page]
    if page not in RUN_WHOLE and all((page, i) in ONLY_COMPILED for i in range(1, len(blocks) + 1)):
        pytest.skip("; ".join(ONLY_COMPILED[page, i] for i in range(1, len(blocks) + 1)))
    run_page(page, fewer, commands=page in RUN_WHOLE)


def test_what_is_only_compiled_is_there() -> None:
    numbers = {page: sum(fence.page == page for fence in PYTHON) for page in PAGES}
    assert all(1 <= number <= numbers.get(page, 0) for page, number in ONLY_COMPILED)


@pytest.mark.slow
def test_the_tutorial_gives_what_it_shows(folder: Path) -> None:
    """As it stands, sizes and all: the figures a reader is shown are those he gets."""
    shown = " ".join(fence.code for fence in fences("docs/tutorial.md") if fence.language == "text")
    names = run_page("docs/tutorial.md", lambda code: code, commands=True)
    stable = json.loads((folder / "tut/basis/config.json").read_text())["stability"]
    assert stable
    chosen = [json.loads(line)["id"] for line in (folder / "tut/chosen.jsonl").read_text().splitlines()]
    assert chosen == [row.id for row in names["rows"]]  # the command's choice is that of Python
    description = read_json(folder / "tut/reading/directions.json")
    first = description["directions"][0]["positive"][0]
    assert first["response"] in shown


@pytest.mark.parametrize("page", sorted(page for page in PAGES if page.startswith("docs/guides/")))
def test_the_recipes_of_guides_are_such(page: str) -> None:
    for fence in fences(page):
        if fence.language == "yaml":
            assert parse_recipe(yaml.safe_load(fence.code), fence.place).study is not None


def test_the_settings_that_are_advised_exist() -> None:
    text = (ROOT / "docs/guides/my-model.md").read_text(encoding="utf-8")
    table = text[text.index("| setting |") : text.index("## 3.")]
    blocks = (ActivationsBlock, BasisBlock, SamplingBlock, StudyBlock, SensitivityBlock)
    known = {key for block in blocks for key in block.model_fields}
    named = {
        name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert len(named) > 10 and named <= known


# Links, result files, the reference


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w./-]+\.(?:md|ipynb)\b", text))
    notebooks = {f"notebooks/{path.name}" for path in (ROOT / "docs/notebooks").glob("*.ipynb")}
    assert named == {page.removeprefix("docs/") for page in PAGES if page != "README.md"} | notebooks


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#|mailto:", target):
            assert (ROOT / page).parent.joinpath(target.split("#")[0]).exists(), (page, target)


def numbers_table() -> dict[str, str]:
    """Command by result file, of the page on how the numbers are made."""
    text = (ROOT / "docs/how-numbers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*\.json`) \| ([^|]*) \| [^|]+ \|$", text, re.MULTILINE)
    return {name: command for files, command in rows for name in re.findall(r"`([^`]+)`", files)}


def test_every_result_file_is_named_with_its_command() -> None:
    results, table = ROOT / "docs/results", numbers_table()
    files = {str(path.relative_to(results)) for path in results.rglob("*.json")}
    assert files <= table.keys()
    assert {name for name in table.keys() - files if not name.startswith("safety/")} == set()
    for name, told in table.items():
        for script in re.findall(r"benchmarks/\w+\.py", told):
            assert (ROOT / script).exists(), script
        command = read_json(results / name).get("command") if name in files else None
        if command is not None:
            scripts = re.findall(r"benchmarks/\w+\.py", str(command))
            assert all(script in told for script in scripts), (name, command)


def test_the_benchmarks_marked_are_those_of_make_bench() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = set(re.findall(r"\$\(BENCH_OUT\)/([\w-]+\.json)", makefile))
    assert {name for name, told in numbers_table().items() if "*bench*" in told} == made


def test_the_reference_has_every_public_name() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/api").glob("*.md")))
    shown = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    assert len(shown) == len(set(shown))
    public = {f"{thing.__module__}.{thing.__qualname__}" for thing in map(public_thing, skillbasis.__all__)}
    assert public <= set(shown)
    for name in shown:
        module, _, attribute = name.rpartition(".")
        thing = getattr(__import__(module, fromlist=[attribute]), attribute)
        assert (thing.__doc__ or "").strip(), name
        if is_dataclass(thing):
            assert fields(thing)


def public_thing(name: str) -> Any:
    """What a public name stands for; a package that can be called stands for its main function."""
    homes = {"evaluate": "evaluate.run", "select": "select.strategy", "steer": "steer.hooks"}
    if name in homes:
        return getattr(__import__(f"skillbasis.{homes[name]}", fromlist=[name]), name)
    return getattr(skillbasis, name)


def test_the_site_has_no_request_to_others() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text.replace("!ENV", ""))  # the tag is MkDocs' own
    assert settings["theme"]["font"] is False
    assert not any(str(path).startswith("http") for path in settings.get("extra_javascript", []))
