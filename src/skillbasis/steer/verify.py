"""Whether a baked checkpoint is the steered model: its logits against those of the original with hooks.

A checkpoint that loads without a word may still run unsteered, so nothing but its output counts. One model is in memory
at a time: the original's logits, with and without steering, are kept.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact import read_json
from ..errors import ArtifactError, SkillbasisError, UsageError
from ..lm import LanguageModel, load_model
from .checkpoint import Checkpoint
from .hooks import steer
from .vectors import SteeringVector

if TYPE_CHECKING:
    import torch

FOLDER = "steering"  # within a checkpoint, where no engine looks for weights
RECORD, VECTOR = "bake.json", "vector.safetensors"
FORMAT = "skillbasis.bake/1"
_LENGTHS = (1, 8, 31, 120)  # tokens of the compared sequences
_SEED = 0
_MEMORY_SHARE = 0.5  # of the free memory that the weights in float32 may take
_EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


@dataclass(frozen=True)
class Tolerance:
    """How far a baked checkpoint may be from the hooked original."""

    share: float
    """Most rms(difference) / rms(movement); a checkpoint that is not steered at all has 1."""
    of_max_logit: float | None
    """Most max|difference| / max|logit|; None where numbers are rounded at other places, so that the share counts."""

    @classmethod
    def of(cls, compared: str, saved: str) -> Tolerance:
        """The bounds by dtype.

        Both models in float32 with biases in float32 do the same sums, up to their order. Biases saved in two bytes
        are rounded once (relatively by 2^-9 in bfloat16; more where they are added to a bias that is larger). In two
        bytes the original rounds the MLP's output and the sum with the vector, the checkpoint only the sum, and all
        later blocks carry that on.

        Args:
            compared: dtype of the two models when they were run.
            saved: dtype of the biases in the checkpoint.
        """
        if compared != "float32":
            return cls(share=0.25, of_max_logit=None)
        return cls(share=1e-2, of_max_logit=1e-4) if saved == "float32" else cls(share=5e-2, of_max_logit=None)


@dataclass(frozen=True)
class Reference:
    """What the original model says to the compared sequences."""

    lm_name: str
    tokenizer_fingerprint: str
    dtype: str
    """In which it was run: `float32`, `bfloat16` or `float16`."""
    sequences: list[list[int]]
    plain: torch.Tensor
    """(tokens of all sequences, vocabulary) float32, on the CPU: unsteered logits."""
    steered: torch.Tensor
    """The same with hooks at all tokens."""

    @property
    def movement(self) -> float:
        """Root of the mean square by which steering moves a logit."""
        return _rms(self.steered - self.plain)


def reference(lm: LanguageModel, vector: SteeringVector, alpha: float, saved: str) -> Reference:
    """Logits of the original with and without steering, on a few random sequences of several lengths.

    Args:
        saved: dtype of the biases in the checkpoint that will be held against it.
    Raises: ArtifactError: the vector belongs to another model. UsageError: steered so, the logits are not finite.
        SkillbasisError: the model's own are not, or steering moves them no further than rounding does.
    """
    sequences = _sequences(lm)
    plain = _logits(lm, sequences)
    if not bool(plain.isfinite().all()):
        raise SkillbasisError(
            f"the logits of {lm.name!r} are not finite even unsteered, so nothing can be compared; repair the model, "
            "or compare with --dtype float32"
        )
    steered = _steered_logits(lm, vector, alpha, sequences)
    dtype = str(lm.model.dtype).removeprefix("torch.")
    result = Reference(lm.name, lm.tokenizer_fingerprint, dtype, sequences, plain, steered)
    tolerance = Tolerance.of(dtype, saved)
    least = 2 * _EPSILON[dtype] * _rms(plain) / tolerance.share
    if result.movement < least:
        raise SkillbasisError(
            f"{vector.name} at alpha {alpha:g} moves the logits of {lm.name!r} by {result.movement:.2g} (root mean "
            f"square), which cannot be told from rounding in {dtype} (at least {least:.2g} is needed); use a larger "
            "alpha or --dtype float32"
        )
    return result


def check_strength(lm: LanguageModel, vector: SteeringVector, alpha: float) -> None:
    """Refuses a vector of another model, or a strength at which the model breaks, before it is written anywhere.

    Raises: ArtifactError: the vector belongs to another model. UsageError: the logits are not finite.
    """
    _steered_logits(lm, vector, alpha, _sequences(lm))


def _steered_logits(
    lm: LanguageModel, vector: SteeringVector, alpha: float, sequences: list[list[int]]
) -> torch.Tensor:
    with steer(lm, vector, alpha):
        steered = _logits(lm, sequences)
    if not bool(steered.isfinite().all()):
        raise UsageError(
            f"steered by {vector.name} at alpha {alpha:g} the logits of {lm.name!r} are not finite; use a smaller alpha"
        )
    return steered


def compare(original: Reference, baked: LanguageModel, saved: str) -> dict[str, Any]:
    """Holds the logits of a baked checkpoint against the original's with hooks.

    Returns: the figures, the bounds that count, and whether it `passed`; NaN (null) where its logits are not finite.
    """
    import torch

    tolerance = Tolerance.of(original.dtype, saved)
    logits = _logits(baked, original.sequences)
    if logits.shape != original.steered.shape:
        raise SkillbasisError(
            f"{baked.name!r} has {logits.shape[1]} entries in its vocabulary, {original.lm_name!r} has "
            f"{original.steered.shape[1]}; it was not baked from it"
        )
    finite = bool(logits.isfinite().all())
    difference = (logits - original.steered).abs_()
    worst, largest = float(difference.max()), float(original.steered.abs().max())
    share = _rms(difference) / original.movement
    tokens_same = baked.tokenizer_fingerprint == original.tokenizer_fingerprint
    near = tolerance.of_max_logit is None or worst <= tolerance.of_max_logit * largest
    return {
        "sequences": [len(sequence) for sequence in original.sequences],
        "seed": _SEED,
        "dtype": original.dtype,
        "saved_dtype": saved,
        "max_difference": worst if finite else None,
        "max_logit": largest,
        "rms_movement": original.movement,
        "share": share if finite else None,
        "argmax_agreement": float(torch.eq(logits.argmax(1), original.steered.argmax(1)).float().mean()),
        "unsteered_argmax_agreement": float(
            torch.eq(original.plain.argmax(1), original.steered.argmax(1)).float().mean()
        ),
        "same_tokenizer": tokens_same,
        "largest_share": tolerance.share,
        "largest_difference": None if tolerance.of_max_logit is None else tolerance.of_max_logit * largest,
        "passed": finite and tokens_same and near and share <= tolerance.share,
    }


def describe(figures: dict[str, Any]) -> str:
    """One line about a comparison, for people."""
    if figures["share"] is None:
        return f"its logits are not finite (compared in {figures['dtype']})"
    bound, choices = figures["largest_difference"], figures["argmax_agreement"]
    allowed = "" if bound is None else f" (allowed {bound:.2g})"
    return (
        f"logits in {figures['dtype']} differ from the hooked original's by at most {figures['max_difference']:.2g}"
        f"{allowed}, {figures['share']:.2g} of what steering moves them (allowed {figures['largest_share']:g}); same "
        f"first choice at {choices:.1%} of tokens{'' if figures['same_tokenizer'] else '; another tokenizer'}"
    )


def verify(checkpoint: str | Path, base: str | Path | None = None, *, dtype: str = "auto") -> dict[str, Any]:
    """Compares a baked checkpoint with its original once more, hooked as its record says.

    Args:
        checkpoint: directory that `bake` made, or a hub id of one.
        base: the original; None takes the name it had when the checkpoint was made.
        dtype: in which both are run; `auto` takes float32 where that fits into memory, else the checkpoint's own.
    Returns: as `compare`.
    Raises: UsageError: no baked checkpoint, or the original is not found. ArtifactError: the original is another model,
        or a file is damaged. SkillbasisError: the two differ by more than rounding, or nothing can be told.
    Cost: three forward passes of 160 tokens; both models are loaded, one after the other.
    """
    stored = Checkpoint.open(checkpoint)
    record = read_record(stored.path)
    vector = SteeringVector.load(stored.path / FOLDER / VECTOR)
    if vector.fingerprint != record["vector"]["fingerprint"]:
        raise ArtifactError(f"{stored.path / FOLDER / VECTOR} is not the vector that was baked; bake it anew")
    dtype = comparison_dtype(stored, record["dtype"], dtype)
    name = record["base"]["model"] if base is None else str(base)
    try:
        original = load_model(name, dtype=dtype, revision=None if base is not None else record["base"]["revision"])
    except UsageError as error:
        raise UsageError(
            f"the original of {str(checkpoint)!r} cannot be had ({error}); say with --base where it is"
        ) from error
    before = reference(original, vector, record["alpha"], record["dtype"])
    del original
    release()
    figures = compare(before, load_model(stored.path, dtype=dtype), record["dtype"])
    if not figures["passed"]:
        raise SkillbasisError(f"{checkpoint} is not {name!r} with that steering: {describe(figures)}; bake it anew")
    return figures


def read_record(path: Path) -> dict[str, Any]:
    """Reads `steering/bake.json` of a baked checkpoint. Raises: UsageError: there is none."""
    if not (path / FOLDER / RECORD).is_file():
        raise UsageError(
            f"{path} has no {FOLDER}/{RECORD}, so it was not made by skillbasis steer bake; give one that was"
        )
    record = read_json(path / FOLDER / RECORD)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArtifactError(f"{path / FOLDER / RECORD} is damaged or of another version of skillbasis; bake it anew")
    return record


def comparison_dtype(checkpoint: Checkpoint, saved: str, dtype: str) -> str:
    """In which dtype original and checkpoint are run.

    Args:
        saved: dtype of the checkpoint's MLPs.
        dtype: `auto`: float32 where the weights so take half the free memory at most, else as saved; or one of the two.
    Raises: UsageError: another dtype; weights that were rounded further are not those the vector belongs to.
    """
    if dtype == "auto":
        n_bytes = 4 * sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.names)
        return "float32" if n_bytes <= _MEMORY_SHARE * _free_memory() else saved
    if dtype not in ("float32", saved):
        raise UsageError(f"the weights are saved in {saved}; compare in that or in float32 (--dtype), not in {dtype}")
    return dtype


def release() -> None:
    """Gives the memory of models that nothing refers to any more back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _free_memory() -> int:
    """Bytes free where models are put: on the GPU where there is one."""
    import psutil
    import torch

    return int(torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available)


def _sequences(lm: LanguageModel) -> list[list[int]]:
    rng = np.random.default_rng(_SEED)
    size = int(lm.model.config.get_text_config().vocab_size)
    return [rng.integers(size, size=min(length, lm.context_length)).tolist() for length in _LENGTHS]


def _logits(lm: LanguageModel, sequences: list[list[int]]) -> torch.Tensor:
    """(tokens of all sequences, vocabulary) float32 on the CPU; the sequences are run one by one, without padding."""
    import torch

    with torch.inference_mode():
        parts = [
            lm.model(input_ids=torch.tensor([sequence], device=lm.device), use_cache=False).logits[0].float().cpu()
            for sequence in sequences
        ]
    return torch.cat(parts)


def _rms(values: torch.Tensor) -> float:
    return float(values.norm()) / float(np.sqrt(values.numel()))
