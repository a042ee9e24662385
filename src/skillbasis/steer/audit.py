"""What somebody has put into a checkpoint: constant offsets of the residual stream, and changed weights.

Both checkpoints are read tensor by tensor, so memory does not grow with the model. A constant offset is a difference in
the bias of the last matrix of a block's MLP, where `bake.py` and others write steering vectors; an absent bias is zero.
Everything else that differs is told too, so that "nothing else" can be said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..basis import SkillBasis
from ..errors import ArtifactError, UsageError
from ..lm import LanguageModel, weights_fingerprint
from .checkpoint import Checkpoint
from .differences import Differences, source_of
from .formats import identity_of
from .vectors import SteeringVector

_HIDDEN_SIZES = ("hidden_size", "n_embd", "d_model", "n_embed")
_FEW_NAMES = 4  # of a list in the text; the report has all
# Keys of a configuration that say how it was written or what it is called, not what the model computes.
_LABELS = {
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache"),
    *("mlp_bias", "attention_bias", "tie_word_embeddings", "pretraining_tp"),
}


def audit(checkpoint: str | Path, base: str | Path, basis: SkillBasis | None = None) -> dict[str, Any]:
    """Finds what differs between a checkpoint and the model it was made from.

    An offset is told as what is added to the stream, with Granite's `residual_multiplier`; this takes the block to add
    its MLP's output un-normed, as all architectures of transformers do in which that matrix has a bias, but for
    post-norm OPT. Labels may differ (a Qwen2 that became a Llama), and types of numbers: there a difference of one
    rounding is none.

    Args:
        checkpoint: a model directory, hub id, or `embedded`.
        base: the model it was made from, in the same form.
        basis: of the base; names the direction that an offset is along.
    Returns: JSON-able: `verdict`, `offset` (per block, with its values), `constants`, `matrices` with their relative
        change and rank, `added`, `missing`, `ignored` and others, and `basis`. `describe` tells it in words.
    Raises: UsageError: no such model, no safetensors, or another size or number of blocks. ArtifactError: a damaged
        file, no weight in common, or a basis of another model.
    Cost: both models are read once, what differs three times; 300 MB of memory beside the mapped files.
    """
    new, old = Checkpoint.open(checkpoint), Checkpoint.open(base)
    hidden_size = _check_sizes(new, old)
    expected, expected_of_base = _Expected.of(new), _Expected.of(old)
    identity = {
        "model": old.name,
        "revision": None,
        "model_type": str(old.config["model_type"]),
        "weights_fingerprint": expected_of_base.fingerprint(old),
        "hidden_size": hidden_size,
        "n_blocks": old.n_blocks,
    }
    if basis is not None:
        _check_basis(basis, identity)
    found = Differences(new, old)
    try:
        modules = new.down_projections()
        unreadable = None
    except UsageError as error:  # a mixture of experts: weights are compared, offsets cannot be told
        modules, unreadable = {}, str(error)
    biases = {f"{module}.bias": block for block, module in modules.items()}
    for name in dict.fromkeys((*new.names, *old.names)):
        found.compare(name, biases.get(name))
    ignored = expected.ignored(new)
    offset = _offset(found.offsets, new, hidden_size)
    if offset is not None:
        offset["unused"] = {f"{modules[block]}.bias" for block in offset["blocks"]} <= set(ignored)
    report = {
        "checkpoint": new.name,
        "base": old.name,
        "model_type": str(new.config["model_type"]),
        "base_identity": identity,
        "n_weights": found.n_weights,
        "tolerance": found.tolerance,
        "offset": offset,
        "offset_unreadable": unreadable,
        "constants": found.constants,
        "matrices": found.matrices,
        "added": found.added,
        "added_zeros": found.added_zeros,
        "missing": found.missing,
        "reshaped": found.reshaped,
        "not_finite": found.not_finite,
        "ignored": ignored,
        "uninitialised": expected.uninitialised(new),
        "places_unknown": expected.reason,
        "config_changed": _config_changes(new, old),
        "basis": None if basis is None or offset is None else _coordinates(offset, basis),
    }
    return {"verdict": _verdict(report, found.n_retyped), **report}


def recovered_vector(
    report: Mapping[str, Any], model: LanguageModel | Mapping[str, Any] | None = None, *, name: str = "recovered"
) -> SteeringVector:
    """The offset an audit found, as a steering vector of the base in the unit raw: alpha 1 is what was baked.

    Args:
        model: the base, or its identity; None takes what the audit knows of it from its files.
    Raises: UsageError: no offset was found, or the files do not tell the base's weights fingerprint. ArtifactError:
        the model is not the audited base.
    """
    offset = report["offset"]
    if offset is None:
        raise UsageError(f"{report['checkpoint']} has no constant offset against {report['base']}, so no vector")
    known = report["base_identity"]
    if model is None and known["weights_fingerprint"] is None:
        raise UsageError(f"the files of {report['base']} do not tell its weights fingerprint; give the loaded model")
    identity = identity_of(known if model is None else model)
    for key in ("hidden_size", "n_blocks", "weights_fingerprint"):
        if known[key] is not None and known[key] != identity[key]:
            raise ArtifactError(
                f"the audit was of {known['model']!r} ({key} {known[key]}), not of {identity['model']!r} "
                f"({identity[key]}); give that model"
            )
    origin = {"kind": "audit", "checkpoint": report["checkpoint"], "base": report["base"]}
    values = np.array(offset["values"], dtype=np.float32)
    return SteeringVector(name, tuple(offset["blocks"]), values, "raw", identity, origin)


@dataclass(frozen=True)
class _Expected:
    """Which weights the architecture in transformers has a place for."""

    names: frozenset[str] | None
    reason: str | None
    """Why they are not known."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Expected:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(checkpoint.path)
            with torch.device("meta"):
                names = frozenset(AutoModelForCausalLM.from_config(config).state_dict())
        except (ValueError, KeyError, AttributeError, ImportError, OSError, RuntimeError, TypeError) as error:
            return cls(None, f"transformers cannot build {checkpoint.name!r}: {str(error).partition(chr(10))[0]}")
        lacking = [name for name in names if not name.endswith(".bias") and source_of(checkpoint, name) is None]
        if lacking:
            return cls(None, f"the files of {checkpoint.name!r} do not have {min(lacking)}, or under another name")
        return cls(names, None)

    def ignored(self, checkpoint: Checkpoint) -> list[str]:
        """Weights in the files that loading drops, in silence in some engines."""
        if self.names is None:
            return []
        used = {source_of(checkpoint, name) for name in self.names}
        return [name for name in checkpoint.names if name not in used]

    def uninitialised(self, checkpoint: Checkpoint) -> list[str]:
        """Weights the architecture has that the files lack: zero in transformers, whatever memory held in vLLM."""
        return [] if self.names is None else sorted(n for n in self.names if source_of(checkpoint, n) is None)

    def fingerprint(self, checkpoint: Checkpoint) -> str | None:
        """The fingerprint the model has when it is loaded; None where the files do not tell."""
        if self.names is None or self.uninitialised(checkpoint):
            return None
        sources = {name: source_of(checkpoint, name) for name in self.names}
        weights = {name: checkpoint.tensor(source) for name, source in sources.items() if source is not None}
        return weights_fingerprint(SimpleNamespace(state_dict=lambda: weights))


