"""How a checkpoint can carry a vector: which way is taken, what its configuration becomes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import LLAMA3, YARN, make_config, save_checkpoint
from conftest import CONTEXT, HIDDEN, N_BLOCKS
from skillbasis.errors import UsageError
from skillbasis.steer.checkpoint import Checkpoint
from skillbasis.steer.ways import choose_way


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """The checkpoint of a family, saved once."""
    folder = tmp_path_factory.mktemp("saved")

    def get(family: str) -> Checkpoint:
        if not (folder / family).exists():
            save_checkpoint(folder / family, make_config(family))
        return Checkpoint.open(folder / family)

    return get


def rope_of(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the installed transformers makes of a written configuration."""
    from transformers import AutoConfig

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return dict(AutoConfig.from_pretrained(folder).rope_parameters)


@pytest.mark.parametrize(
    ("family", "way"),
    [
        *((family, "mlp_bias") for family in ("llama", "granite", "smollm3", "nemotron", "arcee", "cwm", "seed_oss")),
        *((family, "as llama") for family in ("qwen2", "qwen2_tied", "mistral")),
        *((family, "own bias") for family in ("gpt_neox", "gpt2")),
    ],
)
def test_the_way_of_every_architecture(saved: Callable[[str], Checkpoint], family: str, way: str) -> None:
    assert choose_way(saved(family)).name == way


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "nemotron"])
def test_every_further_bias_is_named_with_its_length(saved: Callable[[str], Checkpoint], family: str) -> None:
    zeros = choose_way(saved(family)).zeros
    gates = () if family == "nemotron" else ("gate_proj",)
    expected = {f"model.layers.{i}.mlp.{name}.bias": 64 for i in range(N_BLOCKS) for name in (*gates, "up_proj")}
    if family == "qwen2":
        expected |= {f"model.layers.{i}.self_attn.o_proj.bias": HIDDEN for i in range(N_BLOCKS)}
    assert zeros == expected


def test_only_granite_scales_what_its_mlps_say(saved: Callable[[str], Checkpoint]) -> None:
    assert choose_way(saved("granite")).scale == pytest.approx(1 / 0.22)
    assert choose_way(saved("llama")).scale == 1


def test_a_configuration_is_kept_but_for_the_bias_and_the_older_names_of_rope(
    saved: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    before = dict(saved("llama").config)
    assert "rope_theta" not in before  # else nothing is tested
    after = dict(choose_way(saved("llama")).config)
    assert after == before | {"mlp_bias": True, "rope_theta": 500_000.0, "rope_scaling": LLAMA3}
    assert rope_of(after, tmp_path) == rope_of(before, tmp_path) == LLAMA3


def test_what_readers_before_transformers_5_wrote_is_left_alone(saved: Callable[[str], Checkpoint]) -> None:
    source = saved("llama")
    older = {key: value for key, value in source.config.items() if key != "rope_parameters"}
    older |= {"rope_theta": 123.0, "rope_scaling": None}
    way = choose_way(Checkpoint(source.name, source.path, older, source.files))
    assert dict(way.config) == older | {"mlp_bias": True}


def test_gpt_neox_has_older_names_of_its_own(saved: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    before = dict(saved("gpt_neox").config)
    after = dict(choose_way(saved("gpt_neox")).config)
    assert (after["rotary_emb_base"], after["rotary_pct"]) == (5000.0, 0.5)
    assert rope_of(after, tmp_path) == rope_of(before, tmp_path)


@pytest.mark.parametrize(("family", "rope"), [("qwen2", YARN), ("qwen2_tied", None), ("mistral", None)])
def test_a_relabelled_configuration_says_everything(
    saved: Callable[[str], Checkpoint], tmp_path: Path, family: str, rope: dict[str, Any] | None
) -> None:
    source = saved(family)
    config = dict(choose_way(source).config)
    rope = rope or {"rope_type": "default", "rope_theta": 1e6}
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["mlp_bias"] is True
    assert config["attention_bias"] is (family != "mistral")
    assert config["head_dim"] == (16 if family == "mistral" else 8)
    assert config["tie_word_embeddings"] is (family == "qwen2_tied")
    assert config["max_position_embeddings"] == CONTEXT
    assert config["rms_norm_eps"] == (1e-3 if family == "qwen2" else 1e-6)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)
    assert config["rope_theta"] == rope["rope_theta"]
    assert config["rope_scaling"] == (YARN if family == "qwen2" else None)
    assert config["dtype"] == "float32"
    assert not any("window" in key or key == "layer_types" for key in config)
    assert rope_of(config, tmp_path) == rope


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3", "olmo2", "phi3", "mixtral", "qwen3_moe", "falcon"])
def test_others_are_refused_with_what_does_work(model_path: Callable[..., Path], family: str) -> None:
    with pytest.raises(UsageError, match=r"with hooks .*skillbasis steer gguf.* in vLLM with the plugin"):
        choose_way(Checkpoint.open(model_path(family)))


@pytest.mark.parametrize(
    ("family", "window", "refused"),
    [
        ("mistral", {"sliding_window": 8}, True),
        ("mistral", {"sliding_window": CONTEXT}, False),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, True),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": N_BLOCKS}, False),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, False),
        ("qwen2", {"use_sliding_window": True, "sliding_window": CONTEXT, "max_window_layers": 0}, False),
    ],
)
def test_a_window_is_refused_only_where_it_cuts_something_off(
    saved: Callable[[str], Checkpoint], tmp_path: Path, family: str, window: dict[str, Any], refused: bool
) -> None:
    source = saved(family)
    config = {key: value for key, value in source.config.items() if key != "layer_types"} | window
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(source.name, tmp_path, config, source.files)
    if refused:
        with pytest.raises(UsageError, match="a window of 8 of 256 tokens, which is lost where it runs as a Llama"):
            choose_way(checkpoint)
    else:
        assert choose_way(checkpoint).name == "as llama"


def test_biases_that_are_there_but_not_read_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", make_config("llama"))
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.mlp.up_proj.bias": torch.ones(64)}, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"biases that its architecture does not read \(model.layers.0.mlp.up_proj"):
        choose_way(Checkpoint.open(folder))


def test_mlps_in_other_numbers_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", make_config("qwen2"))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    for dtype, told in ((torch.float8_e4m3fn, "F8_E4M3, float32"), (torch.bfloat16, "bfloat16, float32")):
        save_file(weights | {name: weights[name].to(dtype)}, folder / "model.safetensors")
        with pytest.raises(UsageError, match=f"are saved in {told}"):
            choose_way(Checkpoint.open(folder))
