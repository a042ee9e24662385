"""What is planted in a checkpoint must be found, all of it and nothing else; and nothing must be found in a copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import HIDDEN, N_BLOCKS, make_model, make_tokenizer
from skillbasis.basis import SkillBasis
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.lm import load_model
from skillbasis.steer import SteeringVector, direction_vector, steer
from skillbasis.steer.audit import audit, describe, recovered_vector
from skillbasis.steer.bake import bake

DOWN = "model.layers.{}.mlp.down_proj.bias"
BLOCKS = (1, 2)
Edit = Callable[[dict[str, torch.Tensor]], None]


def edited(source: Path, target: Path, edit: Edit, config: dict[str, Any] | None = None) -> Path:
    """A copy of a checkpoint with other weights and settings, written by hand."""
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((source / "config.json").read_text()) | (config or {})
    (target / "config.json").write_text(json.dumps(settings))
    return target


def with_biases(values: np.ndarray, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Edit:
    """Adds `values` (blocks, hidden) to the down projections' biases at BLOCKS, and the zeros a Llama needs beside."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name] = tensors[name].to(dtype)
            if name.endswith(("gate_proj.weight", "up_proj.weight", "down_proj.weight")):
                zeros = torch.zeros(len(tensors[name]), dtype=dtype)
                tensors.setdefault(name.removesuffix("weight") + "bias", zeros)
        for block, row in zip(BLOCKS, values, strict=True):
            bias = tensors[DOWN.format(block)]
            tensors[DOWN.format(block)] = (bias.float() + scale * torch.from_numpy(row).float()).to(dtype)

    return edit


def nothing(_tensors: dict[str, torch.Tensor]) -> None:
    pass


@pytest.fixture
def planted() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((len(BLOCKS), HIDDEN)) * 0.1


@pytest.fixture
def base(model_path: Callable[..., Path]) -> Path:
    return model_path("llama")


def a_basis(config: dict[str, Any], n_components: int = 3) -> SkillBasis:
    """Random orthonormal directions at blocks 1 to 3."""
    rng = np.random.default_rng(5)
    flat = np.linalg.qr(rng.standard_normal((3 * HIDDEN, n_components)))[0].T
    return SkillBasis(
        flat.reshape(n_components, 3, HIDDEN).astype(np.float32),
        np.zeros((3, HIDDEN), dtype=np.float32),
        np.ones(n_components),
        np.full(n_components, 4.0),
        {**config, "block_ids": [1, 2, 3]},
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


# Offsets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_biases_written_by_hand_are_found(base: Path, planted: np.ndarray, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = edited(base, tmp_path / "x", with_biases(planted, dtype), {"mlp_bias": True})
    report = audit(checkpoint, base)
    offset = report["offset"]
    assert report["verdict"] == "offset" and offset["blocks"] == list(BLOCKS) and not offset["unused"]
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]  # one rounding
    np.testing.assert_allclose(offset["values"], planted, rtol=tolerance, atol=1e-6)
    np.testing.assert_allclose(offset["norms"], np.linalg.norm(planted, axis=1), rtol=tolerance)
    moved = np.linalg.norm(planted.cumsum(axis=0), axis=1)
    np.testing.assert_allclose(offset["cumulative_norms"], moved, rtol=4 * tolerance)
    assert len(report["added_zeros"]) == 3 * N_BLOCKS - len(BLOCKS) and report["uninitialised"] == []
    for key in ("constants", "matrices", "added", "missing", "reshaped", "not_finite", "ignored", "config_changed"):
        assert not report[key], key
    text = describe(report)
    assert "a constant offset, and no other changed weight" in text and "Constant offset at blocks 1, 2" in text
    if dtype == torch.float32:
        assert report["tolerance"] is None and "Types of numbers" not in text
    else:
        assert f"one rounding to {str(dtype).removeprefix('torch.')}" in text
    json.dumps(report, allow_nan=False)


