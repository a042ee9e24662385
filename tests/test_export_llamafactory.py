"""The export for LLaMA-Factory: its files by eye, and under LLaMA-Factory's own loader where that is installed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from skillbasis.corpus import Corpus, load_corpus, row_text
from skillbasis.train import LoraSettings, TrainingSettings
from skillbasis.train.export import LlamaFactoryRun, export
from tiny import TEMPLATE, tiny_lm

PYTHON = Path(__file__).resolve().parents[1] / "build" / "llamafactory-env" / "bin" / "python"
installed = pytest.mark.skipif(
    not PYTHON.exists(), reason="LLaMA-Factory is not installed here; make llamafactory-env installs it"
)
ROWS: dict[str, tuple[list[tuple[str, str]], str]] = {
    "plain": ([("user", "what is three?")], "three"),
    "system": ([("system", "so brief"), ("user", "three plus four?")], "the answer is \\boxed{7}"),
    "turns": ([("user", "hi"), ("assistant", "so what"), ("user", "四 \u2028 $x^2$")], "\nline\u2028sep {{content}}\n"),
}
KEYS = [
    *("model_name_or_path", "trust_remote_code", "stage", "do_train", "finetuning_type"),
    *("dataset", "dataset_dir", "cutoff_len", "mask_history", "output_dir"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "num_train_epochs"),
    *("lr_scheduler_type", "warmup_ratio", "bf16", "seed", "logging_steps", "report_to"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [
        {"id": i, "prompt": [{"role": r, "content": c} for r, c in prompt], "response": response}
        for i, (prompt, response) in ROWS.items()
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return load_corpus(path)


def settings_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def test_the_folder_is_what_llamafactory_asks_for(corpus: Corpus, tmp_path: Path) -> None:
    out = export(corpus, "llamafactory", tmp_path / "chosen", run=LlamaFactoryRun("org/Llama-3-8B", "llama3"))
    assert {p.name for p in out.iterdir()} == {
        *("train.jsonl", "dataset_info.json", "full.yaml", "lora.yaml", "README.md", "manifest.json")
    }
    (entry,) = json.loads((out / "dataset_info.json").read_text()).values()
    assert (entry["file_name"], entry["formatting"], entry["columns"]) == (
        "train.jsonl",
        "sharegpt",
        {"messages": "conversations"},
    )
    full, lora = settings_of(out / "full.yaml"), settings_of(out / "lora.yaml")
    assert {"template": "llama3", "model_name_or_path": "org/Llama-3-8B"}.items() <= full.items()
    assert set(full) == {*KEYS, "template"}
    assert set(lora) == {*KEYS, "template", "lora_rank", "lora_alpha", "lora_dropout", "lora_target"}
    # arXiv 2604.17614
    assert (full["learning_rate"], full["num_train_epochs"], full["warmup_ratio"]) == (5e-5, 1, 0.1)
    assert (full["per_device_train_batch_size"], full["gradient_accumulation_steps"]) == (2, 32)
    assert (full["lr_scheduler_type"], full["bf16"], full["cutoff_len"]) == ("cosine", True, 8000)
    assert (lora["learning_rate"], lora["lora_rank"], lora["lora_alpha"], lora["lora_dropout"]) == (1e-4, 16, 32, 0.05)
    assert full["dataset"] in json.loads((out / "dataset_info.json").read_text())
    assert full["output_dir"] == "../chosen-full", "a later export replaces the folder"
    assert "max_samples" not in full, "it takes the first rows; the file holds the chosen ones"


def test_without_a_model_the_place_is_left_to_fill_in(corpus: Corpus, tmp_path: Path) -> None:
    out = export(corpus, "llamafactory", tmp_path / "out")
    text = (out / "full.yaml").read_text()
    assert "# model_name_or_path is to be filled in" in text and "# Without 'template'" in text
    assert settings_of(out / "full.yaml")["model_name_or_path"] is None and "template" not in settings_of(
        out / "full.yaml"
    )


def test_other_settings_are_another_export(corpus: Corpus, tmp_path: Path) -> None:
    export(corpus, "llamafactory", tmp_path / "out")
    settings = TrainingSettings(epochs=3, lora=LoraSettings(rank=8))
    out = export(corpus, "llamafactory", tmp_path / "out", run=LlamaFactoryRun("m", lora=settings))
    assert settings_of(out / "lora.yaml")["lora_rank"] == 8 and settings_of(out / "lora.yaml")["num_train_epochs"] == 3
    assert settings_of(out / "full.yaml")["num_train_epochs"] == 1


@pytest.mark.slow
@installed
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_llamafactory_reads_every_row_and_learns_the_response(corpus: Corpus, tmp_path: Path, kind: str) -> None:
    lm = tiny_lm(template=TEMPLATE)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    out = export(corpus, "llamafactory", tmp_path / "out")
    done = subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name("llamafactory_loader.py")), f"{kind}.yaml", str(tmp_path / "model")],
        cwd=out,
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    # The same text as training here sees, and of it the last response alone is learnt, whole, with its end.
    rows = zip(corpus.rows["prompt"], corpus.rows["response"], strict=True)
    expected = [(row_text(prompt, response, lm.tokenizer).text, f"{response}</s>\n") for prompt, response in rows]
    assert [(row["text"], row["learnt"]) for row in seen["rows"]] == expected
    assert seen["settings"] == {
        "learning_rate": 5e-5 if kind == "full" else 1e-4,
        "epochs": 1,
        "micro_batch_size": 2,
        "accumulation_steps": 32,
        "scheduler": "cosine",
        "warmup": 100,
        "bf16": True,
        "cutoff_len": 8000,
        "finetuning_type": kind,
        "output_dir": f"../out-{kind}",
    }
    if kind == "lora":
        assert (seen["lora"], seen["asked_target"]) == ([16, 32, 0.05], ["all"])
        assert seen["lora_target"] == sorted(
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        )
