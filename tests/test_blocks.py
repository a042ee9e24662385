"""Structure seen in a short pass: blocks, MLPs and padding of every family; what is not understood is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import CONTEXT, FAMILIES, HIDDEN, N_BLOCKS, VOCABULARY, make_config, make_model, make_tokenizer
from skillbasis.blocks import block_output, find_blocks
from skillbasis.errors import UsageError
from skillbasis.lm import LanguageModel, wrap

Loaded = Callable[..., LanguageModel]
MODEL_TYPE = {"gemma3": "gemma3_text", "falcon_alibi": "falcon", "falcon_new": "falcon"}  # the family's name in others
FINAL_NORM = {  # of the decoder; `norm` in the others
    "gpt2": "ln_f",
    "gpt_neox": "final_layer_norm",
    **dict.fromkeys(("falcon", "falcon_alibi", "falcon_new"), "ln_f"),
}
NORM_BEHIND_THE_MLP = ("gemma2", "gemma3", "olmo2")
SHAPE = {"hidden_size": HIDDEN, "num_hidden_layers": N_BLOCKS, "num_attention_heads": 4, "vocab_size": VOCABULARY}


def built(config: Any) -> Any:
    """A random model of a configuration, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def n_hooks(model: Any) -> int:
    """Hooks on a model beside those that transformers itself keeps for reading hidden states."""
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    return sum("transformers" not in hook.__module__ for hook in hooks)


# The blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_hook_i_sees_hidden_state_i_plus_one_and_the_last_one_enters_the_final_norm(
    family: str, loaded: Loaded
) -> None:
    import torch

    lm = loaded(family)
    assert (len(lm.blocks), lm.hidden_size, lm.context_length, lm.model_type) == (
        *(N_BLOCKS, HIDDEN, CONTEXT),
        MODEL_TYPE.get(family, family),
    )
    assert n_hooks(lm.model) == 0
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
    with pytest.raises(
        UsageError, match=r"block 0 is not hidden_states\[1\], as was looked for, but hidden_states\[2\]"
    ):
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
    with pytest.raises(UsageError, match="for 2 hidden_states of its 1 decoder blocks, saw 0"):
        wrap(model, make_tokenizer(), "short")


def changed(i: int | None = None, *, name: str = "", before: Any = None, after: Any = None) -> Any:
    """A tiny Llama whose block i, or named part of the decoder, has its input or its output changed."""
    model = make_model("llama")
    module = getattr(model.model, name) if i is None else model.model.layers[i]
    if before is not None:
        module.register_forward_pre_hook(lambda _module, args: (before(args[0]), *args[1:]))
    if after is not None:
        module.register_forward_hook(lambda _module, _args, output: after(output))
    return model


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (lambda: changed(2, before=lambda x: x + 1), "block 2 being given the output of block 1, saw other input"),
        (lambda: changed(1, after=lambda x: [x]), "a forward pass over 16 tokens, saw AttributeError: 'list' object"),
        (
            lambda: changed(name="norm", before=lambda x: x + 1),
            r"block 3 is not hidden_states\[4\], nor what a final norm.*saw embed_tokens, norm, rotary_emb run",
        ),
        (
            lambda: changed(3, after=lambda x: x + x.mean(dim=1, keepdim=True)),
            "what follows a token does not change, at least where the attention mask leaves it out, saw them change",
        ),
        (lambda: changed(0, before=lambda x: x[..., 1:]), "a forward pass over 16 tokens, saw RuntimeError: "),
    ],
)
def test_what_is_not_understood_is_refused(damaged: Callable[[], Any], message: str) -> None:
    model = damaged()
    before = n_hooks(model)
    with pytest.raises(UsageError, match=f"model type 'llama' is not understood: .*{message}.*cannot be read safely"):
        wrap(model, make_tokenizer(), "damaged")
    assert n_hooks(model) == before


def test_a_block_with_several_streams_is_refused() -> None:
    import transformers as hf

    config = hf.Gemma3nTextConfig(
        **SHAPE,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=[48] * N_BLOCKS,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=None,
    )
    with pytest.raises(UsageError, match=r"shape \(2, 8, 32\) of decoder block 0, saw \(4, 2, 8, 32\)"):
        wrap(built(config), make_tokenizer(), "streams")


def test_a_block_that_returns_no_tensor_is_refused() -> None:
    import transformers as hf

    config = hf.OpenAIGPTConfig(n_embd=HIDDEN, n_layer=N_BLOCKS, n_head=4, vocab_size=VOCABULARY)
    with pytest.raises(UsageError, match=r"shape \(2, 8, 32\) of decoder block 0, saw a list"):
        wrap(built(config), make_tokenizer(), "list")


def test_a_model_without_a_final_norm_is_read() -> None:
    from torch import nn

    model = make_model("llama")
    model.model.norm = nn.Identity()
    assert len(wrap(model, make_tokenizer(), "bare").blocks) == N_BLOCKS


def test_broken_weights_do_not_look_like_another_structure() -> None:
    import torch

    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] = float("nan")
    lm = wrap(model, make_tokenizer(), "broken")
    assert lm.causal
    assert lm.mlp_outputs == [block.mlp for block in lm.blocks]


