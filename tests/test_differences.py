"""Differences of single weights, with planted ranks and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skillbasis.steer import differences
from skillbasis.steer.checkpoint import Checkpoint
from skillbasis.steer.differences import Differences, source_of

NAME = "model.layers.7.mlp.up_proj.weight"
Compared = Callable[..., Differences]


@pytest.fixture
def compared(tmp_path: Path) -> Compared:
    """Compares two sets of weights as two checkpoints."""

    def checkpoint(name: str, tensors: dict[str, torch.Tensor], config: dict[str, object]) -> Checkpoint:
        folder = tmp_path / name
        folder.mkdir()
        own = {key: value.clone() for key, value in tensors.items()}
        save_file({"filler": torch.zeros(1), **own}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        return Checkpoint.open(folder)

    def compare(
        new: dict[str, torch.Tensor], old: dict[str, torch.Tensor], block: int | None = None, **config: object
    ) -> Differences:
        found = Differences(checkpoint("new", new, config), checkpoint("old", old, config))
        for name in dict.fromkeys((*new, *old)):
            found.compare(name, block)
        return found

    return compare


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("rank", "found"), [(1, range(1, 2)), (6, range(4, 7)), (25, range(18, 26)), (60, [None]), (120, [None])]
)
def test_the_rank_of_a_change(compared: Compared, rank: int, found: list[int | None]) -> None:
    """120 x 200, so ranks to 30 are looked for; nine tenths of a random change lie in a little less than its rank."""
    old = noise(120, 200)
    change = 0.01 * noise(120, rank, seed=1) @ noise(rank, 200, seed=2)
    entry = compared({NAME: old + change}, {NAME: old}).matrices[0]
    assert entry["rank"] in found and entry["rank_limit"] == 30
    exact = torch.linalg.svdvals(change.double()).square()
    held = int(((exact.cumsum(0) / exact.sum()) < 0.9).sum()) + 1
    assert entry["rank"] == (held if held <= 30 else None)
    assert entry["relative_change"] == pytest.approx(float(change.norm() / old.norm()), rel=1e-4)
    assert (entry["name"], entry["block"]) == (NAME, 7)


def test_a_change_of_low_rank_is_seen_through_rounding(compared: Compared) -> None:
    old = noise(120, 200).bfloat16()
    change = 0.02 * noise(120, 2, seed=1) @ noise(2, 200, seed=2)
    entry = compared({NAME: (old.float() + change).bfloat16()}, {NAME: old}).matrices[0]
    assert entry["rank"] == 2


def test_pieces_add_up_to_the_whole(compared: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    old = noise(50, 40)
    new = old + 0.1 * noise(50, 3, seed=1) @ noise(3, 40, seed=2)
    whole = compared({NAME: new}, {NAME: old})
    monkeypatch.setattr(differences, "_CHUNK_VALUES", 7 * 40)
    pieces = Differences(whole.new, whole.old)
    pieces.compare(NAME, None)
    assert pieces.matrices[0]["rank"] == whole.matrices[0]["rank"] <= 3
    assert pieces.matrices[0]["relative_change"] == pytest.approx(whole.matrices[0]["relative_change"], rel=1e-6)


def test_one_rounding_is_no_change_and_two_are(compared: Compared) -> None:
    old = noise(1000)
    rounded = old.bfloat16()
    found = compared({"a.bias": rounded, "b.bias": rounded}, {"a.bias": old, "b.bias": old * 1.01})
    assert [entry["name"] for entry in found.constants] == ["b.bias"]
    assert found.n_retyped == 2 and found.tolerance == "one rounding to bfloat16 (3.9e-03 of each number)"
    tiny = torch.tensor([3e-8, 1e-6, 65504.0, 0.0])  # below the smallest normal number of float16, and its largest
    found = Differences(found.new, found.old)
    assert found._allowed(tiny.half(), tiny)[1] >= float((tiny.half().float() - tiny)[:2].abs().max())


def test_the_same_type_leaves_no_room(compared: Compared) -> None:
    old = noise(8, 8)
    new = old.clone()
    new[1, 2] = torch.nextafter(new[1, 2], torch.tensor(9.0))
    assert len(compared({NAME: new}, {NAME: old}).matrices) == 1


def test_what_is_equal_in_other_bits_or_not_a_number(compared: Compared) -> None:
    nan = torch.tensor([float("nan"), 1.0])
    found = compared(
        {"a.bias": nan, "b.bias": torch.tensor([-0.0]), "c.bias": nan, "d": torch.tensor(3)},
        {"a.bias": nan, "b.bias": torch.tensor([0.0]), "c.bias": torch.ones(2), "d": torch.tensor(4)},
    )
    assert found.not_finite == ["c.bias"]
    assert [(entry["name"], entry["norm"]) for entry in found.constants] == [("d", 1.0)]


def test_absent_biases_are_zero_and_other_absences_are_told(compared: Compared) -> None:
    found = compared(
        {"model.layers.1.a.bias": torch.ones(4), "b.bias": torch.zeros(4), "w": torch.ones(2), "s": torch.ones(2, 2)},
        {"c.bias": 2 * torch.ones(4), "d.bias": torch.zeros(4), "v": torch.ones(2), "s": torch.ones(2, 3)},
    )
    assert [(e["name"], e["block"], e["status"], e["norm"]) for e in found.constants] == [
        ("model.layers.1.a.bias", 1, "added", 2.0),
        ("c.bias", None, "missing", 4.0),
    ]
    assert (found.added, found.added_zeros, found.missing) == (["w"], ["b.bias"], ["v"])
    assert found.reshaped == ["s (2, 3) to (2, 2)"] and found.n_weights == 7


def test_offsets_are_in_units_of_the_stream(compared: Compared) -> None:
    old, new = noise(6), noise(6, seed=1)
    found = compared({"x.bias": new}, {"x.bias": old}, 3, residual_multiplier=0.5)
    np.testing.assert_allclose(found.offsets[3], 0.5 * (new - old).numpy(), rtol=1e-6)
    assert found.constants == []


def test_experts_stacked_in_one_tensor_have_no_rank(compared: Compared) -> None:
    entry = compared({NAME: noise(4, 16, 16)}, {NAME: noise(4, 16, 16, seed=1)}).matrices[0]
    assert (entry["rank"], entry["rank_limit"]) == (None, 0)
    assert entry["relative_change"] == pytest.approx(np.sqrt(2), rel=0.1)


@pytest.mark.parametrize(
    ("names", "tied", "source"),
    [
        (["lm_head.weight", "model.embed_tokens.weight"], True, "lm_head.weight"),
        (["gpt_neox.embed_in.weight", "z.embed_out.weight"], True, "z.embed_out.weight"),
        (["model.embed_tokens.weight"], True, "model.embed_tokens.weight"),
        (["model.embed_tokens.weight"], False, None),
    ],
)
def test_what_the_head_is(compared: Compared, names: list[str], tied: bool, source: str | None) -> None:
    found = compared({name: torch.ones(1) for name in names}, {}, tie_word_embeddings=tied)
    assert source_of(found.new, "lm_head.weight") == source
    assert source_of(found.new, "model.norm.weight") is None
