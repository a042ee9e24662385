"""Steering vectors in the formats of other engines: GGUF (llama.cpp, repeng), EasySteer, and steering-vectors.

All of them add a vector to the output of decoder blocks that are counted from 0, as `hooks.py` does; none can carry the
unit `relative`, so such a vector is calibrated first. Alpha is folded into what is written, and the caller's own scale
is then 1. `bake.py` writes a vector into a checkpoint instead.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import atomic_path, write_json
from ..errors import ArtifactError, UsageError
from ..lm import LanguageModel
from .hooks import Scope, check_scope
from .vectors import IDENTITY, SITE, SteeringVector

_ARCHITECTURE = "controlvector"
_TENSOR = "direction."
_OURS = "skillbasis.vector"  # JSON in a file that was written here: its name, unit, alpha, model and origin
_LLAMA_CPP_FIRST_BLOCK = 1
_UNKNOWN_MODEL = ("", "unknown")
_EASYSTEER_APPLY: dict[Scope, dict[str, Any]] = {
    "all": {"prompt": "all", "generation": "all"},
    "prompt": {"prompt": "all"},
    "last-prompt": {"prompt_positions": [-1]},
    "generated": {"generation": "all"},
}


def to_gguf(
    vector: SteeringVector, path: str | Path, *, alpha: float = 1.0, model_type: str | None = None
) -> dict[str, Any]:
    """Writes a GGUF control vector, as llama.cpp (`--control-vector`) and repeng read it.

    llama.cpp adds the tensor `direction.N` to the output of 0-based block N at every token, and has no place for
    block 0: that slice is left out, with a warning.

    Args:
        alpha: strength in the vector's unit, folded into the tensors; scale them by 1 where they are used.
        model_type: goes into `controlvector.model_hint`; None takes that of the vector's model.
    Returns: what was written, what was left out and at which tokens it will act; JSON-able.
    Raises: UsageError: the unit relative, alpha not finite, nothing left to add, no .gguf path, or gguf not installed.
    Source: repeng's `export_gguf` and llama.cpp's control vector loader.
    """
    return _write(vector, Path(path), alpha, model_type, _LLAMA_CPP_FIRST_BLOCK) | {
        "scope": "all",
        "notes": ["llama.cpp adds a control vector to all tokens, of the prompt and of the answer."],
    }


def from_gguf(path: str | Path, model: LanguageModel | Mapping[str, Any], *, name: str | None = None) -> SteeringVector:
    """Reads a GGUF control vector made here, by repeng, by EasySteer or by llama.cpp, in the unit raw.

    Args:
        model: the model it belongs to, or its identity (`LanguageModel.identity`, `SteeringVector.model`); a file from
            elsewhere names no more than the model's type.
        name: of the vector; None takes the one in the file, else the file's.
    Raises: UsageError: there is no such file, or gguf is not installed. ArtifactError: it is no control vector, or not
        one of this model; the message says what differs.
    """
    path = Path(path)
    identity = identity_of(model)
    hint, ours, tensors = _read(path)
    _check_made_for(path, identity, hint, ours.get("model", {}))
    slices: dict[int, np.ndarray] = {}
    for tensor, values in tensors.items():
        block = int(tensor.removeprefix(_TENSOR))
        if block < _LLAMA_CPP_FIRST_BLOCK and not ours:
            raise ArtifactError(
                f"{path} has a tensor {tensor}, which llama.cpp refuses: {_TENSOR}N belongs to 0-based block N, and N "
                "is 1 or more; this file counts blocks in another way, so make it anew with the tool it came from"
            )
        if block >= identity["n_blocks"]:
            raise ArtifactError(
                f"{path} has a tensor {tensor}, but {identity['model']!r} has blocks 0 to {identity['n_blocks'] - 1} "
                f"and {_TENSOR}N belongs to 0-based block N; it was made for another model, or counts from 1"
            )
        slices[block] = values
    origin: dict[str, Any] = {"kind": "gguf", "file": path.name}
    if ours:
        origin["written_from"] = {key: ours.get(key) for key in ("name", "unit", "alpha", "origin")}
    return _from_slices(name or ours.get("name", path.stem), slices, identity, origin, str(path))


def to_easysteer(
    vector: SteeringVector, out_dir: str | Path, *, alpha: float = 1.0, scope: Scope = "all"
) -> dict[str, Any]:
    """Writes what EasySteer (vLLM) serves: `vector.gguf`, and `steering.json` that says where it acts.

    `steering.json` is a `SteeringSpec` of EasySteer: the value of the field `steering` of a request, or the file of
    `vllm serve --steering-config`. Its `source` is the absolute path of `vector.gguf`; change it where the server sees
    it elsewhere. EasySteer carries block 0 too, so this file may hold `direction.0`, which llama.cpp refuses.

    Args:
        alpha: strength in the vector's unit, folded into the tensors; `scale` in the JSON is 1.
        scope: which tokens are moved.
    Returns: what was written; JSON-able.
    Raises: UsageError: as for `to_gguf`, or an unknown scope.
    Source: github.com/ZJU-REAL/EasySteer, docs/user-guide/steering.md and docs/api-reference/algorithms.md.
    """
    first = check_scope(scope)
    apply = _EASYSTEER_APPLY.get(scope, {"prompt_window": [first, None], "generation": "all"})
    folder = Path(out_dir)
    source, spec = folder / "vector.gguf", folder / "steering.json"
    record = _write(vector, source, alpha, None, 0)
    settings = {
        "source": str(source.resolve()),
        "algorithm": "direct",
        "scale": 1.0,
        "layers": record["blocks"],
        "normalize": False,
        "apply": apply,
        "name": vector.name,
    }
    write_json(spec, {"vectors": [settings]})
    notes = ["Start the server with --enable-steer-vector --steer-algorithms direct."]
    if first:
        notes.append(f"With a prompt of less than {first} tokens EasySteer begins at the first generated token.")
    return record | {"format": "easysteer", "spec": str(spec), "scope": scope, "notes": notes}


def to_steering_vectors(vector: SteeringVector, alpha: float = 1.0) -> Any:
    """The vector as a `steering_vectors.SteeringVector` on the outputs of decoder blocks (the library has no file).

    Its `apply(model)` adds it at every token, padding too; `min_token_index` leaves out the first ones.

    Args:
        alpha: strength in the vector's unit, folded in; use the library's `multiplier` of 1.
    Raises: UsageError: the unit relative, alpha not finite, nothing to add, or steering-vectors is not installed.
    """
    import torch

    slices = _constant_slices(vector, alpha)
    try:
        from steering_vectors import SteeringVector as Theirs
    except ImportError as error:
        raise UsageError("steering-vectors is not installed; pip install steering-vectors") from error
    return Theirs({block: torch.from_numpy(values) for block, values in slices.items()}, layer_type="decoder_block")


def from_steering_vectors(
    theirs: Any, model: LanguageModel | Mapping[str, Any], *, name: str = "steering-vectors"
) -> SteeringVector:
    """A `steering_vectors.SteeringVector` as one of ours, in the unit raw.

    Args:
        theirs: on decoder blocks; on MLPs only with a loaded model in which that is the same thing.
        model: the model it belongs to, or its identity.
    Raises: UsageError: it acts elsewhere in the model. ArtifactError: its blocks or sizes are not this model's.
    """
    if theirs.layer_type == "mlp":
        if not (isinstance(model, LanguageModel) and model.adds_mlp_unscaled()):
            raise UsageError(
                f"{name} acts on MLP outputs, which is the same as on block outputs only where the block adds them "
                "unscaled and un-normed; give a loaded model of which that can be measured to be true"
            )
    elif theirs.layer_type != "decoder_block":
        raise UsageError(f"{name} acts on {theirs.layer_type!r}; only decoder_block is the site of a steering vector")
    slices = {int(block): values.detach().float().cpu().numpy() for block, values in theirs.layer_activations.items()}
    identity = identity_of(model)
    if outside := [block for block in slices if not 0 <= block < identity["n_blocks"]]:
        raise ArtifactError(
            f"{name} has a vector for block {outside[0]}, but {identity['model']!r} has blocks 0 to "
            f"{identity['n_blocks'] - 1}; give the model it was made for"
        )
    return _from_slices(name, slices, identity, {"kind": "steering-vectors"}, name)


def identity_of(model: LanguageModel | Mapping[str, Any]) -> dict[str, Any]:
    """What a steering vector records of its model. Raises: UsageError: the mapping is no identity of a model."""
    known = model.identity if isinstance(model, LanguageModel) else model
    identity = {key: known.get(key) for key in IDENTITY}
    if missing := [key for key in IDENTITY if identity[key] is None and key != "revision"]:
        raise UsageError(
            f"the identity of a model lacks its {missing[0]}; give LanguageModel.identity, or the model of a "
            "SteeringVector"
        )
    return identity


def _constant_slices(vector: SteeringVector, alpha: float) -> dict[int, np.ndarray]:
    """(hidden,) float32 by block: what is added at this strength, as the hooks add it."""
    if vector.unit == "relative":
        raise UsageError(
            f"{vector.name} is in the unit relative, a fraction of each token's own norm, and this format can only "
            "carry a constant; calibrate it first (--calibrate CORPUS, or "
            "SteeringVector.calibrated), or take the unit raw or std"
        )
    return dict(zip(vector.block_ids, vector.scaled(alpha).values, strict=True))


def _write(
    vector: SteeringVector, path: Path, alpha: float, model_type: str | None, first_block: int
) -> dict[str, Any]:
    """Writes the slices from `first_block` on; returns the record of it."""
    slices = _constant_slices(vector, alpha)
    if path.suffix != ".gguf":
        raise UsageError(f"{path} is no .gguf file; a control vector is written as one, so change the name")
    kept = {block: values for block, values in slices.items() if block >= first_block}
    dropped = [block for block in slices if block < first_block]
    if not any(values.any() for values in kept.values()):
        raise UsageError(
            f"{vector.name} acts at block 0 only, which a control vector of llama.cpp cannot steer; choose later "
            "blocks, or bake it into a checkpoint"
        )
    share = float(np.sum(vector.norms[: len(dropped)] ** 2) / np.sum(vector.norms**2))
    said = []
    if dropped:
        said.append(
            f"Block 0 cannot be steered by a control vector of llama.cpp: its slice, {share:.1%} of the squared norm "
            f"of {vector.name}, was left out."
        )
        warnings.warn(said[0], stacklevel=3)
    hint = model_type or str(vector.model.get("model_type") or "unknown")
    ours = {
        "name": vector.name,
        "site": SITE,
        "unit": vector.unit,
        "alpha": float(alpha),
        "model": {key: vector.model.get(key) for key in IDENTITY},
        "origin": dict(vector.origin),
    }
    gguf = _gguf()
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, _ARCHITECTURE)
        try:
            writer.add_string(f"{_ARCHITECTURE}.model_hint", hint)
            writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(kept))
            writer.add_string(_OURS, json.dumps(ours))
            for block, values in kept.items():
                writer.add_tensor(f"{_TENSOR}{block}", values)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return {
        "format": "gguf",
        "path": str(path),
        "vector": vector.name,
        "vector_fingerprint": vector.fingerprint,
        "model_hint": hint,
        "alpha": float(alpha),
        "scale": 1.0,
        "blocks": list(kept),
        "dropped_blocks": dropped,
        "dropped_squared_norm_fraction": share,
        "warnings": said,
    }


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UsageError("GGUF files need the package gguf; pip install 'skillbasis[gguf]'") from error
    return gguf


def _read(path: Path) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """The model's type, what `_write` noted (nothing, in a file from elsewhere) and the tensors `direction.N`."""
    gguf = _gguf()
    if not path.is_file():
        raise UsageError(f"there is no control vector at {path}; check the path")
    try:
        reader = gguf.GGUFReader(path)
        texts = {
            key: str(field.contents()) if (field := reader.get_field(key)) else ""
            for key in ("general.architecture", f"{_ARCHITECTURE}.model_hint", _OURS)
        }
        architecture, hint, ours = texts.values()
        noted = dict(json.loads(ours)) if ours else {}
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors if tensor.name.startswith(_TENSOR)}
    except (ValueError, LookupError, TypeError, OverflowError, OSError) as error:  # the reader trusts what it reads
        raise ArtifactError(f"{path} is damaged, or no GGUF file ({error}); get it anew") from error
    if architecture != _ARCHITECTURE:
        raise ArtifactError(f"{path} holds a {architecture!r}, not a control vector; give a file with control vectors")
    for tensor in tensors:
        number = tensor.removeprefix(_TENSOR)
        if not (number.isdecimal() and number == str(int(number))):
            raise ArtifactError(f"{path} has a tensor {tensor}, which names no block; give a control vector")
    return hint, noted, tensors


