"""Fine-tune into a checkpoint directory: by TRL or by the lean loop, with the loss curve kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..artifact import building, fingerprint, is_current, read_json, write_json
from ..errors import SkillbasisError, UsageError, nearest
from ..lm import LanguageModel, load_model
from .launch import join
from .loop import fine_tune_in_memory
from .settings import TrainingSettings
from .trl_run import train_with_trl

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
    in_place: bool = False,
) -> Path:
    """Fine-tunes a model on prompts and responses into an ordinary checkpoint directory.

    Called in every process of a launcher (`torchrun`, `accelerate launch`), the processes train one model together:
    `settings.batch_size` counts the rows of all of them, the first one alone holds the lock and writes the result,
    and the others wait for it.

    Args:
        lm: the base.
        rows: (prompt messages, response) pairs, usually of a selection.
        out: directory of the checkpoint (with tokenizer and `losses.json`); a LoRA run leaves an adapter.
        trainer: `trl` (resumes from its last checkpoint), or `lean` (in memory, for small models).
        in_place: with `trl`, train the weights of `lm` itself and spare the memory of a copy; `lm` is used up.
    Returns: the directory.
    Raises: SkillbasisError: a row without a response, or a loss that is not finite. ArtifactError: another process
        works on `out`, or the unfinished work there was begun with FSDP and is not gone on with so. UsageError: the
        batch cannot be shared out among the processes.
    """
    check_trainer(trainer)
    out = Path(out)
    if not rows:
        raise UsageError("there are no rows to train on")
    empty = [number for number, (_, response) in enumerate(rows, 1) if not response]
    if empty:
        raise SkillbasisError(f"training row {empty[0]} has no response; {len(empty)} rows have none, drop them")
    processes = join(on_gpu=lm.device.type == "cuda")
    if processes.count > 1 and trainer == "lean":
        raise UsageError("the lean trainer works in one process; use trainer 'trl' with a launcher")
    settings.accumulation_steps(processes.count)  # refused now rather than with the work begun
    inputs = {
        "weights_fingerprint": lm.weights_fingerprint,
        "rows_fingerprint": rows_fingerprint(rows),
        "settings": asdict(settings),
        "trainer": trainer,
    }
    if processes.once(lambda: is_current(out, KIND, inputs)):
        return out
    manifest: dict[str, Any] = {"base": lm.name, "rows": len(rows), "processes": processes.count}
    with ExitStack() as held:  # by the first process
        work = processes.once(lambda: held.enter_context(building(out, KIND, inputs, manifest)))
        if trainer == "lean":
            tuned, losses = fine_tune_in_memory(lm, rows, settings)
            tuned.model.save_pretrained(work)
        else:
            losses = train_with_trl(lm, rows, settings, work, processes, in_place=in_place)
        if processes.first:
            lm.tokenizer.save_pretrained(work)
            write_json(work / "losses.json", losses)
            manifest["final_loss"] = losses[-1]
    processes.wait()
    return out


def fine_tuned(
    lm: LanguageModel,
    rows: Sequence[tuple[list[dict[str, str]], str]],
    settings: TrainingSettings,
    out: Path,
    *,
    trainer: str = "trl",
) -> tuple[LanguageModel, list[float]]:
    """Fine-tunes a model that is used at once: in memory by the lean loop, else by way of a checkpoint in `out`.

    Returns: the model, in the precision of the base, and the loss of every step.
    Raises: as `fine_tune`.
    """
    check_trainer(trainer)
    if trainer == "lean":
        return fine_tune_in_memory(lm, rows, settings)
    path = fine_tune(lm, rows, settings, out, trainer=trainer)
    dtype = str(lm.model.dtype).removeprefix("torch.")
    return load_model(path, dtype=dtype), read_json(path / "losses.json")


def rows_fingerprint(rows: Sequence[tuple[list[dict[str, str]], str]]) -> str:
    """Identifies training data by its content and order."""
    return fingerprint([[prompt, response] for prompt, response in rows])
