"""Formats of steering vectors, each read back by the library it is for, and its steering held against our hooks."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from skillbasis.errors import ArtifactError, UsageError
from skillbasis.lm import LanguageModel
from skillbasis.steer import SteeringVector, steer
from skillbasis.steer.formats import (
    from_gguf,
    from_steering_vectors,
    to_easysteer,
    to_gguf,
    to_steering_vectors,
)
from tiny import HIDDEN, N_BLOCKS, tiny_lm

PEERS = Path(__file__).resolve().parents[1] / "build" / "peers"
ALPHA = 0.7
IDS = torch.tensor([[1, 50, 60, 70, 80, 90]])


@pytest.fixture
def lm() -> LanguageModel:
    """Anew for every test: repeng rebuilds the model it is given."""
    return tiny_lm()


@pytest.fixture
def vector(lm: LanguageModel) -> SteeringVector:
    values = np.random.default_rng(0).standard_normal((2, HIDDEN)).astype(np.float32)
    return SteeringVector("d0+", (1, 2), values, "raw", lm.identity, {"kind": "planted"})


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a library from build/peers, where the benchmarks put it; skips where it is not."""

    def load(name: str) -> ModuleType:
        monkeypatch.setattr(sys, "path", [*sys.path, str(PEERS)])
        monkeypatch.setattr(np, "float_", np.float64, raising=False)  # which repeng needs and NumPy 2 dropped
        return pytest.importorskip(name, reason=f"{name} is neither installed nor in build/peers")

    return load


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def hooked(lm: LanguageModel, vector: SteeringVector, alpha: float) -> torch.Tensor:
    with steer(lm, vector, alpha):
        return logits(lm.model)


def directions(vector: SteeringVector) -> dict[int, np.ndarray]:
    return dict(zip(vector.block_ids, vector.values * np.float32(ALPHA), strict=True))


