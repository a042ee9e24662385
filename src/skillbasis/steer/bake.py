"""A steering vector baked into an ordinary checkpoint that transformers and vLLM load unchanged.

alpha * v_i stands in the bias of the last matrix of block i's MLP, which the block adds to the residual stream (see
`ways.py`). Weights are copied from file to file and never loaded for it; the original and the checkpoint are, one after
the other, to compare them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import building, fingerprint, is_current, read_json, remove_tree, write_json
from ..errors import ArtifactError, SkillbasisError, UsageError
from ..lm import LanguageModel, load_model, resolve
from .checkpoint import INDEX, SINGLE, Checkpoint
from .vectors import SteeringVector
from .verify import FOLDER, FORMAT, RECORD, VECTOR, compare, comparison_dtype, describe, read_record, reference, release
from .ways import Way, choose_way, refused

if TYPE_CHECKING:
    import torch

KIND = "checkpoint"
_TOKENIZER_CONFIG = "tokenizer_config.json"
# Weights in other formats, configurations of other readers, and what this package writes itself.
_LEFT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".index.json")
_LEFT_NAMES = ("config.json", "params.json", "adapter_config.json", "manifest.json")
_TEMPLATES = "additional_chat_templates"

OnStep = Callable[[str], None]


def bake(
    model: str | Path,
    vector: SteeringVector,
    alpha: float,
    out: str | Path,
    *,
    dtype: str = "auto",
    merge: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Writes a checkpoint that is the model steered by alpha times the vector at all tokens, and compares the two.

    Args:
        model: a local directory, `embedded`, a hub id, or (with `merge`) a LoRA adapter, which is merged into its base.
        vector: in the unit raw or std; steps in the unit relative have to be made constant first.
        out: directory of the checkpoint; complete or absent.
        dtype: in which original and checkpoint are compared: `auto` (float32 where it fits), `float32` or as saved. An
            adapter is merged in it too, and saved so.
        overwrite: whether a checkpoint at `out` that was baked otherwise gives way.
        on_step: called with what is being done, in a few words.
    Returns: the record, which is also in `out/steering/bake.json`; the comparison is under `verification`.
    Raises: UsageError: the model cannot carry the vector, with what else would; before anything is written.
        ArtifactError: the vector belongs to another model, or `out` holds something else. SkillbasisError: the
        checkpoint differs from the hooked model; it is left in `OUT.partial`, and the message says by how much.
    Cost: disk as the model (twice for an adapter, for a while). Writing takes memory for the biases only; comparing
        loads original and checkpoint, one after the other.
    """
    tell = on_step or (lambda _step: None)
    out = Path(out)
    _check_request(vector, alpha)
    adapter = (Path(resolve(model)) / "adapter_config.json").is_file()
    if adapter and not merge:
        raise UsageError(
            f"{str(model)!r} is a LoRA adapter, and a checkpoint is a whole model; bake with --merge to merge it into "
            "its base first"
        )
    source = Checkpoint.open(_base_of(model) if adapter else model)
    way = choose_way(source)
    dtype = comparison_dtype(source, way.dtype, dtype)
    if adapter:  # saved in the dtype it is merged in: rounded once more it would be another model than the vector's
        way = replace(way, dtype=dtype)

    tell("load the original")
    lm = load_model(model, dtype=dtype)
    _check_loaded(lm, vector, way, source)
    new_biases(vector, alpha, way, source)  # whether they can be written in this dtype
    before = reference(lm, vector, alpha, way.dtype)
    base = lm.identity
    inputs = {
        "model": base["weights_fingerprint"],
        "tokenizer": base["tokenizer_fingerprint"],
        "files": fingerprint([dict(source.config), sorted(path.name for path in _small_files(source.path))]),
        "vector": vector.fingerprint,
        "alpha": alpha,
        "compared_in": dtype,
    }
    if is_current(out, KIND, inputs):
        return read_record(out)
    manifest: dict[str, Any] = {}
    with building(out, KIND, inputs, manifest, overwrite=overwrite) as work:
        for left in work.iterdir():  # of a run that was killed
            remove_tree(left) if left.is_dir() else left.unlink()
        merged = work / "merged"
        if adapter:
            tell("merge the adapter")
            _save_merged(lm, source, merged)
            source = Checkpoint.open(merged)
            way = choose_way(source)
        del lm
        release()
        tell("write the checkpoint")
        write_checkpoint(source, way, vector, alpha, work)
        if way.name == "as llama":
            _keep_tokenizer(source.path, work)
        if adapter:
            remove_tree(merged)
        tell("compare it with the hooked original")
        figures = compare(before, load_model(work, dtype=dtype), way.dtype)
        if not figures["passed"]:
            raise SkillbasisError(
                f"the checkpoint is not the steered model: {describe(figures)}; it is left in {work} to be looked at; "
                "steer with hooks instead"
            )
        record = _record(base, way, vector, alpha, figures)
        (work / FOLDER).mkdir()
        vector.save(work / FOLDER / VECTOR)
        write_json(work / FOLDER / RECORD, record)
        manifest |= {"base": base["model"], "way": way.name, "vector": vector.name}
    return record


def new_biases(vector: SteeringVector, alpha: float, way: Way, source: Checkpoint) -> dict[str, torch.Tensor]:
    """The biases by name, in the dtype they are saved in; those that the checkpoint has are added to.

    Raises: UsageError: a number is too large for the dtype.
    """
    import torch

    saved = getattr(torch, way.dtype)
    hidden = vector.values.shape[1]
    biases = {name: torch.zeros(length, dtype=saved) for name, length in way.zeros.items()}
    shifts = dict(zip(vector.block_ids, vector.values, strict=True))
    for block, module in way.down.items():
        if way.name == "own bias" and block not in shifts:
            continue
        bias = torch.zeros(hidden, dtype=torch.float64)
        if block in shifts:
            bias += alpha * way.scale * torch.from_numpy(shifts[block]).double()
        if way.name == "own bias":
            bias += source.tensor(f"{module}.bias").double()
        biases[f"{module}.bias"] = bias.to(saved)
        if not bool(biases[f"{module}.bias"].isfinite().all()):
            raise UsageError(
                f"{vector.name} at alpha {alpha:g} is too large for {way.dtype} at block {block}; use a smaller alpha"
            )
    return biases


