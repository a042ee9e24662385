"""The recipes at the paper's scale made small: a tiny model that has learned one answer, and few rows and problems."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from conftest import make_model, make_tokenizer
from skillbasis.evaluate.tasks import INSTRUCTIONS
from skillbasis.lm import wrap
from skillbasis.train.loop import fine_tune_in_memory
from skillbasis.train.settings import TrainingSettings

torch.set_num_threads(1)

LEARNED = "7"
"""What the tiny model says to everything; the answer of every other row and problem."""
SUBJECTS = ("Algebra", "Geometry", "Number Theory")
N_BLOCKS_THERE, N_BLOCKS_HERE = 36, 4
FIELDS = {"category": "math", "license": "cc-by-4.0", "reasoning": "off", "generator": "made", "version": "v1"}


class Silent:
    """Watches a run and says nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Any]:
        yield lambda done, total, words: None


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def nemotron_rows(n: int) -> list[dict[str, Any]]:
    """Rows as of Llama-Nemotron, with the columns that recipes/paper_data.py adds; no two alike."""
    rows = []
    for i in range(n):
        a, b = i + 10, 7 - i - 10 if i % 2 else 3 * i + 1
        text = " ".join(f"{word} {i + k}" for k, word in enumerate(("first", "then", "next", "last")[: 1 + i % 4]))
        asked = [{"role": "user", "content": f"Add {a} and {b}, row {i}."}]
        answered = f"{text}: {a} and {b} is \\boxed{{{a + b}}}"
        rows.append({"input": asked, "output": answered, "answer": str(a + b), "subject": SUBJECTS[i % 3], **FIELDS})
    return rows


def problems(name: str, n: int) -> list[dict[str, Any]]:
    """Problems of a task with solutions, worded otherwise than the rows and those of other tasks."""
    answers = [LEARNED if i % 2 else str(i + 30) for i in range(n)]
    return [
        {
            "id": f"{name}-{i}",
            "problem": f"{name} asks number {i}: which?",
            "solution": f"It is \\boxed{{{answer}}}",
            "answer": answer,
            "subject": SUBJECTS[i % 3],
        }
        for i, answer in enumerate(answers)
    ]


def taught(family: str, folder: Path) -> Path:
    """A tiny model of an architecture that answers nearly everything with the learned answer."""
    base = wrap(make_model(family).float(), make_tokenizer(chat=True), family)
    asked = [row["input"] for row in nemotron_rows(40)]
    asked += [
        [{"role": "user", "content": f"{row['problem']}\n{INSTRUCTIONS['boxed']}"}]
        for name in ("validation", "math500", "gsm8k")
        for row in problems(name, 8)
    ]
    rows = [(prompt, f"\\boxed{{{LEARNED}}}") for prompt in asked]
    settings = TrainingSettings(learning_rate=1e-2, epochs=12, batch_size=16, micro_batch_size=16, max_length=256)
    lm, _ = fine_tune_in_memory(base, rows, settings)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def scaled(raw: dict[str, Any], model: Path, folder: Path, *, n_rows: int = 40, budget: int = 12) -> dict[str, Any]:
    """A recipe with its model, corpus, tasks and sizes replaced by small ones; every key stays.

    Budgets keep their proportions to each other, blocks their places in the model.
    """
    raw = json.loads(json.dumps(raw))
    raw["model"], raw["dtype"] = str(model), "float32"
    raw["corpus"] |= {"source": str(write_lines(folder / "pool.jsonl", nemotron_rows(n_rows))), "limit": n_rows}
    layers = raw["activations"]["layers"]
    if layers != "inner":
        ends = [int(end) * N_BLOCKS_HERE // N_BLOCKS_THERE for end in layers.split("-")]
        raw["activations"]["layers"] = "-".join(map(str, ends))
    raw["basis"]["k"] = max(2, raw["basis"]["k"] // 8)
    validation = str(write_lines(folder / "validation.jsonl", problems("validation", 6)))
    for block in (raw.get("probe"), raw.get("contest")):
        if block is not None:
            block["task"] = validation
    if raw["selection"].get("query") is not None:
        raw["selection"]["query"] = validation
    raw["probe"]["n_rows"] = 6
    study = raw["study"]
    study["task"] = [str(write_lines(folder / f"{name}.jsonl", problems(name, 6))) for name in study["task"]]
    if "n_problems" in study:
        study["n_problems"] = 4
    largest = max([study["budget"]] if isinstance(study["budget"], int) else study["budget"])
    if isinstance(study["budget"], int):
        study["budget"] = budget
    else:
        study["budget"] = [max(2, round(budget * one / largest)) for one in study["budget"]]
    study["seeds"] = study["seeds"][:2]
    places = [(raw["selection"], "validation_sampling"), (raw["selection"], "own_sampling")]
    places += [(raw[block], "sampling") for block in ("probe", "contest", "study") if block in raw]
    for block, key in places:
        if key in block:
            block[key] |= {"rollouts": 2, "max_tokens": 16}
    raw["training"]["trainer"] = "lean"
    return raw


def keys(value: Any, place: str = "") -> set[str]:
    """Dotted names of all keys of a recipe."""
    if not isinstance(value, dict):
        return {place}
    return {name for key, inner in value.items() for name in keys(inner, f"{place}.{key}")}
