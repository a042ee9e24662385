"""LLaMA-Factory: ShareGPT rows, the entry that describes them, and the YAML of a full and of a LoRA run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifact import write_json, write_text
from ...corpus_formats import Message, RowError
from ..settings import PRESETS, TrainingSettings
from .form import ExportFormat
from .sharegpt import columns as sharegpt_columns

DATASET = "skillbasis"
"""Name of the data set in `dataset_info.json` and the YAML."""

ABOUT = """`conversations`: the turns, `{"from": ..., "value": ...}`, from `system`, `human`, `gpt` or `observation` (a
tool's result); the last one is the response. `dataset_info.json` describes them to LLaMA-Factory. In this folder:

```
llamafactory-cli train full.yaml
llamafactory-cli train lora.yaml
```

Both learn the last response of a row only (`mask_history`). They count on one device: on N of them divide
`gradient_accumulation_steps` by N."""

_TURNS = (("user", "tool"), ("assistant",))


@dataclass(frozen=True)
class LlamaFactoryRun:
    """What the YAML says beyond the settings of training."""

    model: str | None = None
    """Directory or hub id of the base; None leaves it to be filled in, and LLaMA-Factory asks for it."""
    template: str | None = None
    """LLaMA-Factory's name of the chat template; with None it reads the tokenizer's own, as training here does."""
    full: TrainingSettings = PRESETS["reasoning"]
    lora: TrainingSettings = PRESETS["safety"]


def columns(prompt: list[Message], response: str) -> dict[str, list[Message]]:
    """ShareGPT columns. LLaMA-Factory drops other orders of turns in silence, so they are refused here."""
    with_system = bool(prompt) and prompt[0]["role"] == "system"
    if with_system and not prompt[0]["content"]:
        raise RowError(
            "its system prompt is empty, which LLaMA-Factory takes for none and puts the template's own there"
        )
    turns = prompt[1:] if with_system else prompt
    fits = len(turns) % 2 == 1 and all(turn["role"] in _TURNS[i % 2] for i, turn in enumerate(turns))
    if not fits:
        roles = ", ".join(turn["role"] for turn in prompt)
        raise RowError(
            "LLaMA-Factory reads user (or tool) and assistant turns by turns after at most one system prompt, ending "
            f"with a user's, and this prompt is {roles}"
        )
    return sharegpt_columns(prompt, response)


LLAMAFACTORY = ExportFormat("llamafactory", columns, "sharegpt", ABOUT, ("llama-factory",))


def write_description(folder: Path, file: str, run: LlamaFactoryRun, name: str) -> None:
    """Writes `dataset_info.json`, `full.yaml` and `lora.yaml` beside the rows.

    Args:
        folder: where the rows lie.
        file: name of their file.
        run: model, template, and the settings of both runs.
        name: name of the export; the checkpoints go to `NAME-full` and `NAME-lora` beside it, since a later export
            replaces the folder with all that is in it.
    """
    entry = {
        "file_name": file,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
        "tags": {
            "role_tag": "from",
            "content_tag": "value",
            "user_tag": "human",
            "assistant_tag": "gpt",
            "observation_tag": "observation",
            "function_tag": "function_call",
            "system_tag": "system",
        },
    }
    write_json(folder / "dataset_info.json", {DATASET: entry})
    for kind, settings in (("full", run.full), ("lora", run.lora)):
        write_text(folder / f"{kind}.yaml", _yaml(kind, settings, run, f"../{name}-{kind}"))


def _yaml(kind: str, settings: TrainingSettings, run: LlamaFactoryRun, output: str) -> str:
    import yaml

    model: dict[str, Any] = {"model_name_or_path": run.model, "trust_remote_code": False}
    method: dict[str, Any] = {"stage": "sft", "do_train": True, "finetuning_type": kind}
    if kind == "lora":
        lora = settings.lora or LlamaFactoryRun.lora.lora
        assert lora is not None
        method |= {
            "lora_rank": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "lora_target": "all",  # of Llama, Qwen and Mistral the paper's seven; of Phi-3 the four that hold them
        }
    data: dict[str, Any] = {"dataset": DATASET, "dataset_dir": "."}
    if run.template is not None:
        data["template"] = run.template
    data |= {"cutoff_len": settings.max_length, "mask_history": True}
    training = {
        "output_dir": output,
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.accumulation_steps(1),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": settings.warmup_fraction,
        "bf16": settings.bf16,
        "seed": settings.seed,
        "logging_steps": 1,
        "report_to": "none",
    }
    head = f"# Made by skillbasis. In this folder: llamafactory-cli train {kind}.yaml\n"
    if run.model is None:
        head += "# model_name_or_path is to be filled in: a directory or a hub id.\n"
    if run.template is None:
        head += (
            "# Without 'template' the tokenizer's own chat template is read; name one (llama3, qwen, mistral) if not.\n"
        )
    return head + "".join(yaml.safe_dump(part, sort_keys=False) for part in (model, method, data, training))