def write_checkpoint(source: Checkpoint, way: Way, vector: SteeringVector, alpha: float, work: Path) -> None:
    """Copies a checkpoint's files and writes the biases: into one more file, or in place of its own in the copies."""
    biases = new_biases(vector, alpha, way, source)
    for path in _small_files(source.path):
        shutil.copyfile(path, work / path.name)
    if (source.path / _TEMPLATES).is_dir():
        shutil.copytree(source.path / _TEMPLATES, work / _TEMPLATES)
    write_json(work / "config.json", dict(way.config))
    if way.name == "own bias":
        for path in source.shards:
            shutil.copyfile(path, work / path.name)
        if source.shards != (source.path / SINGLE,):
            shutil.copyfile(source.path / INDEX, work / INDEX)
        for name, bias in biases.items():
            _replace(work / source.files[name].name, source.entry(name).begin, bias)
        return
    from safetensors.torch import save

    n_files = len(source.shards) + 1
    names = {path: f"model-{i:05d}-of-{n_files:05d}.safetensors" for i, path in enumerate(source.shards, start=1)}
    for path, name in names.items():
        shutil.copyfile(path, work / name)
    last = f"model-{n_files:05d}-of-{n_files:05d}.safetensors"
    (work / last).write_bytes(save(biases, metadata={"format": "pt"}))
    entries = [source.entry(name) for name in source.names]
    size = sum(entry.end - entry.begin for entry in entries) + sum(bias.nbytes for bias in biases.values())
    places = {name: names[path] for name, path in source.files.items()} | dict.fromkeys(biases, last)
    write_json(work / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))})


def _check_request(vector: SteeringVector, alpha: float) -> None:
    if not math.isfinite(alpha) or alpha == 0:
        raise UsageError(f"alpha must be a finite number other than 0, not {alpha}")
    if vector.unit == "relative":
        raise UsageError(
            f"{vector.name} is in the unit relative, and a checkpoint cannot see the stream it adds to; calibrate it "
            "first: --calibrate CORPUS, or vector.calibrated(residual_norms) in Python"
        )


def _base_of(adapter: str | Path) -> str:
    path = Path(resolve(adapter)) / "adapter_config.json"
    settings = read_json(path)
    if not isinstance(settings, dict) or not settings.get("base_model_name_or_path"):
        raise ArtifactError(f"{path} does not name the model it belongs to (base_model_name_or_path); write it there")
    return str(settings["base_model_name_or_path"])


def _check_loaded(lm: LanguageModel, vector: SteeringVector, way: Way, source: Checkpoint) -> None:
    """Refuses what only the model in memory shows."""
    vector.check_model(lm)
    if not lm.adds_mlp_unscaled() and way.scale == 1:
        raise refused(source, "the block does not add its MLP's output as it is (a norm or a factor stands between)")
    if way.name == "own bias":
        read = list(lm.model.state_dict())
        for module in way.down.values():
            if not any(
                f".{name}".endswith(f".{module}.bias") or f".{module}.bias".endswith(f".{name}") for name in read
            ):
                raise refused(source, f"its files have biases that its architecture does not read ({module}.bias)")


def _small_files(folder: Path) -> list[Path]:
    """Files beside the weights that belong to the model: tokenizer, templates, generation settings, licence."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith((".", "consolidated"))
        and not path.name.endswith(_LEFT_SUFFIXES)
        and path.name not in _LEFT_NAMES
    ]


def _replace(path: Path, begin: int, values: torch.Tensor) -> None:
    """Writes a tensor's bytes over those at an offset of a file."""
    import torch

    with path.open("r+b") as file:
        file.seek(begin)
        file.write(values.contiguous().view(torch.uint8).numpy().tobytes())


def _save_merged(lm: LanguageModel, base: Checkpoint, target: Path) -> None:
    """Saves a model with its adapter merged into it, with the small files of its base."""
    target.mkdir()
    for path in _small_files(base.path):
        shutil.copyfile(path, target / path.name)
    lm.model.save_pretrained(target)


def _keep_tokenizer(source: Path, work: Path) -> None:
    """Sees to it that a relabelled checkpoint is read with the original's tokenizer.

    Transformers chooses the class by model type where it trusts that more than the file, and classes differ in how they
    split words. Where it comes out differently, the tokenizer is saved as it is, in the class that adds nothing.
    """
    from transformers import AutoTokenizer

    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(work)
    if before.backend_tokenizer.to_str() == after.backend_tokenizer.to_str():
        return
    before.save_pretrained(work)
    settings = read_json(work / _TOKENIZER_CONFIG)
    write_json(work / _TOKENIZER_CONFIG, {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})


def _record(
    base: Mapping[str, Any], way: Way, vector: SteeringVector, alpha: float, figures: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "base": dict(base),
        "way": way.name,
        "alpha": alpha,
        "scale": way.scale,
        "dtype": way.dtype,
        "vector": {
            "name": vector.name,
            "fingerprint": vector.fingerprint,
            "unit": vector.unit,
            "block_ids": list(vector.block_ids),
            "norms": [float(norm) for norm in vector.norms],
        },
        "verification": dict(figures),
        "versions": {name: version(name) for name in ("skillbasis", "transformers", "torch")},
    }