# The MLPs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_vector_added_to_the_mlp_is_added_to_the_block_where_no_norm_follows(family: str, dtype: str) -> None:
    import torch

    lm = wrap(make_model(family).to(getattr(torch, dtype)), make_tokenizer(), family)
    assert lm.mlp_outputs == [block.mlp for block in lm.blocks]  # every one of these families calls it so
    unscaled = family not in NORM_BEHIND_THE_MLP
    assert lm.adds_mlp_unscaled() is unscaled
    assert n_hooks(lm.model) == 0
    if dtype == "bfloat16":
        return
    vector = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(2))
    ids = torch.randint(5, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    lm.blocks[2].register_forward_hook(lambda _module, _args, output: seen.append(block_output(output)))
    with torch.inference_mode():
        lm.decoder(input_ids=ids)
        lm.mlp_outputs[2].register_forward_hook(lambda _module, _args, output: output + vector)
        lm.decoder(input_ids=ids)
    error = (seen[1] - seen[0] - vector).abs().max()
    assert (error < 1e-5) if unscaled else (error > 0.1)  # float32 sums; the vector's own numbers are about 1


@pytest.mark.parametrize(
    ("name", "settings", "mlp", "unscaled"),
    [
        ("XGLMConfig", {"d_model": HIDDEN, "ffn_dim": 48, "num_layers": N_BLOCKS, "attention_heads": 4}, "fc2", True),
        (
            "GraniteConfig",
            {"intermediate_size": 48, "num_key_value_heads": 2, "residual_multiplier": 0.5},
            "mlp",
            False,
        ),
        (
            "GraniteMoeConfig",
            {"intermediate_size": 48, "num_key_value_heads": 2, "num_local_experts": 4},
            "block_sparse_moe",
            True,
        ),
        (
            "JambaConfig",
            {
                "intermediate_size": 48,
                "num_key_value_heads": 2,
                "mamba_d_state": 8,
                "num_experts": 4,
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
            },
            "feed_forward",
            True,
        ),
    ],
)
def test_an_mlp_is_found_whatever_its_name_and_its_scale_is_measured(
    name: str, settings: dict[str, Any], mlp: str, unscaled: bool
) -> None:
    import transformers as hf

    shape = {"vocab_size": VOCABULARY} if "d_model" in settings else SHAPE
    lm = wrap(built(getattr(hf, name)(**shape, **settings, pad_token_id=0)), make_tokenizer(), name)
    assert lm.mlp_outputs == [getattr(block, mlp) for block in lm.blocks]
    assert lm.adds_mlp_unscaled() is unscaled


def test_one_scaled_block_is_enough_to_say_no() -> None:
    model = make_model("llama")
    assert wrap(model, make_tokenizer(), "same").adds_mlp_unscaled()
    block = model.model.layers[3]
    block.register_forward_hook(lambda _module, args, output: args[0] + 0.99 * (output - args[0]))
    assert not wrap(model, make_tokenizer(), "scaled").adds_mlp_unscaled()


def test_an_mlp_that_adds_the_residual_itself_is_not_taken_and_the_model_is_still_read() -> None:
    import transformers as hf

    config = hf.BloomConfig(hidden_size=HIDDEN, n_layer=N_BLOCKS, n_head=4, vocab_size=VOCABULARY)
    lm = wrap(built(config), make_tokenizer(), "bloom")
    assert (len(lm.blocks), lm.mlps, lm.causal) == (N_BLOCKS, None, True)
    expected = "'bloom' were not found: .*owns matrices, is given one tensor and nothing else.*saw none in block 0"
    for ask in (lambda: lm.mlp_outputs, lm.adds_mlp_unscaled):
        with pytest.raises(UsageError, match=expected):
            ask()


def test_two_modules_that_may_be_the_mlp_are_both_named() -> None:
    from torch import nn

    model = make_model("gpt_neox")
    block = model.gpt_neox.layers[1]
    block.again = nn.Linear(HIDDEN, HIDDEN)
    block.input_layernorm.register_forward_hook(lambda _module, _args, output: block.again(output))
    lm = wrap(model, make_tokenizer(), "two")
    assert (lm.mlps, lm.mlp_candidates) == (None, "mlp, again in block 1")


# Padding


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_needs_no_mask_in_any_family(family: str, loaded: Loaded) -> None:
    import torch

    lm = loaded(family)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert lm.causal
    assert lm.right_padding(mask) == {}


def test_a_model_that_looks_ahead_is_given_the_mask() -> None:
    import torch

    config = make_config("llama")
    config.is_causal = False
    lm = wrap(built(config), make_tokenizer(), "looks ahead")
    assert not lm.causal
    row = torch.tensor([[1, 50, 60, 70, 80]])
    padded = torch.cat([row, torch.full((1, 3), 9)], dim=1)
    mask = (torch.arange(8) < 5).long()[None]
    assert lm.right_padding(mask[:, :5]) == {}
    with torch.inference_mode():
        alone, unmasked = (lm.decoder(input_ids=ids)[0][:, :5] for ids in (row, padded))
        masked = lm.decoder(input_ids=padded, **lm.right_padding(mask))[0][:, :5]
    torch.testing.assert_close(masked, alone, rtol=1e-5, atol=1e-5)
    assert (unmasked - alone).abs().max() > 0.1


def test_long_rows_that_would_change_the_short_ones_beside_them_are_known(loaded: Loaded) -> None:
    import torch
    from transformers import Phi3Config

    short, long = [1.0] * 4, [4.0] * 4
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long, "factor": 8.0}
    settings = make_config("phi3").to_dict() | {"original_max_position_embeddings": 32}
    lm = wrap(built(Phi3Config(**settings | {"rope_parameters": rope})), make_tokenizer(), "long")
    assert lm.length_switch == 32
    assert loaded("phi3").length_switch is loaded("gemma3").length_switch is loaded("gpt2").length_switch is None
    ids = torch.randint(5, VOCABULARY, (2, 33), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        alone = lm.decoder(input_ids=ids[:1, :20])[0]
        at_most = lm.decoder(input_ids=ids[:, :32])[0][:1, :20]
        beyond = lm.decoder(input_ids=ids)[0][:1, :20]
    torch.testing.assert_close(at_most, alone, rtol=1e-5, atol=1e-5)
    assert (beyond - alone).abs().max() > 0.1
