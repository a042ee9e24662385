"""A run of TRL's SFTTrainer: full or LoRA, in one process or several, resumable from its checkpoints."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import read_json, remove_tree, write_json
from ..errors import ArtifactError, SkillbasisError
from ..lm import LanguageModel
from .adapters import lora_config
from .launch import Processes
from .loop import TrainingExample, tokenize_examples
from .settings import TrainingSettings

if TYPE_CHECKING:
    import datasets
    import torch

_IGNORED = -100  # the label of tokens without loss


def train_with_trl(
    lm: LanguageModel,
    rows: Sequence[tuple[list[dict[str, str]], str]],
    settings: TrainingSettings,
    work: Path,
    processes: Processes,
    *,
    in_place: bool,
) -> list[float]:
    """Trains on the responses of rows and writes the model into `work`; goes on from a checkpoint found there.

    Every process calls this; the first one writes. Returns the loss of every optimizer step (mean over the response
    tokens of the step's rows, whichever process they were in).
    """
    import copy

    import datasets
    import torch
    from transformers import PrinterCallback
    from trl import SFTTrainer  # type: ignore[attr-defined]

    n_steps = math.ceil(math.ceil(len(rows) / settings.batch_size) * settings.epochs)
    arguments = _arguments(lm, settings, work / "checkpoints", processes, n_steps)
    datasets.disable_progress_bars()
    max_length = min(settings.max_length, lm.context_length)
    data = _whole_batches(tokenize_examples(lm, rows, max_length), settings.batch_size, lm.tokenizer.pad_token_id)
    dtype, use_cache = lm.model.dtype, lm.model.config.use_cache
    model = lm.model if in_place else copy.deepcopy(lm.model)
    if settings.lora is None:
        model = model.float()  # steps of 5e-5 round away in bfloat16 weights; mixed precision computes in bfloat16
    trainer = SFTTrainer(
        model=model,
        processing_class=lm.tokenizer,
        train_dataset=data,
        peft_config=None if settings.lora is None else lora_config(lm, settings.lora),
        args=arguments,
    )
    trainer.remove_callback(PrinterCallback)
    _warn_of_lost_sharding(trainer, processes)
    newest = processes.once(lambda: _last_checkpoint(work / "checkpoints", trainer.is_fsdp_enabled))
    trainer.train(resume_from_checkpoint=newest)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not losses or not all(map(math.isfinite, losses)):
        raise SkillbasisError(
            f"training diverged: the loss is not finite; lower the learning rate ({settings.learning_rate})"
        )
    _save(trainer, work, processes, None if settings.lora is not None else dtype, use_cache)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return losses


def _arguments(
    lm: LanguageModel, settings: TrainingSettings, checkpoints: Path, processes: Processes, n_steps: int
) -> Any:
    from trl import SFTConfig  # type: ignore[attr-defined]

    on_gpu = lm.device.type == "cuda"
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.accumulation_steps(processes.count),
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup_fraction * n_steps),
        weight_decay=0.0,
        # From text, TRL would add a second BOS and end token to what a template has written, so it is given tokens and
        # labels, and is to leave them alone.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
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
    return arguments


def _whole_batches(examples: Sequence[TrainingExample], batch_size: int, pad_token_id: int) -> datasets.Dataset:
    """Tokens and labels of the rows, filled up to whole batches by rows of one token without loss.

    Dealing rows to several processes, accelerate would repeat some to give each as many. With whole batches it need
    not, and the steps are of the same rows whatever the number of processes. No step is of fillers alone.
    """
    import datasets

    n_fillers = -len(examples) % batch_size
    tokens = [example.prompt_ids + example.response_ids for example in examples]
    labels = [[_IGNORED] * len(example.prompt_ids) + example.response_ids for example in examples]
    return datasets.Dataset.from_dict(
        {
            "input_ids": tokens + [[pad_token_id]] * n_fillers,
            "labels": labels + [[_IGNORED]] * n_fillers,
        }
    )


def _warn_of_lost_sharding(trainer: Any, processes: Processes) -> None:
    """Says that FSDP was asked for and is not done: accelerate leaves it out on the CPU without a word."""
    import os

    import accelerate

    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and not trainer.is_fsdp_enabled and processes.first:
        print(
            f"accelerate {accelerate.__version__} does not shard over {trainer.args.device.type} processes: every one "
            f"of the {processes.count} holds the whole model, which changes memory and not the result",
            file=sys.stderr,
        )


def _last_checkpoint(checkpoints: Path, sharded: bool) -> str | None:
    """The newest checkpoint that is whole. A kill may leave one whose state, which is written last, is missing."""
    finished = [path.parent for path in checkpoints.glob("checkpoint-*/trainer_state.json")]
    newest = max(finished, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)
    if newest is None:
        return None
    if any(newest.glob("pytorch_model_fsdp*")) != sharded:
        raise ArtifactError(
            f"the unfinished training in {checkpoints.parent} was begun {'without' if sharded else 'with'} FSDP; go on "
            "with the launcher it was begun with, or delete that directory to train anew"
        )
    return str(newest)


def _save(trainer: Any, work: Path, processes: Processes, dtype: torch.dtype | None, use_cache: bool) -> None:
    """Writes the model as one process would: whole, also where it was sharded; in the given precision, or as it is."""
    weights = trainer.accelerator.get_state_dict(trainer.model)  # gathered from all processes
    if processes.first:
        tuned = trainer.accelerator.unwrap_model(trainer.model)
        tuned.config.use_cache = use_cache  # the trainer has switched it off
        if dtype is not None:
            tied = tuned.all_tied_weights_keys  # copies of other weights, which would no longer be seen to be the same
            weights = {name: value.to("cpu", dtype) for name, value in weights.items() if name not in tied}
        tuned.save_pretrained(work, state_dict=weights)
        if dtype is not None:  # written as that of the weights in memory
            config = read_json(work / "config.json")
            write_json(work / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})
        remove_tree(work / "checkpoints")
