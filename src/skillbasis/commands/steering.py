"""From a direction to a steered model: vectors, baked checkpoints, other engines' formats, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .options import Dtype, Model, OptionalModel, Out, check_file, warn_unstable

OptionalBasis = Annotated[Path | None, typer.Option("--basis", help="Basis directory.")]
Direction = Annotated[
    str | None, typer.Option("--direction", help="Direction and sign, such as 3+, or a sum such as 0.5*3+,7-.")
]
Vector = Annotated[Path | None, typer.Option("--vector", help="Steering vector (.safetensors) instead of a direction.")]
Alpha = Annotated[float, typer.Option("--alpha", help="Strength, in the unit.")]
UnitOption = Annotated[str, typer.Option("--unit", help="raw, std or relative; a --vector has its own.")]
Blocks = Annotated[str | None, typer.Option("--blocks", help="Block ids, such as 8,10-12; all of the basis if none.")]
IncrementsOption = Annotated[
    str, typer.Option("--increments", help="accumulate (v_i at every block), or exact (v_i - v_(i-1)).")
]
Calibrate = Annotated[
    str | None, typer.Option("--calibrate", help="Corpus on which the norms for the unit relative are measured.")
]
CalibrationRows = Annotated[int, typer.Option(min=1, help="Rows of it to read.")]
_NO_LIMIT = 100_000  # blocks
Merge = Annotated[bool, typer.Option("--merge", help="Merge a LoRA adapter into its base first.")]


def vectors(
    out: Annotated[Path, typer.Option("--out", help="FILE.safetensors")],
    basis: OptionalBasis = None,
    direction: Direction = None,
    success: Annotated[Path | None, typer.Option("--success", help="Evaluation of the model: its answers.")] = None,
    against: Annotated[str, typer.Option(help="What success is set against: incorrect, all or none.")] = "incorrect",
    gradient: Annotated[Path | None, typer.Option("--gradient", help="Evaluation of the model: its answers.")] = None,
    difference: Annotated[Path | None, typer.Option("--difference", help="Directory of activations.")] = None,
    plus: Annotated[Path | None, typer.Option(help="Ids of rows, one a line, or a selection (.jsonl).")] = None,
    minus: Annotated[Path | None, typer.Option(help="The same for the other side; all rows if none.")] = None,
    model: OptionalModel = None,
    alpha: Alpha = 1.0,
    unit: UnitOption = "raw",
    blocks: Blocks = None,
    increments: IncrementsOption = "accumulate",
    layers: Annotated[str, typer.Option(help="Blocks that --success reads: inner, all or a list.")] = "inner",
    pooling: Annotated[str, typer.Option(help="Of the answers for --success: mean, last or max.")] = "mean",
    span: Annotated[str, typer.Option(help="Of the answers for --success: response, prompt or all.")] = "response",
    task: Annotated[str | None, typer.Option("--task", help="One task of the evaluation; all if none.")] = None,
    shuffle_seed: Annotated[
        int | None, typer.Option(help="Deal the grades anew within each problem: a control of what they are worth.")
    ] = None,
    calibrate: Calibrate = None,
    calibration_rows: CalibrationRows = 200,
    dtype: Dtype = "auto",
) -> None:
    """Make a steering vector: a direction, a sum of directions, or one from the model's own answers or from rows."""
    from ..steer.verify import check_strength

    check_file(out)
    sources = {"--basis": basis, "--success": success, "--gradient": gradient, "--difference": difference}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise UsageError(f"give one of {', '.join(sources)} to make a vector from, not {' and '.join(given) or 'none'}")
    options: dict[str, Any] = {"unit": unit, "blocks": read_blocks(blocks), "increments": increments}
    lm: Any = load_language_model(model, dtype) if model is not None else None
    if given[0] in ("--success", "--gradient") and lm is None:
        raise UsageError(f"{given[0]} reads the model's states at its own answers; give --model too")
    if basis is not None:
        vector = vector_of(basis, direction, lm, options)
    elif success is not None:
        from ..steer.contrasts import success_vector

        options |= {"task": task, "shuffle_seed": shuffle_seed, "layers": layers}
        vector = success_vector(lm, success, against=against, pooling=pooling, span=span, **options)  # type: ignore[arg-type]
    elif gradient is not None:
        from ..steer.gradients import gradient_vector

        if not options["blocks"]:
            raise UsageError("--gradient is taken at chosen blocks; give --blocks, such as --blocks 12")
        if increments != "accumulate":
            raise UsageError("a gradient is what is added at each block already; leave out --increments")
        vector = gradient_vector(
            lm, gradient, options["blocks"], unit=options["unit"], task=task, shuffle_seed=shuffle_seed
        )
    else:
        from ..activations import ActivationStore
        from ..steer.contrasts import mean_difference

        assert difference is not None
        if plus is None:
            raise UsageError("--difference compares rows; give their ids with --plus (and --minus)")
        name = f"{plus.stem} against {minus.stem if minus else 'all'}"
        other = _ids(minus) if minus else None
        vector = mean_difference(ActivationStore.open(difference), _ids(plus), other, name=name, **options)
    vector = _calibrated(vector, lm, calibrate, calibration_rows).scaled(alpha)
    if lm is not None:
        check_strength(lm, vector, 1.0)
    vector.save(out)
    norms = ", ".join(f"{block}: {norm:.4g}" for block, norm in zip(vector.block_ids, vector.norms, strict=True))
    print(f"{out}: {vector.name}, unit {vector.unit}; alpha 1 adds by block {norms}")