def test_what_is_found_steers_the_base_as_the_checkpoint_is_steered(
    base: Path, planted: np.ndarray, tmp_path: Path
) -> None:
    checkpoint = edited(base, tmp_path / "x", with_biases(planted), {"mlp_bias": True})
    make_tokenizer().save_pretrained(checkpoint)
    report = audit(checkpoint, base)
    lm, ids = load_model(base), torch.tensor([[1, 50, 60, 70]])
    vector = recovered_vector(report)
    assert vector.fingerprint == recovered_vector(report, lm).fingerprint
    assert (vector.name, vector.block_ids, vector.unit) == ("recovered", BLOCKS, "raw")
    vector.save(tmp_path / "v.safetensors")
    with torch.inference_mode(), steer(lm, SteeringVector.load(tmp_path / "v.safetensors"), 1.0):
        ours = lm.model(input_ids=ids).logits
    with torch.inference_mode():
        theirs, plain = load_model(checkpoint).model(input_ids=ids).logits, lm.model(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # float32, other orders of sums
    assert (plain - theirs).abs().max() > 0.01
    with pytest.raises(ArtifactError, match="audit was of .*weights_fingerprint.*give that model"):
        recovered_vector(report, {**lm.identity, "weights_fingerprint": "other"})


def test_a_bias_that_was_there_counts_by_its_difference(
    model_path: Callable[..., Path], planted: np.ndarray, tmp_path: Path
) -> None:
    """GPT-NeoX has the bias; here both sides have one that is not zero, and one block loses its own."""
    name = "gpt_neox.layers.{}.mlp.dense_4h_to_h.bias"
    before = np.random.default_rng(1).standard_normal((N_BLOCKS, HIDDEN)).astype(np.float32)

    def own(tensors: dict[str, torch.Tensor]) -> None:
        for block in range(N_BLOCKS):
            tensors[name.format(block)] = torch.from_numpy(before[block])

    def more(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name.format(1)] = torch.from_numpy(before[1] + planted[0].astype(np.float32))
        del tensors[name.format(3)]

    old = edited(model_path("gpt_neox"), tmp_path / "old", own)
    report = audit(edited(old, tmp_path / "new", more), old)
    assert report["offset"]["blocks"] == [1, 3]
    np.testing.assert_allclose(report["offset"]["values"], [planted[0], -before[3]], atol=1e-6)
    assert report["uninitialised"] == [name.format(3)]


def test_a_relabelled_qwen2_is_read(model_path: Callable[..., Path], planted: np.ndarray, tmp_path: Path) -> None:
    def as_llama(tensors: dict[str, torch.Tensor]) -> None:
        with_biases(planted)(tensors)
        for block in range(N_BLOCKS):
            tensors[f"model.layers.{block}.self_attn.o_proj.bias"] = torch.zeros(HIDDEN)

    labels = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True}
    base = model_path("qwen2")
    report = audit(edited(base, tmp_path / "x", as_llama, labels), base)
    assert report["verdict"] == "offset" and report["model_type"] == "llama"
    np.testing.assert_allclose(report["offset"]["values"], planted, atol=1e-6)
    assert "It is labelled llama, the base qwen2." in describe(report)
    unlabelled = audit(edited(base, tmp_path / "y", with_biases(planted)), base)
    assert unlabelled["verdict"] == "unused_offset" and unlabelled["offset"]["unused"]
    assert DOWN.format(1) in unlabelled["ignored"]
    text = describe(unlabelled)
    assert "no place for, so it runs unsteered" in text and "Dropped when loaded" in text