def write_foreign(path: Path, tensors: dict[str, np.ndarray], arch: str = "controlvector", hint: str = "llama") -> Path:
    """A control vector as another tool would write it."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string("controlvector.model_hint", hint)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# GGUF


def test_a_control_vector_has_the_keys_and_tensors_llama_cpp_looks_for(vector: SteeringVector, tmp_path: Path) -> None:
    record = to_gguf(vector, tmp_path / "v.gguf", alpha=ALPHA)
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    keys = {name: reader.get_field(name).contents() for name in reader.fields if not name.startswith("GGUF.")}  # type: ignore[union-attr]
    assert keys.pop("skillbasis.vector").startswith('{"name": "d0+"')
    assert keys == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 2,
    }
    assert [(t.name, t.tensor_type.name, t.shape.tolist()) for t in reader.tensors] == [
        ("direction.1", "F32", [HIDDEN]),
        ("direction.2", "F32", [HIDDEN]),
    ]
    for tensor, values in zip(reader.tensors, directions(vector).values(), strict=True):
        np.testing.assert_array_equal(tensor.data, values)
    assert (record["alpha"], record["scale"], record["blocks"], record["scope"]) == (ALPHA, 1.0, [1, 2], "all")
    assert record["dropped_blocks"] == [] and record["warnings"] == []
    json.dumps(record)
    assert [path.name for path in tmp_path.iterdir()] == ["v.gguf"]


def test_a_control_vector_comes_back_and_steers_the_same(
    lm: LanguageModel, vector: SteeringVector, tmp_path: Path
) -> None:
    to_gguf(replace(vector, unit="std"), tmp_path / "v.gguf", alpha=ALPHA)
    for model in (lm, vector.model):
        back = from_gguf(tmp_path / "v.gguf", model)
        assert (back.name, back.block_ids, back.unit, back.model_fingerprint) == (
            ("d0+", (1, 2), "raw", lm.weights_fingerprint)
        )
        np.testing.assert_array_equal(back.values, vector.values * np.float32(ALPHA))
    assert back.origin["written_from"] == {
        "name": "d0+",
        "unit": "std",
        "alpha": ALPHA,
        "origin": {"kind": "planted"},
    }
    steered = hooked(lm, back, 1.0)
    assert torch.equal(steered, hooked(lm, vector, ALPHA))
    assert (steered - logits(lm.model)).abs().max() > 0.1
    assert from_gguf(tmp_path / "v.gguf", lm, name="other").name == "other"


def test_block_0_is_left_out_with_a_warning(lm: LanguageModel, vector: SteeringVector, tmp_path: Path) -> None:
    values = np.zeros((2, HIDDEN), dtype=np.float32)
    values[0, 0], values[1, 0] = 1.0, 3.0
    from_0 = replace(vector, block_ids=(0, 2), values=values)
    with pytest.warns(UserWarning, match=r"Block 0 cannot be steered.*10\.0% of the squared norm of d0\+"):
        record = to_gguf(from_0, tmp_path / "v.gguf", alpha=-2.0)
    assert record["blocks"] == [2] and record["dropped_blocks"] == [0] and len(record["warnings"]) == 1
    assert record["dropped_squared_norm_fraction"] == pytest.approx(0.1)
    assert from_gguf(tmp_path / "v.gguf", lm).block_ids == (2,)


@pytest.mark.parametrize("blocks", [(0,), (0, 1)])
def test_what_acts_at_block_0_only_is_refused(vector: SteeringVector, blocks: tuple[int, ...], tmp_path: Path) -> None:
    values = np.zeros((len(blocks), HIDDEN), dtype=np.float32)
    values[0, 0] = 1.0
    with pytest.raises(UsageError, match="acts at block 0 only.*later blocks, or bake"):
        to_gguf(replace(vector, block_ids=blocks, values=values), tmp_path / "v.gguf")
    assert not any(tmp_path.iterdir())


def test_vectors_that_no_format_can_carry(vector: SteeringVector, tmp_path: Path) -> None:
    writers: list[Any] = [
        lambda v, alpha: to_gguf(v, tmp_path / "v.gguf", alpha=alpha),
        lambda v, alpha: to_easysteer(v, tmp_path / "easy", alpha=alpha),
        to_steering_vectors,
    ]
    for write in writers:
        with pytest.raises(UsageError, match="unit relative.*calibrate it first"):
            write(replace(vector, unit="relative"), 1.0)
        with pytest.raises(UsageError, match="finite number, not nan"):
            write(vector, float("nan"))
        with pytest.raises(UsageError, match=r"d0\+ at alpha 0.0 adds nothing"):
            write(vector, 0.0)
    with pytest.raises(UsageError, match=r"v\.bin is no \.gguf file"):
        to_gguf(vector, tmp_path / "v.bin")
    with pytest.raises(UsageError, match=r"unknown scope 'al' \(did you mean 'all'\?\)"):
        to_easysteer(vector, tmp_path / "easy", scope="al")
    assert not any(tmp_path.iterdir())


def test_a_calibrated_vector_can_be_written(lm: LanguageModel, vector: SteeringVector, tmp_path: Path) -> None:
    constant = replace(vector, unit="relative").calibrated({1: 2.0, 2: 5.0})
    to_gguf(constant, tmp_path / "v.gguf")
    expected = vector.values * np.array([[2.0], [5.0]], dtype=np.float32)
    np.testing.assert_array_equal(from_gguf(tmp_path / "v.gguf", lm).values, expected)


def test_without_the_packages_the_extras_are_named(
    vector: SteeringVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "steering_vectors", None)
    with pytest.raises(UsageError, match=r"pip install 'skillbasis\[gguf\]'"):
        to_gguf(vector, tmp_path / "v.gguf")
    with pytest.raises(UsageError, match=r"pip install 'skillbasis\[gguf\]'"):
        from_gguf(tmp_path / "v.gguf", vector.model)
    with pytest.raises(UsageError, match="pip install steering-vectors"):
        to_steering_vectors(vector)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"direction.0": np.ones(HIDDEN)}, r"direction\.0, which llama\.cpp refuses.*0-based block N.*1 or more"),
        ({f"direction.{N_BLOCKS}": np.ones(HIDDEN)}, r"direction\.3.*blocks 0 to 2.*or counts from 1"),
        ({"direction.last": np.ones(HIDDEN)}, r"direction\.last, which names no block"),
        ({"direction.01": np.ones(HIDDEN)}, r"direction\.01, which names no block"),
        ({"direction.1": np.ones(HIDDEN + 1)}, r"shape \(33,\) for block 1, but the hidden size of 'tiny' is 32"),
        ({"direction.1": np.ones((2, HIDDEN))}, r"shape \(2, 32\) for block 1"),
        ({"direction.1": np.full(HIDDEN, np.nan)}, "NaN or infinite at block 1"),
        ({"direction.1": np.ones(HIDDEN, dtype=np.int8)}, "int8 vector"),
        ({"blk.1.weight": np.ones(HIDDEN)}, "holds no direction"),
    ],
)
def test_files_that_are_no_control_vector_of_this_model(
    lm: LanguageModel, tensors: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    values = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in tensors.items()}
    with pytest.raises(ArtifactError, match=message):
        from_gguf(write_foreign(tmp_path / "v.gguf", values), lm)


def test_models_and_damage_are_told(lm: LanguageModel, vector: SteeringVector, tmp_path: Path) -> None:
    one = {"direction.1": np.ones(HIDDEN, dtype=np.float32)}
    with pytest.raises(ArtifactError, match="holds a 'llama', not a control vector"):
        from_gguf(write_foreign(tmp_path / "model.gguf", one, arch="llama"), lm)
    with pytest.raises(ArtifactError, match="model of type 'qwen2', not for 'tiny'"):
        from_gguf(write_foreign(tmp_path / "qwen.gguf", one, hint="qwen2"), lm)
    assert from_gguf(write_foreign(tmp_path / "x.gguf", one, hint="unknown"), lm).block_ids == (1,)
    neox = {**lm.identity, "model_type": "gpt_neox"}
    assert from_gguf(write_foreign(tmp_path / "y.gguf", one, hint="gptneox"), neox).name == "y"
    to_gguf(vector, tmp_path / "v.gguf")
    with pytest.raises(ArtifactError, match=f"made for model 'tiny' .*{lm.weights_fingerprint}.*'tiny'"):
        from_gguf(tmp_path / "v.gguf", tiny_lm(seed=1))
    with pytest.raises(UsageError, match=r"no control vector at .*none\.gguf"):
        from_gguf(tmp_path / "none.gguf", lm)
    with pytest.raises(UsageError, match="identity of a model lacks its n_blocks"):
        from_gguf(tmp_path / "v.gguf", {**lm.identity, "n_blocks": None})
    whole = (tmp_path / "v.gguf").read_bytes()
    for length in (0, 3, 20, 100, 300, len(whole) - 200):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"cut\.gguf is damaged, or no GGUF file"):
            from_gguf(tmp_path / "cut.gguf", lm)


# EasySteer


@pytest.mark.parametrize(
    ("scope", "apply"),
    [
        ("all", {"prompt": "all", "generation": "all"}),
        ("prompt", {"prompt": "all"}),
        ("last-prompt", {"prompt_positions": [-1]}),
        ("generated", {"generation": "all"}),
        ("from:0", {"prompt_window": [0, None], "generation": "all"}),
        ("from:5", {"prompt_window": [5, None], "generation": "all"}),
    ],
)
def test_easysteer_is_told_what_acts_where(
    lm: LanguageModel, vector: SteeringVector, scope: str, apply: dict[str, Any], tmp_path: Path
) -> None:
    from_0 = replace(vector, block_ids=(0, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out there
        record = to_easysteer(from_0, tmp_path / "easy", alpha=ALPHA, scope=scope)
    spec = json.loads((tmp_path / "easy" / "steering.json").read_text())
    assert spec == {
        "vectors": [
            {
                "source": str(tmp_path / "easy" / "vector.gguf"),
                "algorithm": "direct",
                "scale": 1.0,
                "layers": [0, 2],
                "normalize": False,
                "apply": apply,
                "name": "d0+",
            }
        ]
    }
    assert (record["format"], record["scope"], record["alpha"]) == ("easysteer", scope, ALPHA)
    assert any("less than 5 tokens" in note for note in record["notes"]) == (scope == "from:5")
    back = from_gguf(spec["vectors"][0]["source"], lm)
    assert back.block_ids == (0, 2)
    np.testing.assert_array_equal(back.values, vector.values * np.float32(ALPHA))


# repeng


def test_repeng_reads_ours_and_steers_the_same(
    lm: LanguageModel, vector: SteeringVector, peer: Any, tmp_path: Path
) -> None:
    repeng = peer("repeng")
    to_gguf(vector, tmp_path / "v.gguf", alpha=ALPHA)
    theirs = repeng.ControlVector.import_gguf(tmp_path / "v.gguf")
    assert theirs.model_type == "llama" and list(theirs.directions) == [1, 2]
    for block, values in directions(vector).items():
        np.testing.assert_array_equal(theirs.directions[block], values)
    plain, ours = logits(lm.model), hooked(lm, vector, ALPHA)
    controlled = repeng.ControlModel(lm.model, [1, 2])
    controlled.set_control(theirs)
    torch.testing.assert_close(logits(controlled), ours, rtol=1e-5, atol=1e-5)  # the same sums in float32
    assert (ours - plain).abs().max() > 0.1


def test_what_repeng_exports_is_read(lm: LanguageModel, vector: SteeringVector, peer: Any, tmp_path: Path) -> None:
    repeng = peer("repeng")
    repeng.ControlVector("llama", dict(reversed(directions(vector).items()))).export_gguf(tmp_path / "theirs.gguf")
    back = from_gguf(tmp_path / "theirs.gguf", lm)
    assert (back.name, back.block_ids, back.origin) == ("theirs", (1, 2), {"kind": "gguf", "file": "theirs.gguf"})
    np.testing.assert_array_equal(back.values, vector.values * np.float32(ALPHA))


# steering-vectors


def test_steering_vectors_steers_the_same(lm: LanguageModel, vector: SteeringVector, peer: Any) -> None:
    peer("steering_vectors")
    from_0 = replace(vector, block_ids=(0, 2))
    theirs = to_steering_vectors(from_0, ALPHA)
    assert theirs.layer_type == "decoder_block"
    plain, ours = logits(lm.model), hooked(lm, from_0, ALPHA)
    handle = theirs.patch_activations(lm.model)
    try:
        torch.testing.assert_close(logits(lm.model), ours, rtol=1e-5, atol=1e-5)  # the same sums in float32
    finally:
        handle.remove()
    assert (ours - plain).abs().max() > 0.1
    back = from_steering_vectors(theirs, lm, name="back")
    assert (back.name, back.block_ids, back.unit, back.model_fingerprint) == (
        ("back", (0, 2), "raw", lm.weights_fingerprint)
    )
    np.testing.assert_array_equal(back.values, vector.values * np.float32(ALPHA))


def test_steering_vectors_on_mlps_where_that_is_the_same(
    lm: LanguageModel, loaded: Any, vector: SteeringVector, peer: Any
) -> None:
    library = peer("steering_vectors")
    on_mlps = library.SteeringVector({1: torch.ones(HIDDEN, dtype=torch.bfloat16)}, layer_type="mlp")
    back = from_steering_vectors(on_mlps, lm)
    with on_mlps.apply(lm.model):
        expected = logits(lm.model)
    torch.testing.assert_close(hooked(lm, back, 1.0), expected, rtol=1e-4, atol=1e-4)  # other orders of float32 sums
    for other in (loaded("gemma2"), lm.identity):
        with pytest.raises(UsageError, match="acts on MLP outputs.*loaded model"):
            from_steering_vectors(on_mlps, other)
    with pytest.raises(UsageError, match="acts on 'self_attn'"):
        from_steering_vectors(library.SteeringVector({1: torch.ones(HIDDEN)}, layer_type="self_attn"), lm)
    for block in (-1, N_BLOCKS):
        with pytest.raises(ArtifactError, match=f"block {block}, but 'tiny' has blocks 0 to 2"):
            from_steering_vectors(library.SteeringVector({block: torch.ones(HIDDEN)}), lm)
    with pytest.raises(ArtifactError, match=r"shape \(5,\)"):
        from_steering_vectors(library.SteeringVector({1: torch.ones(5)}), lm)