def _check_sizes(new: Checkpoint, old: Checkpoint) -> int:
    """Refuses models that cannot be compared; returns the hidden size."""
    sizes = _hidden_size(new), _hidden_size(old)
    for what, (a, b) in {"hidden size": sizes, "number of blocks": (new.n_blocks, old.n_blocks)}.items():
        if a != b:
            raise UsageError(
                f"{new.name!r} was not made from {old.name!r}: the {what} is {a} and {b}; give the model it was made "
                "from"
            )
    if not set(new.names) & set(old.names):
        raise ArtifactError(
            f"{new.name!r} and {old.name!r} have no weight of the same name ({new.names[0]}, {old.names[0]}); save "
            "both with the same version of transformers"
        )
    return sizes[0]


def _hidden_size(checkpoint: Checkpoint) -> int:
    for key in _HIDDEN_SIZES:
        if key in checkpoint.text_config:
            return int(checkpoint.text_config[key])
    raise UsageError(
        f"config.json of {checkpoint.name!r} gives no hidden size (looked for {', '.join(_HIDDEN_SIZES)}); give a "
        "decoder model"
    )


def _check_basis(basis: SkillBasis, identity: Mapping[str, Any]) -> None:
    """Refuses a basis of another model, as far as the files tell."""
    for key in ("hidden_size", "n_blocks", "model_type", "weights_fingerprint"):
        if identity[key] is not None and basis.config[key] != identity[key]:
            raise ArtifactError(
                f"the basis was found on model {basis.config['model']!r} ({key} {basis.config[key]}), not on the base "
                f"{identity['model']!r} ({key} {identity[key]}); give a basis of the base"
            )