def bake(
    model: Model,
    out: Out,
    basis: OptionalBasis = None,
    direction: Direction = None,
    vector: Vector = None,
    alpha: Alpha = 0.5,
    unit: UnitOption = "raw",
    blocks: Blocks = None,
    increments: IncrementsOption = "accumulate",
    calibrate: Calibrate = None,
    calibration_rows: CalibrationRows = 200,
    merge: Merge = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint baked otherwise.")] = False,
    dtype: Annotated[str, typer.Option(help="In which original and result are compared.")] = "auto",
) -> None:
    """Write an ordinary checkpoint that is steered, for transformers and vLLM, and compare it with the hooked model."""
    from ..steer.bake import bake as run_bake
    from ..steer.verify import describe

    lm = (
        load_language_model(model, dtype) if calibrate is not None else None
    )  # bake opens it itself, and checks the vector
    chosen = _requested(basis, direction, vector, unit, blocks, increments, lm, calibrate, calibration_rows)
    del lm
    record = run_bake(model, chosen, alpha, out, dtype=dtype, merge=merge, overwrite=overwrite)
    print(f"{out}: {chosen.name} at alpha {alpha:g}; {describe(record['verification'])}")


def verify(
    checkpoint: Path,
    base: Annotated[str | None, typer.Option("--base", help="The original model, where it is not found.")] = None,
    dtype: Annotated[str, typer.Option(help="In which the two are compared.")] = "auto",
) -> None:
    """Compare a baked checkpoint with the hooked original once more."""
    from ..steer.verify import describe
    from ..steer.verify import verify as run_verify

    print(f"{checkpoint}: {describe(run_verify(checkpoint, base, dtype=dtype))}")


def gguf(
    out: Annotated[Path, typer.Option("--out", help="FILE.gguf")],
    basis: OptionalBasis = None,
    direction: Direction = None,
    vector: Vector = None,
    model: OptionalModel = None,
    alpha: Alpha = 0.5,
    unit: UnitOption = "raw",
    blocks: Blocks = None,
    increments: IncrementsOption = "accumulate",
    calibrate: Calibrate = None,
    calibration_rows: CalibrationRows = 200,
    dtype: Dtype = "auto",
) -> None:
    """Write a control vector for llama.cpp (repeng and EasySteer read it too); alpha is folded in."""
    from ..steer.formats import to_gguf
    from ..steer.verify import check_strength

    check_file(out)
    lm = load_language_model(model, dtype) if model is not None else None
    chosen = _requested(basis, direction, vector, unit, blocks, increments, lm, calibrate, calibration_rows)
    if lm is not None:
        check_strength(lm, chosen, alpha)
    _told(to_gguf(chosen, out, alpha=alpha))
    print(f"{out}: {chosen.name} at alpha {alpha:g}, added to all tokens at scale 1")