def _check_made_for(path: Path, identity: Mapping[str, Any], hint: str, ours: Mapping[str, Any]) -> None:
    """Refuses a file that names another model than this one, as far as it names one."""

    def plain(model_type: object) -> str:  # llama.cpp writes its own names: gptneox for gpt_neox
        return str(model_type).replace("_", "").replace("-", "").lower()

    if hint not in _UNKNOWN_MODEL and plain(hint) != plain(identity["model_type"]):
        raise ArtifactError(
            f"{path} was made for a model of type {hint!r}, not for {identity['model']!r} ({identity['model_type']}); "
            "give the model it was made for"
        )
    made_for = ours.get("weights_fingerprint")
    if made_for is not None and made_for != identity["weights_fingerprint"]:
        raise ArtifactError(
            f"{path} was made for model {ours['model']!r} (weights_fingerprint {made_for}), not for "
            f"{identity['model']!r} ({identity['weights_fingerprint']}); give that model, or make the vector anew on "
            "this one"
        )


def _from_slices(
    name: str, slices: Mapping[int, np.ndarray], identity: dict[str, Any], origin: dict[str, Any], where: str
) -> SteeringVector:
    """A raw vector of slices by block, once their shapes and numbers are found to be this model's."""
    if not slices:
        raise ArtifactError(f"{where} holds no direction; give a control vector")
    for block, values in slices.items():
        if values.shape != (identity["hidden_size"],) or values.dtype.kind != "f":
            raise ArtifactError(
                f"{where} has a {values.dtype} vector of shape {values.shape} for block {block}, but the hidden size "
                f"of {identity['model']!r} is {identity['hidden_size']}; give the model it was made for"
            )
        if not np.isfinite(values).all():
            raise ArtifactError(f"{where} is NaN or infinite at block {block}; make it anew")
    blocks = sorted(slices)
    stacked = np.stack([slices[block] for block in blocks]).astype(np.float32)
    return SteeringVector(name, tuple(blocks), stacked, "raw", identity, origin)
