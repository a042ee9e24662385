"""A comparison that finds what is wrong: bounds by dtype, lost and changed biases, other originals, small alphas."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints import make_config, random_steering, save_checkpoint
from skillbasis.artifact import read_json
from skillbasis.errors import ArtifactError, SkillbasisError, UsageError
from skillbasis.lm import load_model
from skillbasis.steer import SteeringVector
from skillbasis.steer.bake import bake
from skillbasis.steer.checkpoint import INDEX, Checkpoint
from skillbasis.steer.verify import Tolerance, comparison_dtype, describe, reference, verify


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Qwen2 and what was baked of it: (original, checkpoint). Tests copy what they change."""
    folder = tmp_path_factory.mktemp("baked")
    path = save_checkpoint(folder / "model", make_config("qwen2"))
    bake(path, random_steering(path), 0.7, folder / "out")
    return path, folder / "out"


@pytest.fixture
def copy(baked: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(baked[1], tmp_path / "copy"))


def change(folder: Path, names: list[str], factor: float) -> None:
    """Multiplies weights of a checkpoint in place."""
    checkpoint = Checkpoint.open(folder)
    for name in names:
        values = checkpoint.tensor(name) * factor
        with checkpoint.files[name].open("r+b") as file:
            file.seek(checkpoint.entry(name).begin)
            file.write(values.view(torch.uint8).numpy().tobytes())


def test_figures_worked_by_hand(baked: tuple[Path, Path]) -> None:
    original, checkpoint = baked
    vector = SteeringVector.load(checkpoint / "steering/vector.safetensors")
    figures = verify(checkpoint)
    assert figures == read_json(checkpoint / "steering/bake.json")["verification"]
    assert figures["passed"]
    assert figures["sequences"] == [1, 8, 31, 120]
    assert (figures["dtype"], figures["saved_dtype"]) == ("float32", "float32")
    assert figures["largest_share"] == 1e-2
    assert figures["largest_difference"] == pytest.approx(1e-4 * figures["max_logit"])
    lm = load_model(original)
    before = reference(lm, vector, 0.7, "float32")
    after = load_model(checkpoint).model
    parts = [after(input_ids=torch.tensor([ids])).logits[0] for ids in before.sequences]
    logits = torch.cat(parts).detach().double()
    plain, steered = before.plain.double(), before.steered.double()
    assert before.plain.shape == (160, 320)
    moved = (steered - plain).square().mean().sqrt()
    assert figures["rms_movement"] == pytest.approx(float(moved), rel=1e-5)
    assert figures["share"] == pytest.approx(float((logits - steered).square().mean().sqrt() / moved), rel=1e-3)
    assert figures["max_difference"] == pytest.approx(float((logits - steered).abs().max()), rel=1e-3)
    assert figures["max_logit"] == pytest.approx(float(steered.abs().max()))
    assert figures["argmax_agreement"] == 1
    agreement = float((plain.argmax(1) == steered.argmax(1)).double().mean())
    assert figures["unsteered_argmax_agreement"] == pytest.approx(agreement)


def test_the_line_for_people() -> None:
    figures = {
        "dtype": "float32",
        "max_difference": 0.00012,
        "largest_difference": 0.001,
        "share": 0.0001,
        "largest_share": 0.01,
        "argmax_agreement": 1.0,
        "same_tokenizer": True,
    }
    assert describe(figures) == (
        "logits in float32 differ from the hooked original's by at most 0.00012 (allowed 0.001), 0.0001 of what "
        "steering moves them (allowed 0.01); same first choice at 100.0% of tokens"
    )
    assert "(allowed 0.001)" not in describe(figures | {"largest_difference": None})
    assert describe(figures | {"same_tokenizer": False}).endswith("; another tokenizer")
    assert describe(figures | {"share": None}) == "its logits are not finite (compared in float32)"


def test_one_changed_bias_is_found(copy: Path) -> None:
    change(copy, ["model.layers.2.mlp.down_proj.bias"], 1.1)
    with pytest.raises(SkillbasisError, match=r"is not .* with that steering: logits .*; bake it anew"):
        verify(copy)


def test_another_weight_that_changed_is_found(copy: Path) -> None:
    change(copy, ["model.layers.0.self_attn.o_proj.weight"], 1.02)
    with pytest.raises(SkillbasisError, match="with that steering: logits"):
        verify(copy)


def test_the_naive_way_that_loads_unsteered_is_found(copy: Path, baked: tuple[Path, Path]) -> None:
    """A Qwen2 with extra biases in its files: transformers says nothing, and drops them."""
    shutil.copyfile(baked[0] / "config.json", copy / "config.json")
    with pytest.raises(SkillbasisError, match=r", 1 of what steering moves them \(allowed 0\.01\)"):
        verify(copy)


