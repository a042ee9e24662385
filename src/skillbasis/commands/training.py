"""Fine-tuning, and chosen rows in the formats of other trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .options import Dtype, Format, LabelColumn, Model, OnBadRow, OptionalModel, Out, Seed, read_corpus

if TYPE_CHECKING:
    from ..train import TrainingSettings

Preset = Annotated[str, typer.Option(help="reasoning, safety or embedded; other options change single settings of it.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Highest learning rate.")]
Epochs = Annotated[float | None, typer.Option(help="Times every row is seen.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows per optimizer step, over all processes.")]
MicroBatchSize = Annotated[int | None, typer.Option(help="Rows per forward pass of one process.")]
Warmup = Annotated[float | None, typer.Option(help="Share of the steps in which the learning rate rises.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens after which prompt plus response is cut.")]
Lora = Annotated[
    bool | None, typer.Option("--lora/--no-lora", help="Train low-rank adapters; as the preset if not given.")
]
LoraRank = Annotated[int | None, typer.Option(help="Rank of the adapters.")]
LoraAlpha = Annotated[int | None, typer.Option(help="Adapters are scaled by alpha / rank.")]
LoraDropout = Annotated[float | None, typer.Option(help="Dropout in front of the adapters.")]


def train(
    data: str,
    model: Model,
    out: Out,
    preset: Preset = "reasoning",
    trainer: Annotated[str, typer.Option(help="trl, or lean (in memory, for small models).")] = "trl",
    learning_rate: LearningRate = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    micro_batch_size: MicroBatchSize = None,
    warmup: Warmup = None,
    max_length: MaxLength = None,
    lora: Lora = None,
    lora_rank: LoraRank = None,
    lora_alpha: LoraAlpha = None,
    lora_dropout: LoraDropout = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    format: Format = None,
    label_column: LabelColumn = None,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Fine-tune on prompts and responses, learning the responses; torchrun and accelerate launch may start it."""
    import torch

    from ..lm import load_model
    from ..train import fine_tune
    from ..train.launch import join, leave, own_device

    changes = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    changes |= {"micro_batch_size": micro_batch_size, "max_length": max_length, "warmup_fraction": warmup}
    adapters = {"rank": lora_rank, "alpha": lora_alpha, "dropout": lora_dropout}
    settings = _settings(preset, changes, lora, adapters)
    processes = join(on_gpu=torch.cuda.is_available())
    corpus = read_corpus(data, format, label_column, on_bad_row, out=out if processes.first else None)
    base = load_model(model, dtype=dtype, device=own_device())
    rows = list(zip(corpus.rows["prompt"], corpus.rows["response"], strict=True))
    path = fine_tune(base, rows, settings, out, trainer=trainer, in_place=True)
    if processes.first:
        print(f"{path}: fine-tuned on {len(corpus)} rows; the loss of every step is in {path / 'losses.json'}")
    leave()


def _settings(preset: str, changes: dict[str, Any], lora: bool | None, adapters: dict[str, Any]) -> TrainingSettings:
    """A preset with single settings changed; None leaves one as it is.

    Options of adapters ask for adapters. Raises: UsageError: they are given together with --no-lora.
    """
    from dataclasses import replace

    from ..train.settings import LoraSettings
    from ..train.settings import preset as named

    settings = replace(named(preset), **{name: value for name, value in changes.items() if value is not None})
    given = {name: value for name, value in adapters.items() if value is not None}
    if lora is False:
        if given:
            raise UsageError(f"--no-lora and --lora-{min(given)} exclude each other; give one of them")
        return replace(settings, lora=None)
    if lora or given or settings.lora is not None:
        return replace(settings, lora=replace(settings.lora or LoraSettings(), **given))
    return settings


def export(
    to: Annotated[str, typer.Argument(help="llamafactory, trl, sharegpt, alpaca or messages.")],
    data: Annotated[str, typer.Argument(help="Selection or corpus; all its rows are written, in their order.")],
    out: Out,
    model: OptionalModel = None,
    template: Annotated[
        str | None, typer.Option(help="LLaMA-Factory's name of the chat template; the tokenizer's own if not given.")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Upload as this data set of the Hub (OWNER/NAME); the token is read from HF_TOKEN."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: a private data set.")] = False,
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Write chosen rows for another trainer, with how they were chosen and a data card."""
    from ..train.export import LlamaFactoryRun, export_format, push_dataset
    from ..train.export import export as write

    export_format(to)
    if (model or template) and to != "llamafactory":
        raise UsageError(f"--model and --template go into the YAML of llamafactory; {to} has none, leave them out")
    if private and push is None:
        raise UsageError("--private is for --push; give --push OWNER/NAME too, or leave it out")
    corpus = read_corpus(data, format, None, on_bad_row, out=out)
    run = LlamaFactoryRun(model, template) if to == "llamafactory" else None
    path = write(corpus, to, out, run=run)
    print(f"{path}: {len(corpus)} rows as {to}; README.md says how they were chosen and how to train on them")
    if to == "llamafactory" and model is None:
        print("full.yaml and lora.yaml name no model; fill in model_name_or_path, or export again with --model")
    if push is not None:
        print(push_dataset(path, push, private=private))
