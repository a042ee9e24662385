"""The sparse autoencoder and its training against formulas written down again, finite differences and planted cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from skillbasis.basis.autoencoder import Autoencoder, Trainer, losses
from skillbasis.errors import SkillbasisError

torch.set_num_threads(1)

N, D, M, K = 7, 5, 9, 3


def model_of(seed: int = 0, m: int = M, d: int = D, k: int = K) -> Autoencoder:
    """Random parameters in float64."""
    rng = np.random.default_rng(seed)
    decoder = rng.standard_normal((m, d))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    arrays = (rng.standard_normal((m, d)), decoder, 0.3 * rng.standard_normal(d))
    return Autoencoder(*(torch.tensor(array, dtype=torch.float64) for array in arrays), n_active=k)


def by_hand(
    model: Autoencoder, rows: np.ndarray, dead: np.ndarray, n_revived: int, missed_before: np.ndarray | None = None
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Error, revival, what fired and what was missed, row by row; the revival's target may be given, as it is fixed."""
    encoder, decoder, offset = (p.detach().numpy() for p in model.parameters)
    error = revival = 0.0
    fired, missed_rows = np.zeros(len(decoder), dtype=bool), np.zeros_like(rows)
    for i, row in enumerate(rows):
        pre = encoder @ (row - offset)
        reconstruction = offset.copy()
        for j in sorted(range(len(pre)), key=lambda j: -pre[j])[: model.n_active]:
            if pre[j] > 0:
                reconstruction = reconstruction + pre[j] * decoder[j]
                fired[j] = True
        missed_rows[i] = row - reconstruction
        error += ((row - reconstruction) ** 2).sum() / len(rows)
        target = missed_rows[i] if missed_before is None else missed_before[i]
        candidates = [j for j in np.flatnonzero(dead) if pre[j] > 0]
        guess = np.zeros_like(row)
        for j in sorted(candidates, key=lambda j: -pre[j])[:n_revived]:
            guess = guess + pre[j] * decoder[j]
        if dead.any():
            revival += ((target - guess) ** 2).sum() / len(rows)
    return error, revival, fired, missed_rows


@pytest.mark.parametrize("n_revived", [1, 2, 8])
@pytest.mark.parametrize("n_dead", [0, 1, 4])
def test_losses_are_those_of_the_formulas(n_dead: int, n_revived: int) -> None:
    model, rows = model_of(), np.random.default_rng(1).standard_normal((N, D))
    dead = np.arange(M) < n_dead
    error, revival, fired, _ = by_hand(model, rows, dead, n_revived)
    found = losses(model, torch.tensor(rows), torch.tensor(dead), n_revived)
    assert float(found.error) == pytest.approx(error, rel=1e-12)
    assert float(found.revival) == pytest.approx(revival, rel=1e-12)
    np.testing.assert_array_equal(found.fired.numpy(), fired)


def test_gradients_are_those_of_finite_differences() -> None:
    model, rows = model_of(2), np.random.default_rng(3).standard_normal((N, D))
    dead, weight, step = np.arange(M) < 3, 0.7, 1e-6
    missed = by_hand(model, rows, dead, 2)[3]  # the target of the revival has no gradient

    def total() -> float:
        error, revival, _, _ = by_hand(model, rows, dead, 2, missed)
        return error + weight * revival

    expected = []
    for parameter in model.parameters:
        values, gradient = parameter.numpy(), np.zeros(parameter.shape)
        for index in np.ndindex(*parameter.shape):
            kept = values[index]
            ends = []
            for value in (kept + step, kept - step):
                values[index] = value
                ends.append(total())
            values[index] = kept
            gradient[index] = (ends[0] - ends[1]) / (2 * step)
        expected.append(gradient)
    for parameter in model.parameters:
        parameter.requires_grad_(True)
    found = losses(model, torch.tensor(rows), torch.tensor(dead), 2)
    (found.error + weight * found.revival).backward()
    for parameter, gradient in zip(model.parameters, expected, strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), gradient, atol=1e-7)  # of differences of size 1e-6


def trainer_of(model: Autoencoder, **changes: Any) -> Trainer:
    settings = {"rate": 0.01, "n_steps": 100, "dead_after": 1000, "revival_weight": 1 / 32, "n_revived": 4}
    return Trainer(model, **settings | changes)


def test_a_first_step_is_adam_on_the_projected_gradient_and_rows_stay_unit() -> None:
    rows = torch.tensor(np.random.default_rng(4).standard_normal((64, D)))
    model, plain = model_of(5), model_of(5)
    for parameter in plain.parameters:
        parameter.requires_grad_(True)
    losses(plain, rows, torch.zeros(M, dtype=torch.bool), 4).error.backward()
    decoder, gradient = plain.decoder.detach().numpy(), plain.decoder.grad.numpy()  # type: ignore[union-attr]
    across = gradient - (gradient * decoder).sum(axis=1, keepdims=True) * decoder
    assert not np.allclose(across, gradient)
    turned = decoder - 0.01 * across / (np.abs(across) + 6.25e-10)  # Adam's first step, with its moments corrected
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    trainer_of(model).take(rows)
    np.testing.assert_allclose(model.decoder.detach().numpy(), turned, atol=1e-6)
    encoder_gradient = plain.encoder.grad.numpy()  # type: ignore[union-attr]
    expected = plain.encoder.detach().numpy() - 0.01 * encoder_gradient / (np.abs(encoder_gradient) + 6.25e-10)
    np.testing.assert_allclose(model.encoder.detach().numpy(), expected, atol=1e-6)