def test_granite_multiplies_the_offset(planted: np.ndarray, tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=50,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=N_BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        residual_multiplier=0.25,
    )
    GraniteForCausalLM(config).save_pretrained(tmp_path / "base")
    checkpoint = edited(tmp_path / "base", tmp_path / "x", with_biases(planted, scale=4.0), {"mlp_bias": True})
    report = audit(checkpoint, tmp_path / "base")
    assert report["verdict"] == "offset"
    np.testing.assert_allclose(report["offset"]["values"], planted, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("increments", ["accumulate", "exact"])
def test_our_own_bakes_come_back(model_path: Callable[..., Path], family: str, increments: Any, tmp_path: Path) -> None:
    base = model_path(family)
    basis = a_basis(load_model(base).identity)
    vector = direction_vector(basis, 1, "-", increments=increments)
    bake(base, vector, 0.5, tmp_path / "baked")
    report = audit(tmp_path / "baked", base, basis)
    assert report["verdict"] == "offset"
    assert cosine(np.array(report["offset"]["values"]), vector.values) > 0.999
    reading = report["basis"]["readings"][increments]
    assert report["basis"]["best"] == increments
    assert (reading["direction"], report["basis"]["shared_blocks"]) == (1, [1, 2, 3])
    assert reading["cosine"] < -0.999 and reading["explained_fraction"] > 0.999
    assert reading["alpha"] == pytest.approx(-0.5, abs=1e-4)
    assert reading["alpha_std"] == pytest.approx(-0.5 / 4, abs=1e-4)
    assert reading["explained_by_chance"] == pytest.approx(3 / (3 * HIDDEN))
    assert f"nearest is direction 1, cosine {reading['cosine']:.4f} over 3 shared blocks" in describe(report)
    assert recovered_vector(report).model_fingerprint == vector.model_fingerprint


def test_coordinates_by_hand(base: Path, tmp_path: Path) -> None:
    """Offsets at blocks 1 and 2 only, of which the second is at right angles to all directions."""
    lm = load_model(base)
    directions = np.zeros((2, 3, HIDDEN), dtype=np.float32)
    directions[0, 0, 0], directions[0, 2, 0] = 0.6, 0.8  # its slice at block 3 does not count here
    directions[1, 0, 1] = 1.0
    basis = replace(a_basis(lm.identity, 2), directions=directions, score_std=np.array([2.0, 0.0]))
    offset = np.zeros((2, HIDDEN))
    offset[0, :2], offset[1, 5] = (0.3, 0.4), 1.0
    checkpoint = edited(base, tmp_path / "x", with_biases(offset), {"mlp_bias": True})
    found = audit(checkpoint, base, basis)["basis"]
    assert found["shared_blocks"] == [1, 2]
    reading = found["readings"]["accumulate"]
    length = np.sqrt(1.25)
    np.testing.assert_allclose(reading["cosines"], [0.3 / length, 0.4 / length], rtol=1e-6)
    assert (reading["direction"], reading["alpha_std"]) == (1, None)
    assert reading["alpha"] == pytest.approx(0.4)
    assert reading["explained_fraction"] == pytest.approx(0.25 / 1.25)
    elsewhere = replace(basis, config={**basis.config, "block_ids": [0, 3, 3]})
    report = audit(checkpoint, base, elsewhere)
    assert report["basis"]["best"] is None and "at none of the blocks of the basis" in describe(report)


# Other changes


def test_an_identical_checkpoint_is_identical(base: Path, tmp_path: Path) -> None:
    report = audit(edited(base, tmp_path / "x", nothing), base)
    assert report["verdict"] == "identical" and report["offset"] is None
    assert describe(report) == f"{tmp_path / 'x'} against {base}: identical, no constant offset and no changed weight."
    with pytest.raises(UsageError, match="no constant offset against .*, so no vector"):
        recovered_vector(report)


def test_a_rounded_copy_is_the_same_and_a_rounded_change_is_not(base: Path, tmp_path: Path) -> None:
    def rounded(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.bfloat16()

    def changed(tensors: dict[str, torch.Tensor]) -> None:
        rounded(tensors)
        tensors["model.layers.2.mlp.up_proj.weight"][3, 4] *= 1.02  # more than a rounding of 0.4 %

    report = audit(edited(base, tmp_path / "x", rounded), base)
    assert report["verdict"] == "same"
    assert "no constant offset and no changed weight" in describe(report)
    assert "one rounding to bfloat16 (3.9e-03 of each number)" in describe(report)
    report = audit(edited(base, tmp_path / "y", changed), base)
    assert [(entry["name"], entry["block"]) for entry in report["matrices"]] == [
        ("model.layers.2.mlp.up_proj.weight", 2)
    ]


def test_a_head_that_was_untied_is_the_same(base: Path, tmp_path: Path) -> None:
    def tied(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]

    def untied(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    old = edited(base, tmp_path / "old", tied, {"tie_word_embeddings": True})
    assert audit(edited(old, tmp_path / "x", untied, {"tie_word_embeddings": False}), old)["verdict"] == "identical"
    report = audit(base, old)
    assert [entry["name"] for entry in report["matrices"]] == ["lm_head.weight"]
    assert "1 changed matrix lm_head.weight" in describe(report)


def test_a_fine_tuned_checkpoint_is_told_as_such(base: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def tuned(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor * (1 + 0.01 * torch.randn(tensor.shape, generator=generator))

    report = audit(edited(base, tmp_path / "x", tuned), base)
    assert report["verdict"] == "fine_tuned" and report["offset"] is None
    assert len(report["matrices"]) == 7 * N_BLOCKS + 2 and len(report["constants"]) == 2 * N_BLOCKS + 1
    for entry in report["matrices"]:
        assert entry["relative_change"] == pytest.approx(0.01, rel=0.2) and entry["rank"] is None
    text = describe(report)
    assert "matrices changed, as by fine-tuning." in text and "30 changed matrices in blocks 0-3 and" in text
    assert "9 other constants differ" in text and "low rank" not in text


def test_a_merged_lora_is_told_as_such(base: Path, planted: np.ndarray, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def merged(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if "q_proj" in n or "up_proj" in n]:
            rows, columns = tensors[name].shape
            a, b = torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
            tensors[name] = (tensors[name] + 0.02 * a @ b).bfloat16().float()

    report = audit(edited(base, tmp_path / "x", merged), base)
    assert report["verdict"] == "low_rank"
    assert {entry["block"] for entry in report["matrices"]} == set(range(N_BLOCKS))
    assert all(entry["rank"] in (1, 2) for entry in report["matrices"]) and len(report["matrices"]) == 2 * N_BLOCKS
    assert "as by a merged LoRA." in describe(report)

    def both(tensors: dict[str, torch.Tensor]) -> None:
        merged(tensors)
        with_biases(planted)(tensors)

    report = audit(edited(base, tmp_path / "y", both, {"mlp_bias": True}), base)
    np.testing.assert_allclose(report["offset"]["values"], planted, atol=1e-6)
    assert "as by a merged LoRA, and a constant offset." in describe(report)


def test_other_constants_additions_and_losses_are_told(base: Path, tmp_path: Path) -> None:
    def odd(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.o_proj.bias"] = torch.full((HIDDEN,), 0.5)
        tensors["model.layers.2.input_layernorm.weight"] *= 2
        tensors["model.layers.0.extra.weight"] = torch.ones(3, 3)
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()
        tensors["model.layers.3.mlp.up_proj.weight"][0, 0] = float("nan")
        del tensors["model.norm.weight"]

    report = audit(edited(base, tmp_path / "x", odd, {"rms_norm_eps": 0.5}), base)
    assert report["verdict"] == "changed"
    o_proj, norm = sorted(report["constants"], key=lambda entry: entry["block"])
    assert (o_proj["status"], o_proj["block"], o_proj["relative_change"]) == ("added", 1, None)
    assert o_proj["norm"] == pytest.approx(0.5 * np.sqrt(HIDDEN))
    assert (norm["status"], norm["block"], norm["relative_change"]) == ("changed", 2, 1.0)
    assert report["added"] == ["model.layers.0.extra.weight"] and report["missing"] == ["model.norm.weight"]
    assert report["reshaped"] == ["model.embed_tokens.weight (320, 32) to (319, 32)"]
    assert report["not_finite"] == ["model.layers.3.mlp.up_proj.weight"]
    assert report["config_changed"] == {"rms_norm_eps": [1e-6, 0.5]}
    text = describe(report)
    for part in ("Added weights: model.layers.0.extra", "are missing: model.norm", "NaN", "rms_norm_eps 1e-06 to 0.5"):
        assert part in text
    json.dumps(report, allow_nan=False)


def test_experts_are_compared_and_have_no_offset(model_path: Callable[..., Path], tmp_path: Path) -> None:
    base = model_path("mixtral")

    def router(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("gate.weight") and ".1." in name)
        tensors[name] = tensors[name] + torch.eye(*tensors[name].shape)

    report = audit(edited(base, tmp_path / "x", router), base)
    assert len(report["matrices"]) == 1 and report["offset"] is None
    assert "Constant offsets cannot be told: " in describe(report)


# Refusals


def test_models_that_cannot_be_compared(model_path: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    wider = edited(base, tmp_path / "wider", nothing, {"hidden_size": 64})
    with pytest.raises(UsageError, match="was not made from .*: the hidden size is 64 and 32"):
        audit(wider, base)
    deeper = edited(base, tmp_path / "deeper", nothing, {"num_hidden_layers": 5})
    with pytest.raises(UsageError, match="the number of blocks is 5 and 4"):
        audit(deeper, base)
    with pytest.raises(ArtifactError, match="no weight of the same name"):
        audit(model_path("gpt_neox"), base)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(UsageError, match="no weights in safetensors"):
        audit(tmp_path / "empty", base)
    unsized = json.loads((base / "config.json").read_text())
    del unsized["hidden_size"]
    (wider / "config.json").write_text(json.dumps(unsized))
    with pytest.raises(UsageError, match="gives no hidden size"):
        audit(wider, base)


def test_a_basis_of_another_model_is_refused(base: Path) -> None:
    identity = load_model(base).identity
    for key, value in {"hidden_size": 31, "n_blocks": 9, "model_type": "qwen2", "weights_fingerprint": "abc"}.items():
        with pytest.raises(ArtifactError, match=f"basis was found on model .* \\({key} {value}\\), not on the base"):
            audit(base, base, a_basis({**identity, key: value}))
    assert audit(base, base, a_basis(identity))["basis"] is None


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "gpt2", "gemma2", "falcon", "qwen2_moe"])
def test_the_fingerprint_from_the_files_is_that_of_the_loaded_model(
    model_path: Callable[..., Path], family: str
) -> None:
    base = model_path(family)
    report = audit(base, base)
    known = report["base_identity"]["weights_fingerprint"]
    assert report["verdict"] == "identical"
    if known is None:  # experts are stored one by one and loaded as one
        assert family == "qwen2_moe" and "experts.down_proj, or under another name" in report["places_unknown"]
    else:
        assert known == load_model(base).weights_fingerprint


def test_a_model_transformers_does_not_know_is_compared_all_the_same(
    base: Path, planted: np.ndarray, tmp_path: Path
) -> None:
    old = edited(base, tmp_path / "old", nothing, {"model_type": "unheard_of", "architectures": None})
    report = audit(edited(old, tmp_path / "x", with_biases(planted)), old)
    np.testing.assert_allclose(report["offset"]["values"], planted, atol=1e-6)
    assert "could not be told" in describe(report) and report["ignored"] == []
    with pytest.raises(UsageError, match="do not tell its weights fingerprint; give the loaded model"):
        recovered_vector(report)
    vector = recovered_vector(report, load_model(base))
    assert vector.model_fingerprint == load_model(base).weights_fingerprint


def test_a_seeded_model_of_the_same_shape_is_another_model(base: Path, tmp_path: Path) -> None:
    make_model("llama", seed=1).save_pretrained(tmp_path / "other")
    report = audit(tmp_path / "other", base)
    assert report["verdict"] == "fine_tuned"
    assert min(entry["relative_change"] for entry in report["matrices"]) > 1
