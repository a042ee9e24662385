"""Baked checkpoints: the same model as the hooked one, whole files, carried-over settings, refusals, kills."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import BLOCKS, make_config, random_steering, save_checkpoint
from conftest import HIDDEN, N_BLOCKS, files, kill_this_process
from skillbasis.artifact import read_json, read_manifest
from skillbasis.errors import ArtifactError, SkillbasisError, UsageError
from skillbasis.lm import load_model
from skillbasis.steer import SteeringVector, steer
from skillbasis.steer import bake as module
from skillbasis.steer.bake import bake
from skillbasis.steer.checkpoint import INDEX, SINGLE, Checkpoint

FAMILIES = ("llama", "granite", "smollm3", "nemotron", "arcee", "seed_oss", "qwen2", "qwen2_tied", "mistral")
OWN_BIAS = ("gpt_neox", "gpt2")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model", make_config("llama"))


def logits(path: Path, vector: SteeringVector | None = None, alpha: float = 0.0) -> torch.Tensor:
    """Logits of a checkpoint on tokens that no module of the package chose."""
    lm = load_model(path, dtype="float32")
    ids = torch.arange(3, 63).reshape(2, 30)
    with torch.inference_mode():
        if vector is None:
            return lm.model(ids).logits
        with steer(lm, vector, alpha):
            return lm.model(ids).logits


def greedy(path: Path, vector: SteeringVector | None = None, alpha: float = 0.0) -> list[list[int]]:
    lm = load_model(path, dtype="float32")
    ids = torch.tensor([[1, 7, 9, 30], [0, 1, 44, 45]])
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "attention_mask": (ids != 0).long()}
    if vector is None:
        return lm.model.generate(ids, **options).tolist()
    with steer(lm, vector, alpha):
        return lm.model.generate(ids, **options).tolist()


@pytest.mark.parametrize("family", [*FAMILIES, *OWN_BIAS])
def test_a_baked_checkpoint_is_the_hooked_model(tmp_path: Path, family: str) -> None:
    path = save_checkpoint(tmp_path / "model", make_config(family))
    vector = random_steering(path)
    record = bake(path, vector, 0.7, tmp_path / "out")
    plain, hooked, baked = logits(path), logits(path, vector, 0.7), logits(tmp_path / "out")
    assert (hooked - plain).abs().max() > 0.1  # else nothing is tested
    # The bias is added within the matrix product, the hook adds to the sum: a few last bits of float32.
    torch.testing.assert_close(baked, hooked, rtol=0, atol=2e-6 * float(hooked.abs().max()))
    assert greedy(tmp_path / "out") == greedy(path, vector, 0.7)
    assert record["verification"]["share"] < 1e-4
    assert record["verification"]["argmax_agreement"] == 1


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt_neox"])
def test_sharded_bfloat16_is_copied_byte_by_byte(tmp_path: Path, family: str) -> None:
    path = save_checkpoint(tmp_path / "model", make_config(family), dtype="bfloat16", shard_size="20KB")
    vector = random_steering(path)
    record = bake(path, vector, 0.7, tmp_path / "out")
    before, after = Checkpoint.open(path), Checkpoint.open(tmp_path / "out")
    assert len(before.shards) > 3
    changed = set()
    for name in before.names:
        assert (after.dtype(name), after.shape(name)) == ("bfloat16", before.shape(name))
        if not torch.equal(after.tensor(name), before.tensor(name)):
            changed.add(name)
    new = set(after.names) - set(before.names)
    assert all(after.dtype(name) == "bfloat16" for name in new)
    if family == "gpt_neox":
        assert changed == {f"gpt_neox.layers.{block}.mlp.dense_4h_to_h.bias" for block in BLOCKS}
        assert not new
        assert files(path)[INDEX] == files(tmp_path / "out")[INDEX]
    else:
        n = len(before.shards) + 1
        assert not changed
        assert [shard.name for shard in after.shards] == [
            f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)
        ]
        assert [a.read_bytes() for a in after.shards[:-1]] == [b.read_bytes() for b in before.shards]
    # Rounding alpha * v to bfloat16 is all that differs: relatively 2^-9 at most.
    assert 0 < record["verification"]["share"] < 5e-3
    assert record["dtype"] == "bfloat16"
    assert record["verification"]["dtype"] == "float32"


def test_one_file_becomes_two_and_an_index_of_all_weights(llama: Path, tmp_path: Path) -> None:
    vector = random_steering(llama)
    bake(llama, vector, 0.5, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").glob("*.safetensors*")}
    assert names == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX}
    assert (tmp_path / "out/model-00001-of-00002.safetensors").read_bytes() == (llama / SINGLE).read_bytes()
    baked = Checkpoint.open(tmp_path / "out")
    sizes = [baked.entry(name).end - baked.entry(name).begin for name in baked.names]
    assert read_json(tmp_path / "out" / INDEX)["metadata"]["total_size"] == sum(sizes)


def test_biases_are_alpha_times_the_vector_and_zeros_elsewhere(llama: Path, tmp_path: Path) -> None:
    vector = random_steering(llama)
    bake(llama, vector, 0.5, tmp_path / "out")
    baked = Checkpoint.open(tmp_path / "out")
    for block in range(N_BLOCKS):
        expected = 0.5 * vector.values[BLOCKS.index(block)] if block in BLOCKS else np.zeros(HIDDEN)
        down = baked.tensor(f"model.layers.{block}.mlp.down_proj.bias")
        np.testing.assert_allclose(down.numpy(), expected, rtol=1e-7)
        for name in ("gate_proj", "up_proj"):
            bias = baked.tensor(f"model.layers.{block}.mlp.{name}.bias")
            assert bias.shape == (64,)
            assert not bias.any()


def test_what_stands_beside_the_weights_is_carried_over(llama: Path, tmp_path: Path) -> None:
    for name in (
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "x.gguf",
        "params.json",
        ".hidden",
        "manifest.json",
    ):
        (llama / name).write_text("{}")
    (llama / "LICENSE").write_text("free")
    for folder in ("original", "additional_chat_templates"):
        (llama / folder).mkdir()
        (llama / folder / "tool.jinja").write_text("{{ tools }}")
    bake(llama, random_steering(llama), 0.5, tmp_path / "out")
    before, after = files(llama), files(tmp_path / "out")
    same = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"}
    same.add("additional_chat_templates/tool.jinja")
    assert all(after[name] == before[name] for name in same)
    made = {"config.json", "manifest.json", INDEX, "steering/bake.json", "steering/vector.safetensors"}
    assert set(after) - {name for name in after if name.startswith("model-")} == same | made
    one, two = load_model(llama), load_model(tmp_path / "out")
    assert one.model.generation_config.temperature == two.model.generation_config.temperature == 0.6
    assert one.tokenizer_fingerprint == two.tokenizer_fingerprint
    assert one.template_fingerprint == two.template_fingerprint is not None


def test_a_relabelled_checkpoint_splits_words_as_before(tmp_path: Path) -> None:
    """Transformers gives a Qwen2 the tokenizer class of Qwen2 whatever its files say, and a Llama what they say."""
    from transformers import AutoTokenizer

    path = save_checkpoint(tmp_path / "model", make_config("qwen2"))
    bake(path, random_steering(path), 0.5, tmp_path / "out")
    text = "it's  12345 times\n\n the Cafe\u0301"
    as_before = AutoTokenizer.from_pretrained(path)(text).input_ids
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text).input_ids == as_before
    config = read_json(path / "config.json") | {"model_type": "llama"}
    (path / "config.json").write_text(json.dumps(config))
    assert AutoTokenizer.from_pretrained(path)(text).input_ids != as_before  # else nothing is tested


def test_the_record_says_what_was_done(llama: Path, tmp_path: Path) -> None:
    vector = random_steering(llama)
    steps: list[str] = []
    record = bake(llama, vector, -0.5, tmp_path / "out", on_step=steps.append)
    assert steps == ["load the original", "write the checkpoint", "compare it with the hooked original"]
    assert read_json(tmp_path / "out/steering/bake.json") == record
    assert record["base"]["model"] == str(llama)
    assert record["base"]["weights_fingerprint"] == vector.model_fingerprint
    assert (record["way"], record["alpha"], record["scale"], record["dtype"]) == ("mlp_bias", -0.5, 1.0, "float32")
    assert record["vector"]["fingerprint"] == vector.fingerprint
    assert SteeringVector.load(tmp_path / "out/steering/vector.safetensors").fingerprint == vector.fingerprint
    assert read_manifest(tmp_path / "out", "checkpoint")["inputs"]["vector"] == vector.fingerprint


def test_the_same_request_is_answered_without_writing(llama: Path, tmp_path: Path) -> None:
    vector = random_steering(llama)
    first = bake(llama, vector, 0.5, tmp_path / "out")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    steps: list[str] = []
    assert bake(llama, vector, 0.5, tmp_path / "out", on_step=steps.append) == first
    assert steps == ["load the original"]
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    with pytest.raises(ArtifactError, match=r"was made otherwise \(alpha was 0.5 and is 0.6\)"):
        bake(llama, vector, 0.6, tmp_path / "out")
    assert bake(llama, vector, 0.6, tmp_path / "out", overwrite=True)["alpha"] == 0.6
    assert read_json(tmp_path / "out/steering/bake.json")["alpha"] == 0.6


def test_a_baked_checkpoint_can_be_baked_again(llama: Path, tmp_path: Path) -> None:
    vector = random_steering(llama)
    bake(llama, vector, 0.4, tmp_path / "once")
    again = random_steering(tmp_path / "once")
    assert np.array_equal(again.values, vector.values)
    assert bake(tmp_path / "once", again, 0.3, tmp_path / "twice")["way"] == "own bias"
    torch.testing.assert_close(logits(tmp_path / "twice"), logits(llama, vector, 0.7), rtol=0, atol=1e-4)


def test_two_directions_of_the_same_alpha_differ(llama: Path, tmp_path: Path) -> None:
    """A comparison that passes for any checkpoint would pass for the wrong sign too."""
    vector = random_steering(llama)
    bake(llama, vector, 0.5, tmp_path / "out")
    assert (logits(tmp_path / "out") - logits(llama, vector, -0.5)).abs().max() > 0.1


def no_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("model", "other", "adapter"))


def test_requests_that_cannot_be_met_leave_no_file(llama: Path, tmp_path: Path) -> None:
    vector = random_steering(llama)
    other = save_checkpoint(tmp_path / "other", make_config("llama"), seed=1)
    relative = replace(vector, unit="relative")
    large = replace(vector, values=np.full_like(vector.values, 2e38))  # twice that is infinite
    wide = replace(vector, model={**vector.model, "hidden_size": 64})
    cases: list[tuple[type[Exception], str, Any, SteeringVector, float, dict[str, Any]]] = [
        (UsageError, "alpha must be a finite number other than 0, not inf", llama, vector, float("inf"), {}),
        (UsageError, "alpha must be a finite number other than 0, not nan", llama, vector, float("nan"), {}),
        (UsageError, "alpha must be a finite number other than 0", llama, vector, 0.0, {}),
        (UsageError, "logits of .* are not finite; use a smaller alpha", llama, large, 1.0, {}),
        (UsageError, "is too large for float32 at block 1; use a smaller alpha", llama, vector, 1e39, {}),
        (SkillbasisError, "cannot be told from rounding in float32 .*use a larger alpha", llama, vector, 1e-7, {}),
        (UsageError, "is in the unit relative, .*--calibrate CORPUS", llama, relative, 0.5, {}),
        (ArtifactError, "was made for model .*not for", other, vector, 0.5, {}),
        (ArtifactError, r"was made for model .*\(hidden_size 64\)", llama, wide, 0.5, {}),
        (UsageError, "saved in float32; compare in that or in float32", llama, vector, 0.5, {"dtype": "bfloat16"}),
        (UsageError, "does not exist", tmp_path / "nowhere", vector, 0.5, {}),
    ]
    for kind, message, model, asked, alpha, options in cases:
        with pytest.raises(kind, match=message):
            bake(model, asked, alpha, tmp_path / "out", **options)
        assert no_files(tmp_path) == [], message


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi3", "mixtral", "mistral"])
def test_architectures_that_cannot_carry_it_leave_no_file(
    model_path: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    path = model_path(family)  # the Mistral has an active window
    with pytest.raises(UsageError, match="cannot carry a vector in the bias that ends its MLPs"):
        bake(path, random_steering(path), 0.5, tmp_path / "out")
    assert no_files(tmp_path) == []


def test_a_quantised_checkpoint_leaves_no_file(llama: Path, tmp_path: Path) -> None:
    vector = random_steering(llama)
    config = read_json(llama / "config.json") | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="is quantised"):
        bake(llama, vector, 0.5, tmp_path / "out")
    assert no_files(tmp_path) == []


def test_biases_that_no_module_reads_are_refused(tmp_path: Path) -> None:
    """A Qwen2 with `down_proj.bias` in its files loads without a word, and nothing reads them."""
    from safetensors.torch import load_file, save_file

    path = save_checkpoint(tmp_path / "model", make_config("qwen2"))
    weights = load_file(path / SINGLE)
    strays = {f"model.layers.{i}.mlp.down_proj.bias": torch.ones(HIDDEN) for i in range(N_BLOCKS)}
    save_file(weights | strays, path / SINGLE, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"does not read \(model.layers.0.mlp.down_proj.bias\)"):
        bake(path, random_steering(path), 0.5, tmp_path / "out")
    assert no_files(tmp_path) == []


def test_a_norm_behind_the_mlp_is_seen_where_the_name_promises_a_bias(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = random_steering(llama)
    monkeypatch.setattr("skillbasis.lm.LanguageModel.adds_mlp_unscaled", lambda _self: False)
    with pytest.raises(UsageError, match="does not add its MLP's output as it is"):
        bake(llama, vector, 0.5, tmp_path / "out")
    assert no_files(tmp_path) == []


def test_something_else_at_the_place_is_left_as_it_is(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="exists and is no checkpoint directory, so it is left as it is"):
        bake(llama, random_steering(llama), 0.5, tmp_path / "out")
    assert list(files(tmp_path / "out")) == ["thesis.txt"]


def test_a_checkpoint_that_is_not_the_steered_model_is_kept_to_be_looked_at(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector, real = random_steering(llama), module.new_biases

    def forgetful(*arguments: Any) -> dict[str, torch.Tensor]:
        return {name: torch.zeros_like(bias) if ".2." in name else bias for name, bias in real(*arguments).items()}

    monkeypatch.setattr(module, "new_biases", forgetful)
    with pytest.raises(
        SkillbasisError, match=r"is not the steered model: logits in float32 differ .*out\.partial"
    ) as error:
        bake(llama, vector, 0.5, tmp_path / "out")
    assert error.value.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert Checkpoint.open(tmp_path / "out.partial").names
    monkeypatch.undo()
    bake(llama, vector, 0.5, tmp_path / "out")  # the same command, mended, goes through
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("moment", ["write_checkpoint", "compare", "write_json"])
def test_killed_at_any_moment_it_is_complete_or_absent(
    llama: Path, tmp_path: Path, in_child: Callable[[Callable[[], object]], int], moment: str
) -> None:
    vector = random_steering(llama)

    def act() -> None:
        real = getattr(module, moment)

        def then_die(*arguments: Any, **options: Any) -> Any:
            if moment == "write_checkpoint":  # in the midst of it
                real(*arguments, **options)
            kill_this_process()

        setattr(module, moment, then_die)
        bake(llama, vector, 0.5, tmp_path / "out")

    assert in_child(act) == -9
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").exists()
    bake(llama, vector, 0.5, tmp_path / "out")
    bake(llama, vector, 0.5, tmp_path / "untouched")
    assert files(tmp_path / "out").keys() == files(tmp_path / "untouched").keys()
    varied = ("manifest.json", "steering/vector.safetensors")  # safetensors puts a header's entries in any order
    one, two = (
        {name: data for name, data in files(tmp_path / folder).items() if name not in varied}
        for folder in ("out", "untouched")
    )
    assert one == two
    assert not (tmp_path / "out.partial").exists()


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of the Llama that changes it visibly."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / "adapter")
    assert read_json(tmp_path / "adapter/adapter_config.json")["base_model_name_or_path"] == str(llama)
    return tmp_path / "adapter"


def test_an_adapter_is_merged_only_on_request(llama: Path, adapter: Path, tmp_path: Path) -> None:
    vector = random_steering(adapter)
    with pytest.raises(UsageError, match="is a LoRA adapter, and a checkpoint is a whole model; bake with --merge"):
        bake(adapter, vector, 0.5, tmp_path / "out")
    with pytest.raises(ArtifactError, match="was made for model"):  # the base's vector is not the merged model's
        bake(adapter, random_steering(llama), 0.5, tmp_path / "out", merge=True)
    settings = read_json(adapter / "adapter_config.json")
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(ArtifactError, match="does not name the model it belongs to"):
        bake(adapter, vector, 0.5, tmp_path / "out", merge=True)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    assert no_files(tmp_path) == []
    steps: list[str] = []
    record = bake(adapter, vector, 0.5, tmp_path / "out", merge=True, on_step=steps.append)
    assert "merge the adapter" in steps
    assert record["base"]["model"] == str(adapter)
    assert not any("merged" in name or "adapter" in name for name in files(tmp_path / "out"))
    assert (logits(adapter) - logits(llama)).abs().max() > 0.1
    torch.testing.assert_close(logits(tmp_path / "out"), logits(adapter, vector, 0.5), rtol=0, atol=1e-4)
    assert files(tmp_path / "out")["chat_template.jinja"] == files(llama)["chat_template.jinja"]