def _offset(offsets: Mapping[int, np.ndarray], new: Checkpoint, hidden_size: int) -> dict[str, Any] | None:
    """What is added to the stream at each block, and in all up to it."""
    if not offsets:
        return None
    blocks = sorted(offsets)
    values = np.stack([offsets[block] for block in blocks])  # (blocks, hidden)
    if values.shape[1] != hidden_size:
        raise ArtifactError(f"a bias of {new.name!r} is {values.shape[1]} long, but its hidden size is {hidden_size}")
    return {
        "blocks": blocks,
        "norm": float(np.linalg.norm(values)),
        "norms": np.linalg.norm(values, axis=1).tolist(),
        "cumulative_norms": np.linalg.norm(values.cumsum(axis=0), axis=1).tolist(),
        "values": values.astype(np.float32).tolist(),
    }


def _coordinates(offset: Mapping[str, Any], basis: SkillBasis) -> dict[str, Any]:
    """An offset in a basis, read in two ways.

    `accumulate`: each block adds its slice of a direction; `exact`: the blocks' sum is the slice.
    """
    shared = [block for block in offset["blocks"] if block in basis.block_ids]
    values = np.array(offset["values"], dtype=np.float64)
    rows = [offset["blocks"].index(block) for block in shared]
    directions = basis.directions[:, [basis.block_ids.index(block) for block in shared]].astype(np.float64)
    flat = directions.reshape(basis.n_components, -1)  # (K, shared * hidden)
    norms = np.linalg.norm(flat, axis=1)
    result: dict[str, Any] = {"fingerprint": basis.fingerprint, "shared_blocks": shared, "readings": {}}
    for reading, moved in {"accumulate": values, "exact": values.cumsum(axis=0)}.items():
        target, whole = moved[rows].reshape(-1), float((moved**2).sum())
        length = float(np.linalg.norm(target))
        if not length or not norms.any():  # so too where no block is shared
            continue
        cosines = np.clip(flat @ target / (length * np.where(norms > 0, norms, np.inf)), -1, 1)
        best = int(np.abs(cosines).argmax())
        alpha = float(flat[best] @ target / norms[best] ** 2)
        inside = flat.T @ np.linalg.lstsq(flat.T, target, rcond=None)[0]
        std = float(basis.score_std[best])
        result["readings"][reading] = {
            "cosines": cosines.tolist(),
            "direction": best,
            "cosine": float(cosines[best]),
            "alpha": alpha,
            "alpha_std": alpha / std if std > 0 else None,
            "explained_fraction": float(inside @ inside) / whole,
            "explained_by_chance": min(1.0, len(flat) / flat.shape[1]),
        }
    readings = result["readings"]
    return result | {"best": max(readings, key=lambda key: abs(readings[key]["cosine"]), default=None)}


def _config_changes(new: Checkpoint, old: Checkpoint) -> dict[str, list[Any]]:
    """Settings that both configurations have and that differ, as [base, checkpoint], but for mere labels."""
    shared = sorted(set(new.config) & set(old.config) - _LABELS)
    return {key: [old.config[key], new.config[key]] for key in shared if old.config[key] != new.config[key]}


def _verdict(report: Mapping[str, Any], n_retyped: int) -> str:
    """A key of `_VERDICTS`."""
    if report["matrices"]:
        ranks = [entry["rank"] for entry in report["matrices"] if entry["block"] is not None]
        return "low_rank" if ranks and None not in ranks and not report["constants"] else "fine_tuned"
    if any(report[key] for key in ("constants", "added", "missing", "reshaped", "not_finite")):
        return "changed"
    if report["offset"] is not None:
        return "unused_offset" if report["offset"]["unused"] else "offset"
    other = n_retyped or any(report[key] for key in ("added_zeros", "config_changed", "ignored"))
    return "same" if other or report["model_type"] != report["base_identity"]["model_type"] else "identical"


