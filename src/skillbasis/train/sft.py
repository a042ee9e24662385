"""Fine-tune on disk with TRL: full or LoRA, resumable from its checkpoints, with the loss curve kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..artifact import building, fingerprint, is_current, remove_tree, write_json
from ..errors import SkillbasisError, UsageError, nearest
from ..lm import LanguageModel
from .loop import fine_tune_in_memory, tokenize_examples
from .settings import TrainingSettings

KIND = "model"
TRAINERS = ("trl", "lean")


def check_trainer(name: str) -> None:
    """Raises: UsageError: an unknown trainer."""
    if name not in TRAINERS:
        raise UsageError(f"unknown trainer {name!r}{nearest(name, list(TRAINERS))}; allowed are {', '.join(TRAINERS)}")


def fine_tune(
    lm: LanguageModel,
    rows: Sequence[tuple[list[dict[str, str]], str]],
    settings: TrainingSettings,
    out: str | Path,
    *,
    trainer: str = "trl",
) -> Path:
    """Fine-tunes a model on prompts and responses into an ordinary checkpoint directory.

    Args:
        lm: the base.
        rows: (prompt messages, response) pairs, usually of a selection.
        out: directory of the checkpoint (with tokenizer and `losses.json`); a LoRA run leaves an adapter.
        trainer: `trl` (resumes from its last checkpoint), or `lean` (in memory, for small models).
    Returns: the directory.
    Raises: SkillbasisError: a row without a response, or a loss that is not finite.
    """
    check_trainer(trainer)
    out = Path(out)
    if not rows:
        raise UsageError("there are no rows to train on")
    empty = [number for number, (_, response) in enumerate(rows, 1) if not response]
    if empty:
        raise SkillbasisError(f"training row {empty[0]} has no response; {len(empty)} rows have none, drop them")
    inputs = {
        "weights_fingerprint": lm.weights_fingerprint,
        "rows_fingerprint": rows_fingerprint(rows),
        "settings": asdict(settings),
        "trainer": trainer,
    }
    if is_current(out, KIND, inputs):
        return out
    manifest: dict[str, Any] = {"base": lm.name, "rows": len(rows)}
    with building(out, KIND, inputs, manifest) as work:
        if trainer == "lean":
            tuned, losses = fine_tune_in_memory(lm, rows, settings)
            tuned.model.save_pretrained(work)
        else:
            losses = _train_with_trl(lm, rows, settings, work)
        lm.tokenizer.save_pretrained(work)
        write_json(work / "losses.json", losses)
        manifest["final_loss"] = losses[-1]
    return out


def rows_fingerprint(rows: Sequence[tuple[list[dict[str, str]], str]]) -> str:
    """Identifies training data by its content and order."""
    return fingerprint([[prompt, response] for prompt, response in rows])


def _train_with_trl(
    lm: LanguageModel, rows: Sequence[tuple[list[dict[str, str]], str]], settings: TrainingSettings, work: Path
) -> list[float]:
    """Trains with TRL's SFTTrainer on prompt-completion data; returns the loss of every optimizer step."""
    import copy
    import math

    import datasets
    import torch
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    # Rows are given as tokens: from text, TRL would add a second BOS and end token to what a template has written.
    max_length = min(settings.max_length, lm.context_length)
    examples = tokenize_examples(lm, rows, max_length)
    datasets.disable_progress_bars()  # TRL maps the data set several times, each with bars of its own
    data = datasets.Dataset.from_dict(
        {
            "input_ids": [example.prompt_ids + example.response_ids for example in examples],
            "completion_mask": [
                [0] * len(example.prompt_ids) + [1] * len(example.response_ids) for example in examples
            ],
        }
    )
    peft_config = None
    if settings.lora is not None:
        from peft import LoraConfig

        peft_config = LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,
            lora_dropout=settings.lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    on_gpu = lm.device.type == "cuda"
    checkpoints = work / "checkpoints"
    n_steps = math.ceil(math.ceil(len(rows) / settings.batch_size) * settings.epochs)
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup_fraction * n_steps),
        weight_decay=0.0,
        max_length=max_length,
        completion_only_loss=True,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=settings.bf16 and on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        gradient_checkpointing=on_gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would hide that training diverged
        save_strategy="steps",
        save_steps=max(1, n_steps // 10),
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel over several GPUs would multiply the batch
    model = copy.deepcopy(lm.model)
    if settings.lora is None:
        model = model.float()  # steps of 5e-5 round away in bfloat16 weights; mixed precision computes in bfloat16
    trainer = SFTTrainer(
        model=model,
        processing_class=lm.tokenizer,
        train_dataset=data,
        peft_config=peft_config,
        args=arguments,
    )
    trainer.remove_callback(PrinterCallback)
    # A kill may leave an unfinished checkpoint, whose state is missing since it is written last.
    finished = [path.parent for path in checkpoints.glob("checkpoint-*/trainer_state.json")]
    newest = max(finished, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not losses or not all(map(math.isfinite, losses)):
        raise SkillbasisError(
            f"training diverged: the loss is not finite; lower the learning rate ({settings.learning_rate})"
        )
    model.config.use_cache = lm.model.config.use_cache  # the trainer has switched it off
    model.to(lm.model.dtype)
    trainer.save_model(str(work))
    (work / "training_args.bin").unlink()  # a pickle
    remove_tree(checkpoints)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return losses
