"""Loading models and refusing damaged ones, telling weights and tokenizers apart, choosing layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import FAMILIES, make_config, make_model, make_tokenizer
from skillbasis.errors import UsageError
from skillbasis.lm import LanguageModel, load_model, parse_layers, resolve, weights_fingerprint, wrap

Loaded = Callable[..., LanguageModel]


@pytest.fixture
def copy(model_path: Callable[..., Path], tmp_path: Path) -> Path:
    """A saved tiny Llama that a test may damage."""
    shutil.copytree(model_path("llama"), tmp_path / "model")
    return tmp_path / "model"


def test_weights_are_told_apart_by_value_and_not_by_dtype() -> None:
    import torch

    model = make_model("llama").to(torch.bfloat16)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model.to(torch.float32)) == before
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] += 1e-3
    assert weights_fingerprint(model) != before


def test_large_tensors_are_sampled_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("skillbasis.lm._FULL_HASH_ELEMENTS", 512)
    model = make_model("llama")
    before = weights_fingerprint(model)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight *= 1.01
    assert weights_fingerprint(model) != before


def test_saving_and_loading_keep_the_identity(model_path: Callable[..., Path], loaded: Loaded, tmp_path: Path) -> None:
    lm = loaded("llama", chat=True)
    lm.model.save_pretrained(tmp_path / "again")
    lm.tokenizer.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert again.identity | {"model": ""} == lm.identity | {"model": ""}
    assert again.identity["model"] == str(tmp_path / "again")
    assert lm.template_fingerprint is not None
    assert loaded("llama").template_fingerprint is None
    assert loaded("llama").tokenizer_fingerprint != lm.tokenizer_fingerprint


def test_the_revision_asked_for_is_kept(model_path: Callable[..., Path], loaded: Loaded) -> None:
    lm = load_model(model_path("llama"), revision="v1.0")  # a local directory has but one
    assert (lm.revision, lm.identity["revision"]) == ("v1.0", "v1.0")
    assert loaded("llama").identity["revision"] is None


def test_padding_and_cutting_do_not_make_another_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = make_model("llama"), make_tokenizer()
    before = wrap(model, tokenizer, "a").tokenizer_fingerprint
    tokenizer(["one", "one two"], padding=True, truncation=True, max_length=4)
    assert wrap(model, tokenizer, "a").tokenizer_fingerprint == before


def test_a_missing_padding_token_is_the_end_token_and_other_tokenizers_are_refused() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer()
    tokenizer.pad_token = None
    assert wrap(model, tokenizer, "a").tokenizer.pad_token == "</s>"
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(UsageError, match="'a' has neither a padding nor an end token"):
        wrap(model, tokenizer, "a")
    with pytest.raises(UsageError, match="'a' is not a fast one and gives no character offsets"):
        wrap(model, SimpleNamespace(is_fast=False), "a")


def test_dtypes(model_path: Callable[..., Path]) -> None:
    import torch

    path = model_path("llama")
    assert load_model(path).model.dtype == torch.float32
    assert load_model(path, dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(UsageError, match="unknown dtype 'int8'; allowed are auto, float32"):
        load_model(path, dtype="int8")


def test_bfloat16_weights_are_computed_in_float32_on_the_cpu(tmp_path: Path) -> None:
    import torch

    make_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    auto, half = load_model(tmp_path), load_model(tmp_path, dtype="bfloat16")
    assert (auto.model.dtype, half.model.dtype) == (torch.float32, torch.bfloat16)
    assert auto.weights_fingerprint == half.weights_fingerprint


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lack 1 weights, model\.layers\.1\.mlp\.up_proj\.weight for one"):
        load_model(copy)


def _cut(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def _pickled(path: Path) -> None:
    import torch

    torch.save(make_model("llama").state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def _retype(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "nonesuch"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "cannot be loaded: .*not fully covered"),
        (_pickled, r"cannot be loaded: .*no file named model\.safetensors"),
        (_retype, "cannot be read as a transformers model: .*nonesuch"),
        (lambda path: (path / "config.json").write_text("{"), "cannot be read .*not a valid JSON file"),
        (lambda path: [file.unlink() for file in path.glob("tokenizer*")], "cannot be loaded: .*tokenizer"),
    ],
)
def test_a_damaged_model_is_one_clear_error(copy: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(copy)
    with pytest.raises(UsageError, match=message):
        load_model(copy)


def test_a_device_that_is_not_there(copy: Path) -> None:
    with pytest.raises(UsageError, match="cannot be put on 'warp'"):
        load_model(copy, device="warp")


def test_names(tmp_path: Path) -> None:
    assert resolve("owner/name") == "owner/name"
    assert resolve(tmp_path) == str(tmp_path)
    assert resolve("embedded").endswith("reasoner")
    for name in ("./model", "/no/such", "~/no-such-model", "a/b/c"):
        with pytest.raises(UsageError, match="does not exist; give a local directory, a hub id, or 'embedded'"):
            resolve(name)
    with pytest.raises(UsageError, match="'owner/nonesuch' cannot be read"):
        load_model("owner/nonesuch")


@pytest.mark.parametrize(
    ("layers", "n_blocks", "expected"),
    [
        ("inner", 5, [1, 2, 3]),
        ("inner", 3, [1]),
        ("inner", 2, [0, 1]),
        ("inner", 1, [0]),
        ("all", 3, [0, 1, 2]),
        ("4", 5, [4]),
        ("3, 1", 5, [1, 3]),
        ("2,5,8-11", 12, [2, 5, 8, 9, 10, 11]),
        ("1-3,2-4,3", 5, [1, 2, 3, 4]),
        ("2-2", 5, [2]),
        ("early", 4, [0, 1]),
        ("middle", 4, [2]),
        ("late", 4, [3]),
        ("middle", 32, list(range(11, 22))),
        ("late", 32, list(range(22, 32))),
        ("late", 3, [2]),
    ],
)
def test_layers(layers: str, n_blocks: int, expected: list[int]) -> None:
    assert parse_layers(layers, n_blocks) == expected


@pytest.mark.parametrize("layers", ["", "outer", "1,", "-1", "1-", "1--2", "5-2", "1.5", "1 2", "²"])
def test_layers_that_mean_nothing(layers: str) -> None:
    with pytest.raises(UsageError, match="is neither one of inner, all, early, middle, late nor a list of block ids"):
        parse_layers(layers, 12)


def test_thirds_need_three_blocks() -> None:
    with pytest.raises(UsageError, match="--layers late needs 3 blocks or more, but the model has 2"):
        parse_layers("late", 2)


@pytest.mark.parametrize("layers", ["12", "3,12", "10-12", "0-99999999999999"])
def test_layers_the_model_does_not_have(layers: str) -> None:
    with pytest.raises(UsageError, match="but the model has blocks 0 to 11"):
        parse_layers(layers, 12)


def test_every_family_has_its_configuration() -> None:
    types = {make_config(family).model_type.removesuffix("_text") for family in FAMILIES}
    assert types == {family.removesuffix("_alibi").removesuffix("_new") for family in FAMILIES}