def test_a_lost_bias_cannot_be_loaded(copy: Path) -> None:
    index = read_json(copy / INDEX)
    del index["weight_map"]["model.layers.2.mlp.down_proj.bias"]
    (copy / INDEX).write_text(json.dumps(index))
    shard = copy / "model-00002-of-00002.safetensors"
    from safetensors.torch import load_file, save_file

    kept = {name: bias for name, bias in load_file(shard).items() if name != "model.layers.2.mlp.down_proj.bias"}
    save_file(kept, shard, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lack 1 weights, model\.layers\.2\.mlp\.down_proj\.bias"):
        verify(copy)


def test_another_base_of_rotary_embeddings_is_found(copy: Path) -> None:
    """What a reader does that takes the base of 10,000."""
    config = read_json(copy / "config.json")
    config["rope_parameters"] = config["rope_scaling"] = {**config["rope_scaling"], "rope_theta": 10_000.0}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SkillbasisError, match="with that steering: logits"):
        verify(copy)


def test_weights_that_are_not_finite_are_found(copy: Path) -> None:
    change(copy, ["model.layers.2.mlp.down_proj.bias"], float("nan"))
    with pytest.raises(SkillbasisError, match="its logits are not finite"):
        verify(copy)


def test_another_tokenizer_is_found(copy: Path, baked: tuple[Path, Path]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(__file__).parents[1] / "src/skillbasis/world/data/reasoner" / name, copy / name)
    with pytest.raises(SkillbasisError, match="; another tokenizer"):
        verify(copy)


def test_the_original_is_asked_for_where_it_is_not_found(baked: tuple[Path, Path], copy: Path) -> None:
    record = read_json(copy / "steering/bake.json")
    record["base"]["model"] = str(copy / "gone")
    (copy / "steering/bake.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"the original of .* cannot be had \(.*does not exist.*\); say with --base"):
        verify(copy)
    assert verify(copy, baked[0])["passed"]
    with pytest.raises(ArtifactError, match="was made for model"):
        verify(copy, "embedded")


def test_what_was_not_baked_is_refused(baked: tuple[Path, Path], copy: Path) -> None:
    with pytest.raises(UsageError, match=r"has no steering/bake\.json, so it was not made by skillbasis steer bake"):
        verify(baked[0])
    vector = SteeringVector.load(copy / "steering/vector.safetensors")
    (copy / "steering/vector.safetensors").unlink()
    replace(vector, values=vector.values * 2).save(copy / "steering/vector.safetensors")
    with pytest.raises(ArtifactError, match="is not the vector that was baked"):
        verify(copy)
    (copy / "steering/bake.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is damaged or of another version"):
        verify(copy)


def test_a_movement_like_rounding_proves_nothing(baked: tuple[Path, Path]) -> None:
    vector = SteeringVector.load(baked[1] / "steering/vector.safetensors")
    lm = load_model(baked[0])
    with pytest.raises(SkillbasisError, match="cannot be told from rounding in float32.* alpha or --dtype float32"):
        reference(lm, vector, 1e-6, "float32")


def test_the_original_itself_must_be_finite(baked: tuple[Path, Path]) -> None:
    vector = SteeringVector.load(baked[1] / "steering/vector.safetensors")
    lm = load_model(baked[0])
    with torch.no_grad():
        lm.model.lm_head.weight[3, 4] = float("nan")
    with pytest.raises(SkillbasisError, match="are not finite even unsteered"):
        reference(lm, vector, 0.5, "float32")


def test_two_bytes_are_compared_with_their_own_bounds(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "model", make_config("qwen2"), dtype="bfloat16")
    vector = random_steering(path)
    bake(path, vector, 0.7, tmp_path / "out")
    wide, narrow = verify(tmp_path / "out"), verify(tmp_path / "out", dtype="bfloat16")
    assert (wide["dtype"], narrow["dtype"]) == ("float32", "bfloat16")
    assert wide["largest_difference"] is narrow["largest_difference"] is None
    assert wide["share"] < 0.005 < narrow["share"] < 0.1  # rounded once, or at every step
    assert (wide["largest_share"], narrow["largest_share"]) == (0.05, 0.25)
    with pytest.raises(UsageError, match=r"saved in bfloat16; compare in that or in float32 .*, not in float16"):
        verify(tmp_path / "out", dtype="float16")
    change(tmp_path / "out", ["model.layers.1.mlp.down_proj.bias"], 0.0)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(SkillbasisError, match="of what steering moves them"):
            verify(tmp_path / "out", dtype=dtype)


def test_bounds_by_dtype() -> None:
    assert Tolerance.of("float32", "float32") == Tolerance(share=1e-2, of_max_logit=1e-4)
    assert Tolerance.of("float32", "bfloat16") == Tolerance(share=5e-2, of_max_logit=None)
    assert Tolerance.of("bfloat16", "bfloat16") == Tolerance(share=0.25, of_max_logit=None)


def test_float32_is_taken_where_it_fits(baked: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(baked[0])
    n_weights = sum(values.numel() for values in load_model(baked[0]).model.state_dict().values())
    for free, chosen in ((8 * n_weights, "float32"), (8 * n_weights - 1, "bfloat16")):
        monkeypatch.setattr("skillbasis.steer.verify._free_memory", lambda free=free: free)
        assert comparison_dtype(checkpoint, "bfloat16", "auto") == chosen
    assert comparison_dtype(checkpoint, "bfloat16", "bfloat16") == "bfloat16"
