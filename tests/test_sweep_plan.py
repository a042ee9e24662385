"""What a sweep tries: settings that cannot be meant, and random vectors of every norm there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skillbasis.errors import UsageError
from skillbasis.steer.sweep.plan import Setting, SweepSettings, plan_controls, plan_points, steered_blocks
from skillbasis.steer.vectors import SteeringVector, random_vector

MODEL = {"model": "planted", "weights_fingerprint": "abc", "hidden_size": 4, "n_blocks": 5, "model_type": "llama"}


def vector(name: str, scale: float = 1.0, unit: Any = "raw", blocks: tuple[int, ...] = (1, 3), **origin: Any) -> Any:
    values = np.full((len(blocks), 4), scale / 2, dtype=np.float32)  # each block's slice has the norm `scale`
    return SteeringVector(name, blocks, values, unit, MODEL, origin)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alphas": ()}, "at least one alpha and one scope"),
        ({"scopes": ()}, "at least one alpha and one scope"),
        ({"scopes": ("promt",)}, r"unknown scope 'promt' \(did you mean 'prompt'\?\)"),
        ({"alphas": (0.1, 0.0)}, "alpha 0 steers nothing"),
        ({"alphas": (float("nan"),)}, "alpha nan steers nothing"),
        ({"alphas": (float("inf"),)}, "alpha inf steers nothing"),
        ({"alphas": (0.1, 0.1)}, r"one alpha twice \(0.1, 0.1\)"),
        ({"scopes": ("all", "all")}, "one scope twice"),
        ({"n_random": -1}, "n_random and n_controls must be 0 or more"),
        ({"max_broken_rise": 1.5}, "a share from 0 to 1"),
        ({"target": "pattern:("}, "regular expression '\\(' is not valid"),
        ({"metric": "target"}, "the metric target needs a target that is a pattern"),
    ],
)
def test_settings_that_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SweepSettings(**change)


def test_what_chooses_unless_it_is_said() -> None:
    assert SweepSettings().chosen_by == "pass@1"
    assert SweepSettings(target="pattern:no").chosen_by == "target"
    assert SweepSettings(target="pattern:no", metric="pass@4").chosen_by == "pass@4"
    assert SweepSettings(scopes=("from:3",)).scopes == ("from:3",)


def test_every_vector_is_tried_at_every_setting_with_random_ones_of_its_norm() -> None:
    vectors = [vector("d0+", basis="x", kind="direction"), vector("d0-", -1.0), vector("success", 3.0, kind="success")]
    settings = SweepSettings(alphas=(0.5, 1.0), scopes=("all", "prompt"), n_random=2, seed=10)
    points = plan_points(vectors, settings)
    assert len(points) == 2 * 2 * (3 + 2 * 2), "both signs add as much and share their random vectors"
    first = points[:7]
    assert [(p.vector.name, p.kind) for p in first if p.vector] == [
        ("d0+", "direction"),
        ("d0-", "vector"),
        ("success", "success"),
        ("random-10", "random"),
        ("random-11", "random"),
        ("random-12", "random"),
        ("random-13", "random"),
    ]
    norms = [p.vector.norms.tolist() for p in first if p.vector]
    np.testing.assert_allclose(norms[3:], [[1, 1], [1, 1], [3, 3], [3, 3]], rtol=1e-6)
    assert {(p.scope, p.alpha) for p in points} == {(s, a) for s in ("all", "prompt") for a in (0.5, 1.0)}
    assert first[3].identity == {"vector": "random-10", "kind": "random", "scope": "all", "alpha": 0.5}


def test_another_unit_or_other_blocks_need_random_vectors_of_their_own() -> None:
    settings = SweepSettings(alphas=(1.0,), scopes=("all",), n_random=1)
    vectors = [vector("a"), vector("b", unit="relative"), vector("c", blocks=(2,)), vector("d")]
    controls = [p.vector for p in plan_points(vectors, settings) if p.kind == "random" and p.vector]
    assert [(c.unit, c.block_ids) for c in controls] == [("raw", (1, 3)), ("relative", (1, 3)), ("raw", (2,))]
    assert steered_blocks(plan_points(vectors, settings)) == (1, 2, 3)


def test_controls_of_the_test_were_not_seen_before_and_have_the_winners_norm_and_setting() -> None:
    vectors = [vector("d0+"), vector("success", 3.0)]
    settings = SweepSettings(n_random=3, n_controls=19, seed=5)
    seen = {p.vector.name for p in plan_points(vectors, settings) if p.vector}
    controls = plan_controls(Setting(vectors[1], "success", "all", 0.4), vectors, settings)
    names = [c.vector.name for c in controls if c.vector]
    assert len(set(names)) == 19 and not seen & set(names)
    for control in controls:
        assert control.vector is not None
        assert (control.kind, control.scope, control.alpha) == ("random", "all", 0.4)
        np.testing.assert_allclose(control.vector.norms, [3, 3], rtol=1e-6)


def test_a_random_vector_that_is_given_is_no_control() -> None:
    given = random_vector(vector("a"), 0)
    points = plan_points([given], SweepSettings(alphas=(1.0,), scopes=("all",), n_random=1))
    assert [(p.vector.name, p.kind) for p in points if p.vector] == [("random-0", "vector"), ("control-0", "random")]
    other = replace(given, name="random-7")
    assert plan_points([other], SweepSettings(n_random=0))[0].kind == "vector"