def test_rows_of_the_decoder_are_unit_after_every_step() -> None:
    trainer = trainer_of(model_of(6), rate=0.3)
    rng = np.random.default_rng(7)
    for _ in range(20):
        trainer.take(torch.tensor(rng.standard_normal((16, D))))
        np.testing.assert_allclose(np.linalg.norm(trainer.model.decoder.detach().numpy(), axis=1), 1, rtol=1e-12)
    assert trainer.step == 20


def test_the_rate_falls_to_nothing_over_the_last_fifth() -> None:
    rows, moves = torch.tensor(np.random.default_rng(8).standard_normal((16, D))), []
    trainer = trainer_of(model_of(9), rate=1e-6, n_steps=50)
    for _ in range(50):
        before = trainer.model.offset.detach().clone()
        trainer.take(rows)
        moves.append(float((trainer.model.offset.detach() - before).abs().max()))
    np.testing.assert_allclose(moves[1:41], 1e-6, rtol=0.01)  # the gradient hardly changes: Adam moves by its rate
    np.testing.assert_allclose(moves[41:], 1e-6 * np.arange(9, 0, -1) / 10, rtol=0.01)


def test_it_begins_with_unit_rows_and_their_copy_the_same_for_a_seed() -> None:
    first, again, other = (Autoencoder.initial(50, 16, 4, seed, "cpu") for seed in (0, 0, 1))
    np.testing.assert_allclose(np.linalg.norm(first.decoder.numpy(), axis=1), 1, rtol=1e-6)
    assert torch.equal(first.encoder, first.decoder) and not first.offset.any()
    assert first.encoder.data_ptr() != first.decoder.data_ptr()
    assert torch.equal(first.decoder, again.decoder) and not torch.equal(first.decoder, other.decoder)


def crowded(revival_weight: float) -> tuple[Trainer, torch.Tensor]:
    """Rows that vary along 6 directions, and rarely far along 6 others; a dictionary that has the former only.

    Half of its 24 latents point both ways along the former. The others point anywhere, and answer so weakly that they
    are never among the strongest.
    """
    rng = np.random.default_rng(10)
    truth = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    rare = 4 * rng.choice([-1, 1], (2000, 6)) * (rng.random((2000, 6)) < 0.15)
    rows = np.concatenate([rng.standard_normal((2000, 6)), rare], axis=1) @ truth[:12]
    rows /= np.sqrt((rows**2).sum(axis=1).mean())
    silent = rng.standard_normal((12, 32))
    decoder = np.concatenate([truth[:6], -truth[:6], silent / np.linalg.norm(silent, axis=1, keepdims=True)])
    encoder = decoder * np.repeat([1, 1e-3], 12)[:, None]
    arrays = (torch.tensor(array, dtype=torch.float32) for array in (encoder, decoder, np.zeros(32)))
    model = Autoencoder(*arrays, n_active=2)
    trainer = Trainer(model, rate=0.01, n_steps=400, dead_after=500, revival_weight=revival_weight, n_revived=16)
    return trainer, torch.tensor(rows, dtype=torch.float32)


def test_dead_latents_are_revived() -> None:
    dead, error = {}, {}
    for weight in (0.0, 1 / 32):
        trainer, rows = crowded(weight)
        rng = np.random.default_rng(11)
        errors = [trainer.take(rows[rng.choice(2000, 200, replace=False)]) for _ in range(400)]
        dead[weight], error[weight] = trainer.n_dead, np.mean(errors[-20:])
    assert dead[0.0] >= 6 and dead[1 / 32] <= 2, dead
    assert error[1 / 32] < 0.85 * error[0.0]  # what they took up was not explained before


def test_a_latent_is_dead_once_it_was_silent_for_so_many_rows() -> None:
    decoder = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    trainer = trainer_of(Autoencoder(decoder.clone(), decoder, torch.zeros(2), 1), rate=1e-9, dead_after=20)
    right, left = torch.tensor([[1.0, 0.0]] * 10), torch.tensor([[-1.0, 0.0]] * 10)
    found = []
    for rows in (right, right, left, left, right):
        trainer.take(rows)
        found.append(trainer.n_dead)
    assert found == [0, 2, 1, 2, 1]  # the second wakes when its row comes, the first after two batches without


def test_training_goes_on_from_its_tensors_to_the_same_bytes() -> None:
    batches = [
        torch.tensor(np.random.default_rng([12, i]).standard_normal((16, 8)), dtype=torch.float32) for i in range(30)
    ]

    def fresh() -> Trainer:
        return trainer_of(Autoencoder.initial(20, 8, 1, 0, "cpu"), n_steps=30, dead_after=30)

    whole = fresh()
    for rows in batches:
        whole.take(rows)
    assert whole.n_dead  # so the count of silent rows matters, too
    for at in (0, 1, 17, 30):
        first = fresh()
        for rows in batches[:at]:
            first.take(rows)
        kept = {name: tensor.copy() for name, tensor in first.tensors().items()}
        second = fresh()
        second.restore(kept)
        for rows in batches[at:]:
            second.take(rows)
        for name, tensor in whole.tensors().items():
            assert second.tensors()[name].tobytes() == tensor.tobytes(), (at, name)


def test_an_error_that_is_not_finite_stops_the_training() -> None:
    rows = torch.zeros((4, D), dtype=torch.float64)
    rows[2, 1] = float("nan")
    trainer = trainer_of(model_of())
    with pytest.raises(
        SkillbasisError, match=r"diverged at step 1 \(reconstruction error nan\); choose a smaller learn"
    ):
        trainer.take(rows)
