"""Our control vectors in llama.cpp itself, held against our hooks on the same weights."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from skillbasis.lm import LanguageModel
from skillbasis.steer import SteeringVector, steer
from skillbasis.steer.formats import to_gguf
from tiny import HIDDEN, N_BLOCKS, tiny_lm

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; pip builds it in ten minutes")
pytestmark = pytest.mark.slow

IDS = [1, 50, 60, 70, 80, 90, 100]
ALPHA = 0.7
OTHER_SUMS = 1e-4  # of the largest logit: float32 sums in another order; measured 1.2e-6


def convert(lm: LanguageModel, path: Path) -> Path:
    """Writes a Llama of transformers as a GGUF model in float32 without a vocabulary."""
    config, names = lm.model.config, {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {f"self_attn.{x}_proj": f"attn_{y}" for x, y in {"q": "q", "k": "k", "v": "v", "o": "output"}.items()}
    names |= {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in lm.model.state_dict().items():
        values = tensor.float().numpy()
        module = name.removesuffix(".weight").removeprefix("model.")
        if module.endswith(("q_proj", "k_proj")):  # llama.cpp turns neighbouring pairs, transformers the two halves
            halves = values.reshape(-1, 2, config.head_dim // 2, config.hidden_size)  # (heads, 2, half, hidden)
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        ends = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
        if module in ends:
            writer.add_tensor(f"{ends[module]}.weight", values)
        else:
            _, block, part = module.split(".", 2)
            writer.add_tensor(f"blk.{block}.{names[part]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class LlamaCpp:
    """A model in llama.cpp that is asked for the logits of all tokens."""

    def __init__(self, path: Path) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        assert self.model, "llama.cpp does not take the converted model"

    def logits(self, vector: Path | None = None) -> np.ndarray:
        """(tokens, vocabulary), with a control vector's file or without."""
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = 64, 1, 1
        settings.type_k, settings.type_v, settings.flash_attn_type = 0, 0, 0  # keys and values in float32
        context = llama_cpp.llama_init_from_model(self.model, settings)
        batch = llama_cpp.llama_batch_init(len(IDS), 0, 1)
        try:
            if vector is not None:
                self._steer(context, vector)
            batch.n_tokens = len(IDS)
            for i, token in enumerate(IDS):
                batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            assert llama_cpp.llama_decode(context, batch) == 0
            rows = llama_cpp.llama_get_logits(context)
            n_vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
            return np.ctypeslib.as_array(rows, (len(IDS), n_vocabulary)).copy()
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)

    def _steer(self, context: Any, path: Path) -> None:
        """What llama.cpp's own loader does with the file; the bindings have none. Row 0 is block 1."""
        buffer = np.zeros((N_BLOCKS - 1, HIDDEN), dtype=np.float32)
        for tensor in gguf.GGUFReader(path).tensors:
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and tensor.shape.tolist() == [HIDDEN]
            buffer[int(tensor.name.removeprefix("direction.")) - 1] = tensor.data
        pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        done = llama_cpp.llama_set_adapter_cvec(context, pointer, buffer.size, HIDDEN, 1, N_BLOCKS - 1)
        assert done == 0

    def close(self) -> None:
        llama_cpp.llama_model_free(self.model)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm()


@pytest.fixture(scope="module")
def engine(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    engine = LlamaCpp(convert(lm, tmp_path_factory.mktemp("llamacpp") / "model.gguf"))
    yield engine
    engine.close()


def vector_at(lm: LanguageModel, *blocks: int) -> SteeringVector:
    values = np.random.default_rng(0).standard_normal((len(blocks), HIDDEN)).astype(np.float32)
    return SteeringVector("d0+", blocks, values, "raw", lm.identity)


def by_hooks(lm: LanguageModel, vector: SteeringVector, alpha: float) -> np.ndarray:
    with torch.inference_mode(), steer(lm, vector, alpha):
        return lm.model(input_ids=torch.tensor([IDS])).logits[0].numpy()


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a fraction of the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_the_converted_model_is_the_same_model(lm: LanguageModel, engine: LlamaCpp) -> None:
    assert error(engine.logits(), by_hooks(lm, vector_at(lm, 1), 0.0)) < OTHER_SUMS


@pytest.mark.parametrize("blocks", [(1,), (2,), (1, 2)])
def test_llama_cpp_steers_as_the_hooks_do(
    lm: LanguageModel, engine: LlamaCpp, blocks: tuple[int, ...], tmp_path: Path
) -> None:
    vector = vector_at(lm, *blocks)
    record = to_gguf(vector, tmp_path / "v.gguf", alpha=ALPHA)
    assert record["dropped_blocks"] == []
    steered = engine.logits(tmp_path / "v.gguf")
    assert error(steered, by_hooks(lm, vector, ALPHA)) < OTHER_SUMS
    assert error(steered, engine.logits()) > 0.01
    if len(blocks) == 1:  # one block too early or too late would be seen
        other = replace(vector, block_ids=(3 - blocks[0],))
        assert error(steered, by_hooks(lm, other, ALPHA)) > 0.01


def test_without_block_0_it_steers_as_the_rest_of_the_vector(
    lm: LanguageModel, engine: LlamaCpp, tmp_path: Path
) -> None:
    vector = vector_at(lm, 0, 1)
    with pytest.warns(UserWarning, match="Block 0 cannot be steered"):
        to_gguf(vector, tmp_path / "v.gguf", alpha=ALPHA)
    steered = engine.logits(tmp_path / "v.gguf")
    rest = replace(vector, block_ids=(1,), values=vector.values[1:])
    assert error(steered, by_hooks(lm, rest, ALPHA)) < OTHER_SUMS
    assert error(steered, by_hooks(lm, vector, ALPHA)) > 0.01