def describe(report: Mapping[str, Any]) -> str:
    """An audit in words, a line for each kind of finding, the verdict first."""
    offset, basis = report["offset"], report["basis"]
    too = ", and a constant offset" if offset is not None and not report["verdict"].endswith("offset") else ""
    lines = [f"{report['checkpoint']} against {report['base']}: {_VERDICTS[report['verdict']]}{too}."]
    if offset is not None:
        per_block = ", ".join(f"{norm:.3g}" for norm in (min(offset["norms"]), max(offset["norms"])))
        lines += [
            f"Constant offset at {_blocks(offset['blocks'])}: norm {offset['norm']:.4g} in all, least and most of a "
            f"block {per_block}; behind block {offset['blocks'][-1]} the stream is moved by "
            f"{offset['cumulative_norms'][-1]:.4g}."
        ]
    elif report["offset_unreadable"]:
        lines.append(f"Constant offsets cannot be told: {report['offset_unreadable']}.")
    if basis is not None:
        lines.append(_basis_line(basis))
    lines += _matrix_lines(report["matrices"])
    if constants := report["constants"]:
        most = max(constants, key=lambda entry: float(entry["norm"]))
        lines.append(f"{len(constants)} other constants differ, {most['name']} most (by norm {most['norm']:.3g}).")
    for key, text in _LISTS.items():
        if names := report[key]:
            more = f", and {len(names) - _FEW_NAMES} more" if len(names) > _FEW_NAMES else ""
            lines.append(f"{text}: {', '.join(names[:_FEW_NAMES])}{more}.")
    if changes := report["config_changed"]:
        told = ", ".join(f"{key} {before} to {after}" for key, (before, after) in changes.items())
        lines.append(f"The configuration differs: {told}.")
    if report["model_type"] != report["base_identity"]["model_type"]:
        lines.append(f"It is labelled {report['model_type']}, the base {report['base_identity']['model_type']}.")
    if report["tolerance"]:
        lines.append(f"Types of numbers differ; up to {report['tolerance']} counts as the same.")
    if report["places_unknown"]:
        lines.append(f"Whether every weight is used could not be told ({report['places_unknown']}).")
    return "\n".join(lines)


_NOTHING = "no constant offset and no changed weight"
_VERDICTS = {
    "identical": f"identical, {_NOTHING}",
    "same": f"{_NOTHING}; the files differ in ways that change no weight",
    "offset": "a constant offset, and no other changed weight",
    "unused_offset": "a constant offset that the architecture has no place for, so it runs unsteered",
    "low_rank": "matrices changed by a low rank, as by a merged LoRA",
    "fine_tuned": "matrices changed, as by fine-tuning",
    "changed": "weights other than matrices differ",
}
_LISTS = {
    "added": "Added weights",
    "added_zeros": "Added biases that are zero, which change nothing",
    "missing": "Weights of the base that are missing",
    "reshaped": "Weights of another shape, not compared",
    "not_finite": "NaN or infinite weights",
    "ignored": "Dropped when loaded, as the architecture has no place for them",
    "uninitialised": "Not in the files though the architecture has them; zero in transformers, anything in vLLM",
}


def _blocks(blocks: list[int]) -> str:
    """`block 3`, `blocks 1-30` or `blocks 1, 4, 5`."""
    if len(blocks) > 2 and blocks == list(range(blocks[0], blocks[-1] + 1)):
        return f"blocks {blocks[0]}-{blocks[-1]}"
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"


def _basis_line(basis: Mapping[str, Any]) -> str:
    if basis["best"] is None:
        return "The offset is at none of the blocks of the basis, so it has no coordinates there."
    best = basis["readings"][basis["best"]]
    std = "" if best["alpha_std"] is None else f" ({best['alpha_std']:.4g} standard deviations)"
    how = "each block adds its slice" if basis["best"] == "accumulate" else "blocks add up to the slices"
    return (
        f"In the basis: nearest is direction {best['direction']}, cosine {best['cosine']:.4f} over "
        f"{len(basis['shared_blocks'])} shared blocks ({how}), alpha {best['alpha']:.4g}{std}; the basis explains "
        f"{best['explained_fraction']:.1%} of the offset ({best['explained_by_chance']:.1%} of a random one)."
    )


def _matrix_lines(matrices: list[dict[str, Any]]) -> list[str]:
    """What is to be said of changed matrices: how many, how much, and their ranks."""
    if not matrices:
        return []
    changes = [entry["relative_change"] for entry in matrices if entry["relative_change"] is not None]
    blocks = sorted({entry["block"] for entry in matrices if entry["block"] is not None})
    outside = [entry["name"] for entry in matrices if entry["block"] is None]
    place = " and ".join(([f"in {_blocks(blocks)}"] if blocks else []) + outside)
    size = f", relative change {min(changes):.2g} to {max(changes):.2g}" if changes else ""
    lines = [f"{len(matrices)} changed matri{'x' if len(matrices) == 1 else 'ces'} {place}{size}."]
    ranks = [entry["rank"] for entry in matrices if entry["rank"] is not None]
    if ranks:
        lines.append(
            f"The change of {len(ranks)} of them is of low rank: nine tenths of it lie in {min(ranks)} to {max(ranks)} "
            "directions."
        )
    return lines