def easysteer(
    out: Out,
    basis: OptionalBasis = None,
    direction: Direction = None,
    vector: Vector = None,
    model: OptionalModel = None,
    alpha: Alpha = 0.5,
    unit: UnitOption = "raw",
    blocks: Blocks = None,
    increments: IncrementsOption = "accumulate",
    scope: Annotated[str, typer.Option(help="all, prompt, last-prompt, generated or from:N.")] = "all",
    calibrate: Calibrate = None,
    calibration_rows: CalibrationRows = 200,
    dtype: Dtype = "auto",
) -> None:
    """Write a vector for EasySteer: the control vector and how it is to be applied."""
    from ..steer.formats import to_easysteer
    from ..steer.verify import check_strength

    lm = load_language_model(model, dtype) if model is not None else None
    chosen = _requested(basis, direction, vector, unit, blocks, increments, lm, calibrate, calibration_rows)
    if lm is not None:
        check_strength(lm, chosen, alpha)
    _told(to_easysteer(chosen, out, alpha=alpha, scope=scope))
    print(f"{out}: {chosen.name} at alpha {alpha:g}, scope {scope}")


def audit(
    checkpoint: str,
    base: Annotated[str, typer.Option("--base", help="The model it is said to be made from.")],
    basis: OptionalBasis = None,
    out: Annotated[Path | None, typer.Option("--out", help="FILE.json with all figures.")] = None,
) -> None:
    """Say what was changed in a checkpoint: constant offsets, their direction, its place in a basis, other weights."""
    from ..artifact import write_json
    from ..basis import SkillBasis
    from ..steer.audit import audit as run_audit
    from ..steer.audit import describe

    if out is not None:
        check_file(out)
    report = run_audit(checkpoint, base, SkillBasis.load(basis) if basis else None)
    if out is not None:
        write_json(out, report)
    print(describe(report))


def _requested(
    basis: Path | None,
    direction: str | None,
    file: Path | None,
    unit: str,
    blocks: str | None,
    increments: str,
    lm: Any,
    calibrate: str | None,
    calibration_rows: int,
) -> Any:
    """The vector that the options of a command name, in a unit that a constant carrier can hold."""
    from ..steer import SteeringVector

    if (basis is None) == (file is None):
        raise UsageError("say what to steer along: --basis with --direction, or --vector")
    if file is not None:
        if (direction, blocks) != (None, None):
            raise UsageError("a --vector is taken as it is; leave out --direction and --blocks")
        vector = SteeringVector.load(file)
    else:
        assert basis is not None
        options: dict[str, Any] = {"unit": unit, "blocks": read_blocks(blocks), "increments": increments}
        vector = vector_of(basis, direction, lm, options)
    return _calibrated(vector, lm, calibrate, calibration_rows)


def vector_of(path: Path, direction: str | None, lm: Any, options: dict[str, Any]) -> Any:
    from ..basis import SkillBasis
    from ..steer import parse_weights, requested_vector

    if direction is None:
        raise UsageError("say which direction of the basis, with --direction, such as --direction 3+")
    basis = SkillBasis.load(path)
    if lm is not None:
        basis.check_model(lm)
    vector = requested_vector(basis, direction, **options)
    warn_unstable(basis, parse_weights(direction))
    return vector


def _calibrated(vector: Any, lm: Any, corpus: str | None, n_rows: int) -> Any:
    """A relative vector as a constant one where a corpus to measure norms on is given."""
    from ..corpus import load_corpus
    from ..steer.norms import residual_norms

    if corpus is None:
        return vector
    if vector.unit != "relative":
        raise UsageError(f"--calibrate is for the unit relative; this vector is in {vector.unit}, so leave it out")
    if lm is None:
        raise UsageError("--calibrate measures the norms of the model's states; give --model too")
    vector.check_model(lm)
    rows = load_corpus(corpus, limit=n_rows, shuffle_seed=0).rows
    pairs = list(zip(rows["prompt"], rows["response"], strict=True))
    return vector.calibrated(residual_norms(lm, pairs, vector.block_ids))


def read_blocks(text: str | None) -> list[int] | None:
    """Block ids; whether a basis has them is for the vector's maker to say."""
    from ..lm import parse_layers

    if text in ("inner", "all"):
        raise UsageError(f"--blocks {text!r} is no list of block ids; leave it out to take all blocks of the basis")
    return None if text is None else parse_layers(text, _NO_LIMIT)


def _ids(path: Path) -> list[str]:
    """Ids of rows: a text file with one a line, or a JSONL file whose rows have them."""
    from ..corpus import load_corpus

    if not path.is_file():
        raise UsageError(f"there is no file of row ids at {path}; check the path")
    if path.suffix == ".jsonl":
        return list(load_corpus(path).ids)
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def load_language_model(model: str, dtype: str) -> Any:
    from ..lm import load_model

    return load_model(model, dtype=dtype)


def _told(record: dict[str, Any]) -> None:
    """Prints what an export had to leave out."""
    import sys

    for warning in record.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
