"""Loading models of every family, finding their blocks, telling weights and tokenizers apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import CONTEXT, FAMILIES, HIDDEN, N_BLOCKS, VOCABULARY, make_config, make_model, make_tokenizer
from skillbasis.errors import UsageError
from skillbasis.lm import LanguageModel, find_blocks, load_model, parse_layers, resolve, weights_fingerprint, wrap

Loaded = Callable[..., LanguageModel]
FINAL_NORM = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}  # of the decoder; `norm` in the others


@pytest.fixture
def copy(model_path: Callable[..., Path], tmp_path: Path) -> Path:
    """A saved tiny Llama that a test may damage."""
    shutil.copytree(model_path("llama"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("family", FAMILIES)
def test_hook_i_sees_hidden_state_i_plus_one_and_the_last_one_enters_the_final_norm(
    family: str, loaded: Loaded
) -> None:
    import torch

    lm = loaded(family)
    assert (len(lm.blocks), lm.hidden_size, lm.context_length, lm.model_type) == (N_BLOCKS, HIDDEN, CONTEXT, family)
    seen: dict[Any, Any] = {}
    norm = getattr(lm.decoder, FINAL_NORM.get(family, "norm"))
    handles = [norm.register_forward_pre_hook(lambda _m, args: seen.__setitem__("norm", args[0]))]
    for i, block in enumerate(lm.blocks):
        handles.append(
            block.register_forward_hook(
                lambda _m, _a, out, i=i: seen.__setitem__(i, out[0] if isinstance(out, tuple) else out)
            )
        )
    ids = torch.randint(5, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        states = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    for i in range(N_BLOCKS - 1):
        assert torch.equal(seen[i], states[i + 1])
        assert not torch.allclose(seen[i], states[i], atol=1e-3)
    assert torch.equal(seen[N_BLOCKS - 1], seen["norm"])
    assert not torch.allclose(seen["norm"], states[N_BLOCKS], atol=1e-3)


def test_blocks_of_a_model_with_images_are_those_of_its_text_decoder() -> None:
    import transformers as hf

    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = layers | {"vocab_size": VOCABULARY, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    config = hf.Gemma3Config(text_config=text, vision_config=layers | {"image_size": 32, "patch_size": 8})
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    lm = wrap(model, make_tokenizer(), "with images")
    assert lm.blocks == list(model.model.language_model.layers)


class _Stack:
    """Stands for a model with the given module lists."""

    def __init__(self, n_blocks: int, **lists: int) -> None:
        from torch import nn

        self.config = SimpleNamespace(
            model_type="odd", get_text_config=lambda: SimpleNamespace(num_hidden_layers=n_blocks)
        )
        self.root = nn.Module()
        for name, length in lists.items():
            setattr(self.root, name, nn.ModuleList(nn.ModuleList([nn.Identity()] * 3) for _ in range(length)))

    def get_decoder(self) -> Any:
        return self.root


def test_blocks_are_the_one_outer_list_of_the_right_length() -> None:
    stack = _Stack(3, layers=3, other=2)  # each block holds a list of three modules, too
    assert find_blocks(stack) == list(stack.root.layers)
    with pytest.raises(UsageError, match=r"'odd' were not found: looked for one module list of 5 entr.*layers \(4\)"):
        find_blocks(_Stack(5, layers=4))
    with pytest.raises(UsageError, match=r"saw a \(2\).*b \(2\)"):
        find_blocks(_Stack(2, a=2, b=2))
    with pytest.raises(UsageError, match="saw none"):
        find_blocks(_Stack(2))


def test_blocks_that_are_not_the_hidden_states_are_refused() -> None:
    model = make_model("llama")

    def one_late(_module: Any, _args: Any, output: Any) -> Any:
        output.hidden_states = (output.hidden_states[0], *output.hidden_states[:-1])
        return output

    model.model.register_forward_hook(one_late)
    with pytest.raises(UsageError, match=r"output of decoder block 0 is not hidden_states\[1\].*cannot be read safely"):
        wrap(model, make_tokenizer(), "late")


def test_a_block_that_never_runs_is_refused() -> None:
    from transformers import AutoModelForCausalLM

    config = make_config("llama")
    config.num_hidden_layers = 1
    model = AutoModelForCausalLM.from_config(config).eval()
    run = model.model.forward
    layers = model.model.layers

    def without_the_last(*args: Any, **kwargs: Any) -> Any:
        model.model.layers = layers[:-1]
        try:
            return run(*args, **kwargs)
        finally:
            model.model.layers = layers

    model.model.forward = without_the_last
    with pytest.raises(UsageError, match="output of decoder block 0 is not"):
        wrap(model, make_tokenizer(), "short")


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
    ],
)
def test_layers(layers: str, n_blocks: int, expected: list[int]) -> None:
    assert parse_layers(layers, n_blocks) == expected


@pytest.mark.parametrize("layers", ["", "outer", "1,", "-1", "1-", "1--2", "5-2", "1.5", "1 2", "²"])
def test_layers_that_mean_nothing(layers: str) -> None:
    with pytest.raises(UsageError, match="is neither 'inner', 'all' nor a list of block ids"):
        parse_layers(layers, 12)


@pytest.mark.parametrize("layers", ["12", "3,12", "10-12", "0-99999999999999"])
def test_layers_the_model_does_not_have(layers: str) -> None:
    with pytest.raises(UsageError, match="but the model has blocks 0 to 11"):
        parse_layers(layers, 12)


def test_every_family_has_its_configuration() -> None:
    assert [make_config(family).model_type for family in FAMILIES] == list(FAMILIES)
