"""What a run will cost, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .options import (
    AutoBatchTokens,
    Dtype,
    First,
    Format,
    Layers,
    Limit,
    MaxLength,
    OnBadRow,
    OptionalModel,
    Pooling,
    ShuffleSeed,
    Span,
    batch_size,
    read_corpus,
    reading_progress,
)

if TYPE_CHECKING:
    from ..plan import Plan

_DISK_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_MEMORY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def plan(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A recipe (.yaml), or a corpus together with --model.")],
    model: OptionalModel = None,
    layers: Layers = "inner",
    pooling: Pooling = "mean",
    span: Span = "all",
    max_length: MaxLength = 8000,
    batch_tokens: AutoBatchTokens = "auto",
    dtype: Dtype = "auto",
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
    first: First = False,
    gpu: Annotated[str, typer.Option(help="Device by name, such as H100, A100, L40S, RTX4090, MI300X.")] = "H100",
    n_gpus: Annotated[int, typer.Option(help="How many of them share the work.")] = 1,
    utilisation: Annotated[float, typer.Option(help="Share of their data sheet's throughput that is reached.")] = 0.4,
    json: Annotated[Path | None, typer.Option("--json", help="Write all numbers there, too.")] = None,
) -> None:
    """What a recipe or an extraction will cost: tokens, operations, hours, memory, disk. No weights are loaded."""
    from ..activations import ExtractionSettings
    from ..flops import Device
    from ..plan import plan_extraction, plan_recipe
    from ..recipe import load_recipe

    device = Device(gpu, n_gpus, utilisation)
    if json is not None and json.is_dir():
        raise UsageError(f"--json {json} is a directory; give the name of a file")
    if source.endswith((".yaml", ".yml")):
        _refuse_corpus_options(context)
        recipe = load_recipe(source)
        with reading_progress("count tokens") as on_rows:
            made = plan_recipe(recipe, device, on_rows=on_rows)
    else:
        if model is None:
            raise UsageError(f"{source} is no recipe (.yaml); give one, or a corpus together with --model")
        settings = ExtractionSettings(layers, pooling, span, max_length, batch_size(batch_tokens))  # type: ignore[arg-type]
        corpus = read_corpus(source, format, None, on_bad_row, limit, shuffle_seed, None, first)
        with reading_progress("count tokens") as on_rows:
            made = plan_extraction(corpus, model, settings, device, dtype=dtype, on_rows=on_rows)
    if json is not None:
        from dataclasses import asdict

        from ..artifact import write_json

        write_json(json, asdict(made))
    _show(made)


def _refuse_corpus_options(context: typer.Context) -> None:
    """A recipe says all that these options say; one that is given beside it would be passed over in silence."""
    kept = ("source", "gpu", "n_gpus", "utilisation", "json")
    given = [name for name in context.params if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"]
    wrong = [name for name in given if name not in kept]
    if wrong:
        option = "--" + wrong[0].replace("_", "-")
        raise UsageError(f"a recipe is planned as it stands; change it there and leave out {option}")


def _show(made: Plan) -> None:
    """Prints the tables, then what is to be known of single lines, then what is wrong."""
    from rich.console import Console

    from ..flops import GPUS

    gpu, tokens = GPUS[made.device.gpu], made.tokens
    exact = tokens.n_counted == tokens.n_rows
    about = "" if exact else "about "
    counted = (
        f"{tokens.n_tokens:,.0f}, counted"
        if exact
        else f"about {tokens.n_tokens:,.0f}, 95 % interval {tokens.low:,.0f} to {tokens.high:,.0f}, from "
        f"{tokens.n_counted:,} rows drawn at random"
    )
    print(f"model    {made.model}: {made.model_type}, {made.n_parameters:,} parameters, {made.dtype}")
    print(f"device   {made.device.n_gpus} x {gpu.name} at {made.device.utilisation:.0%} of {gpu.tflops:g} TFLOP/s")
    print(f"rows     {tokens.n_rows:,}")
    print(f"tokens   {counted}")
    print(
        f"cut      {about}{tokens.n_truncated:,.0f} rows at {made.max_length:,} tokens; longest read {tokens.longest:,}"
    )
    stages = [
        (s.name, f"{s.n_tokens:,.0f}", f"{s.forward_flops:.2e}", f"{s.backward_flops:.2e}", _hours(s.hours))
        for s in made.stages
    ]
    if len(stages) > 1:
        stages.append(("all", "", "", "", _hours(sum(stage.hours for stage in made.stages))))
    memory = [
        (
            m.stage,
            _memory(m.bytes),
            "yes" if m.fits else "no",
            ", ".join(f"{k} {_memory(v)}" for k, v in m.parts.items()),
        )
        for m in made.memory
    ]
    disk = [(item.what, _bytes(item.bytes), item.note) for item in made.disk]
    console = Console()
    console.print(_table("Work", ("stage", "tokens", "forward FLOP", "backward FLOP", "hours"), stages))
    fits = f"fits {gpu.memory_gib:g} GiB"
    console.print(_table("Memory of one device, estimated", ("stage", "needed", fits, "of which"), memory))
    console.print(_table("Disk", ("what", "size", "how"), disk))
    for stage in made.stages:
        print(f"{stage.name}: {stage.note}")
    for warning in made.warnings:
        print(f"warning: {warning}")


def _table(title: str, names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Any:
    """A Rich table whose first column is text, and the last too where it says how."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for i, name in enumerate(names):
        words = i == 0 or name in ("how", "of which")
        table.add_column(name, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.01 else f"{hours:.1e}"


def _bytes(size: float, units: tuple[str, ...] = _DISK_UNITS, step: int = 1000) -> str:
    """A size in the largest unit of which there is one."""
    power = 0
    while size >= step and power + 1 < len(units):
        size, power = size / step, power + 1
    return f"{size:,.1f} {units[power]}" if power else f"{size:,.0f} B"


def _memory(size: float) -> str:
    return _bytes(size, _MEMORY_UNITS, 1024)
