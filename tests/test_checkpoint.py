"""Checkpoints read without loading them: files, headers, numbers, where MLPs end, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import make_config, save_checkpoint
from conftest import HIDDEN, N_BLOCKS
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.lm import load_model
from skillbasis.steer.checkpoint import INDEX, SINGLE, Checkpoint, read_header

Paths = Callable[..., Path]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    return save_checkpoint(folder / "m", make_config("qwen2"), dtype="bfloat16", shard_size="20KB")


def edit(folder: Path, target: Path, **config: Any) -> Path:
    """A copy of a checkpoint with other entries in its configuration."""
    import shutil

    shutil.copytree(folder, target)
    written = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(written | config))
    return target


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_all_numbers_are_those_of_the_loaded_model(tmp_path: Path, dtype: str, shard_size: str) -> None:
    save_checkpoint(tmp_path / "m", make_config("qwen2"), dtype=dtype, shard_size=shard_size)
    checkpoint = Checkpoint.open(tmp_path / "m")
    state = load_model(tmp_path / "m").model.state_dict()
    assert set(checkpoint.names) == set(state)
    assert (len(checkpoint.shards) > 3) == (shard_size == "20KB")
    for name, values in state.items():
        assert checkpoint.shape(name) == tuple(values.shape)
        assert checkpoint.dtype(name) == dtype
        tensor = checkpoint.tensor(name)
        assert tensor.dtype == getattr(torch, dtype)
        torch.testing.assert_close(tensor.float(), values, rtol=0, atol=0)


def test_the_entry_says_where_the_bytes_lie(sharded: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    name = "model.layers.2.self_attn.q_proj.bias"
    entry = checkpoint.entry(name)
    stored = checkpoint.files[name].read_bytes()[entry.begin : entry.end]
    assert stored == checkpoint.tensor(name).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("family", "module"),
    [
        ("llama", "model.layers.3.mlp.down_proj"),
        ("qwen2", "model.layers.3.mlp.down_proj"),
        ("phi3", "model.layers.3.mlp.down_proj"),
        ("gpt_neox", "gpt_neox.layers.3.mlp.dense_4h_to_h"),
        ("gpt2", "transformer.h.3.mlp.c_proj"),
        ("falcon", "transformer.h.3.mlp.dense_4h_to_h"),
    ],
)
def test_the_matrix_that_ends_each_mlp_is_found_by_name(model_path: Paths, family: str, module: str) -> None:
    checkpoint = Checkpoint.open(model_path(family))
    found = checkpoint.down_projections()
    assert list(found) == list(range(N_BLOCKS))
    assert found[3] == module
    assert HIDDEN in checkpoint.shape(f"{module}.weight")


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_end_in_no_single_matrix(model_path: Paths, family: str) -> None:
    with pytest.raises(UsageError, match=r"no single matrix that ends the MLP of each of its 4 blocks: saw .*; steer"):
        Checkpoint.open(model_path(family)).down_projections()


def test_the_embedded_reasoner_has_a_name_of_its_own() -> None:
    checkpoint = Checkpoint.open("embedded")
    assert checkpoint.name == "embedded"
    assert checkpoint.config["model_type"] == "llama"
    assert len(checkpoint.down_projections()) == checkpoint.n_blocks == checkpoint.config["num_hidden_layers"]


def test_refusals_name_the_next_step(model_path: Paths, tmp_path: Path) -> None:
    llama = model_path("llama")
    cases = {
        "is quantised, .* give the checkpoint it was quantised from": edit(
            llama, tmp_path / "quantised", quantization_config={"quant_method": "gptq", "bits": 4}
        ),
        "code of its own": edit(llama, tmp_path / "remote", auto_map={"AutoModelForCausalLM": "modeling_x.X"}),
        "gives no number of decoder blocks": edit(llama, tmp_path / "blocks", num_hidden_layers=None),
    }
    pickled = edit(llama, tmp_path / "pickled")
    (pickled / SINGLE).rename(pickled / "pytorch_model.bin")
    cases[r"no weights in safetensors \(.*, only .bin\); save it once more"] = pickled
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "embedded"}')
    cases["is a LoRA adapter, not a whole model; bake with --merge"] = adapter
    (tmp_path / "empty").mkdir()
    cases["has no config.json"] = tmp_path / "empty"
    cases["does not exist; give a local directory"] = tmp_path / "nowhere"
    for message, path in cases.items():
        with pytest.raises(UsageError, match=message):
            Checkpoint.open(path).n_blocks  # noqa: B018
    with pytest.raises(UsageError, match=r"model 'nobody/nothing' cannot be found: .*; give a model directory"):
        Checkpoint.open("nobody/nothing")
    with pytest.raises(UsageError, match=r"has no weight lm_head\.bias"):
        Checkpoint.open(llama).entry("lm_head.bias")


@pytest.mark.parametrize("kept", [0, 5, 2000, -1])
def test_a_file_that_is_cut_short_is_damaged(model_path: Paths, tmp_path: Path, kept: int) -> None:
    copy = edit(model_path("llama"), tmp_path / "cut")
    content = (copy / SINGLE).read_bytes()
    (copy / SINGLE).write_bytes(content[:kept])
    with pytest.raises(ArtifactError, match=r"model\.safetensors is damaged .*get it anew"):
        Checkpoint.open(copy)


def test_bytes_that_are_no_header_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (
        b"not safetensors at all",
        (5).to_bytes(8, "little") + b"[1,2]",
        (2).to_bytes(8, "little") + b"{}x",
    ):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="is damaged"):
            read_header(path)


def test_an_index_is_held_against_its_files(sharded: Path, tmp_path: Path) -> None:
    def with_index(name: str, change: Callable[[dict[str, Any]], None]) -> Path:
        copy = edit(sharded, tmp_path / name)
        index = json.loads((copy / INDEX).read_text())
        change(index)
        (copy / INDEX).write_text(json.dumps(index))
        return copy

    first = "model-00001-of-"
    missing = edit(sharded, tmp_path / "missing")
    next(missing.glob(f"{first}*")).unlink()
    with pytest.raises(ArtifactError, match=f"{first}.* is missing from the checkpoint"):
        Checkpoint.open(missing)
    extra = with_index(
        "extra", lambda index: index["weight_map"].update(ghost=next(iter(index["weight_map"].values())))
    )
    with pytest.raises(ArtifactError, match="lacks the weight ghost that the index says is there"):
        Checkpoint.open(extra).shape("ghost")
    outside = with_index("outside", lambda index: index["weight_map"].update(ghost="../other.safetensors"))
    with pytest.raises(ArtifactError, match=r"names the file '\.\./other\.safetensors'"):
        Checkpoint.open(outside)
    with pytest.raises(ArtifactError, match="has no weight_map"):
        Checkpoint.open(with_index("bare", dict.clear))


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    """A file of which all but the header is a hole on the disk: opening touches none of its 8 GiB."""
    header = {
        "model.layers.0.mlp.down_proj.weight": {
            "dtype": "F16",
            "shape": [1 << 16, 1 << 16],
            "data_offsets": [0, 1 << 33],
        }
    }
    text = json.dumps(header).encode()
    with (tmp_path / SINGLE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (1 << 33))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.down_projections() == {0: "model.layers.0.mlp.down_proj"}
    assert checkpoint.shape("model.layers.0.mlp.down_proj.weight") == (1 << 16, 1 << 16)
    assert (tmp_path / SINGLE).stat().st_blocks * 512 < 1 << 20
