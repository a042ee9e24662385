from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skillbasis.errors import SkillbasisError, UsageError
from skillbasis.lm import LanguageModel, load_model, weights_fingerprint
from skillbasis.train import PRESETS, LoraSettings, TrainingSettings, fine_tune, fine_tune_in_memory
from skillbasis.train.adapters import lora_config, projections
from skillbasis.train.loop import _batches, cosine_schedule, tokenize_examples
from skillbasis.train.settings import preset
from skillbasis.train.trl_run import _whole_batches
from tiny import TEMPLATE, tiny_lm, user

ROWS = [
    (user("what is three?"), "three"),
    (user("so what is three plus four, and what is the answer?"), "the answer is \\boxed{7}"),
    (user("plus"), "7"),
    (user("what?"), "so so so what"),
    (user("and four?"), "four plus four"),
    (user("and plus?"), "the answer is plus"),
]
# One batch of all rows: the order of rows within a step then has no effect, and trainers can be compared.
SETTINGS = TrainingSettings(learning_rate=2e-3, epochs=4, batch_size=6, micro_batch_size=3, warmup_fraction=0.25)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny"
    lm = tiny_lm(initializer_range=0.1)
    lm.model.save_pretrained(path)
    lm.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lm(saved: Path) -> LanguageModel:
    return load_model(saved, device="cpu")


def loss_by_hand(lm: LanguageModel, rows: list[tuple[list[dict[str, str]], str]]) -> float:
    """Mean NLL over all response tokens and end tokens of the rows, one row at a time."""
    total, n_tokens = 0.0, 0
    for prompt, response in rows:
        ids = lm.tokenizer(prompt[0]["content"] + "\n")["input_ids"]
        n_prompt = len(ids)
        ids += [*lm.tokenizer(response, add_special_tokens=False)["input_ids"], lm.tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = lm.model(torch.tensor([ids])).logits[0].double()
        log_p = torch.log_softmax(logits, -1)
        total -= sum(float(log_p[i - 1, ids[i]]) for i in range(n_prompt, len(ids)))
        n_tokens += len(ids) - n_prompt
    return total / n_tokens


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The lean loop


@pytest.mark.parametrize("micro_batch_size", [1, 3, 6])
def test_first_loss_is_the_one_by_hand(lm: LanguageModel, micro_batch_size: int) -> None:
    _, losses = fine_tune_in_memory(lm, ROWS, replace(SETTINGS, micro_batch_size=micro_batch_size))
    assert losses[0] == pytest.approx(loss_by_hand(lm, ROWS), rel=1e-5)  # float32 against float64


def test_steps_are_those_of_adamw_by_hand(lm: LanguageModel) -> None:
    """The gradient of the mean over response tokens, clipped to norm 1; the parts of a batch are of unequal size."""
    import copy

    rows = ROWS[:5]
    settings = replace(SETTINGS, learning_rate=1e-2, epochs=24, micro_batch_size=2, warmup_fraction=0.1)
    _, losses = fine_tune_in_memory(lm, rows, settings)
    model = copy.deepcopy(lm.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    examples = tokenize_examples(lm, rows, 128)
    n_targets = sum(len(example.response_ids) for example in examples)
    norms, by_hand = [], []
    for step in range(24):
        warmup = 3  # a tenth of 24, rounded up
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (24 - warmup)))
        optimizer.param_groups[0]["lr"] = 1e-2 * (step / warmup if step < warmup else cosine)
        by_hand.append(0.0)
        for example in examples:
            ids = torch.tensor([example.prompt_ids + example.response_ids])
            labels = ids.clone()
            labels[:, : len(example.prompt_ids)] = -100
            loss = model(input_ids=ids, labels=labels).loss * len(example.response_ids) / n_targets
            loss.backward()
            by_hand[-1] += loss.item()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    assert min(norms) < 0.7 and max(norms) > 2, "Adam hides the scale of gradients unless only some are clipped"
    # Rounding differs with the padding, and Adam makes full steps of the smallest gradients.
    assert losses == pytest.approx(by_hand, rel=1e-3)


def test_the_loss_falls_and_the_answers_are_learnt(lm: LanguageModel) -> None:
    tuned, losses = fine_tune_in_memory(lm, ROWS, replace(SETTINGS, learning_rate=1e-2, epochs=60))
    assert len(losses) == 60 and losses[-1] < 0.1 < 2 < losses[0]
    assert loss_by_hand(tuned, ROWS) < 0.1


def test_same_seed_same_weights(lm: LanguageModel) -> None:
    settings = replace(SETTINGS, batch_size=2, micro_batch_size=2, seed=5)
    first, losses = fine_tune_in_memory(lm, ROWS, settings)
    torch.rand(3)
    again, same_losses = fine_tune_in_memory(lm, ROWS, settings)
    other, other_losses = fine_tune_in_memory(lm, ROWS, settings.with_seed(6))
    assert losses == same_losses and equal(state(first.model), state(again.model))
    assert losses != other_losses and not equal(state(first.model), state(other.model))
    assert first.weights_fingerprint == again.weights_fingerprint != other.weights_fingerprint


def test_the_base_is_not_touched(lm: LanguageModel) -> None:
    before = state(lm.model)
    tuned, _ = fine_tune_in_memory(lm, ROWS, SETTINGS)
    assert equal(before, state(lm.model)) and not equal(before, state(tuned.model))
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert not lm.model.training and not tuned.model.training
    assert lm.weights_fingerprint == weights_fingerprint(lm.model) != tuned.weights_fingerprint


@pytest.mark.parametrize(("epochs", "n_steps"), [(1, 3), (2, 6), (0.5, 2), (1.34, 5), (0.01, 1)])
def test_number_of_steps_is_rounded_up_as_in_transformers(lm: LanguageModel, epochs: float, n_steps: int) -> None:
    settings = replace(SETTINGS, epochs=epochs, batch_size=2, micro_batch_size=1)
    assert len(fine_tune_in_memory(lm, ROWS, settings)[1]) == n_steps


def test_a_diverged_run_is_reported(lm: LanguageModel) -> None:
    with pytest.raises(SkillbasisError, match=r"diverged: the loss is (nan|inf) at step \d of 4; lower .*1e\+30"):
        fine_tune_in_memory(lm, ROWS, replace(SETTINGS, learning_rate=1e30, warmup_fraction=0))


def test_requests_that_cannot_be_meant(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="trainer 'trl' for LoRA"):
        fine_tune_in_memory(lm, ROWS, replace(SETTINGS, lora=LoraSettings()))
    with pytest.raises(UsageError, match="no rows"):
        fine_tune_in_memory(lm, [], SETTINGS)


def test_every_row_comes_once_per_epoch(lm: LanguageModel) -> None:
    examples = tokenize_examples(lm, ROWS * 20, 128)
    batches = _batches(examples, 7, np.random.default_rng(0))
    assert sorted(i for batch in batches for i in batch) == list(range(120))
    assert sorted(map(len, batches)) == [1] + [7] * 17
    assert batches != _batches(examples, 7, np.random.default_rng(1))
    spread = np.mean([np.ptp([len(examples[i]) for i in batch]) for batch in batches])
    assert spread < np.ptp(list(map(len, examples))) / 3, "batches are of rows of similar length"


def test_schedule_is_that_of_transformers() -> None:
    from transformers import get_cosine_schedule_with_warmup

    for n_steps, n_warmup in ((10, 3), (7, 0), (1, 0), (4, 4)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = get_cosine_schedule_with_warmup(optimizer, n_warmup, n_steps)
        for step in range(n_steps):
            assert cosine_schedule(step, n_steps, n_warmup) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
            optimizer.step()
            schedule.step()


# Examples


def test_examples_end_with_one_end_token(lm: LanguageModel) -> None:
    (example,) = tokenize_examples(lm, [(user("plus"), "7")], 128)
    bos, eos = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id
    assert example.prompt_ids[0] == bos and example.prompt_ids.count(bos) == 1
    assert lm.tokenizer.decode(example.prompt_ids[1:]) == "plus\n"
    assert example.response_ids[-1] == eos and lm.tokenizer.decode(example.response_ids[:-1]) == "7"


def test_examples_of_a_chat_template_have_one_bos_and_one_end_token() -> None:
    """The template writes `<s>` and `</s>` (and a newline) itself; neither may come twice, nothing after the end."""
    lm = tiny_lm(template=TEMPLATE)
    (example,) = tokenize_examples(lm, [(user("plus"), "7")], 128)
    assert lm.tokenizer.decode(example.prompt_ids) == "<s>[user]plus[assistant]"
    assert lm.tokenizer.decode(example.response_ids) == "7</s>"
    without_end = tiny_lm(template=TEMPLATE.replace("{{ eos_token }}", "."))
    (example,) = tokenize_examples(without_end, [(user("plus"), "7")], 128)
    assert without_end.tokenizer.decode(example.response_ids) == "7.\n</s>"


def test_examples_are_cut_at_max_length(lm: LanguageModel) -> None:
    whole = tokenize_examples(lm, ROWS[1:2], 128)[0]
    n_prompt = len(whole.prompt_ids)
    cut = tokenize_examples(lm, ROWS[1:2], n_prompt + 3)[0]
    assert cut.prompt_ids == whole.prompt_ids and cut.response_ids == whole.response_ids[:3]
    exact = tokenize_examples(lm, ROWS[1:2], len(whole))[0]
    assert exact == whole and exact.response_ids[-1] == lm.tokenizer.eos_token_id


def test_rows_without_a_response_are_named(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(SkillbasisError, match="row 2 has no response to learn within 128 tokens"):
        tokenize_examples(lm, [ROWS[0], (user("what?"), "")], 128)
    with pytest.raises(SkillbasisError, match="row 2 has no response to learn within 15 tokens"):
        tokenize_examples(lm, ROWS, 15)
    for trainer in ("trl", "lean"):
        with pytest.raises(SkillbasisError, match="row 2 has no response; 2 rows have none"):
            fine_tune(lm, [ROWS[0], (user("a"), ""), (user("b"), "")], SETTINGS, tmp_path / "out", trainer=trainer)
        with pytest.raises(SkillbasisError, match="row 2 has no response to learn within 15 tokens"):
            fine_tune(lm, ROWS, replace(SETTINGS, max_length=15), tmp_path / "out", trainer=trainer)
    assert not (tmp_path / "out").exists()
    lm_without_end = tiny_lm()
    lm_without_end.tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no end token"):
        tokenize_examples(lm_without_end, ROWS, 128)


# Settings


def test_presets() -> None:
    assert preset("reasoning") == PRESETS["reasoning"] == TrainingSettings()
    assert preset("reasoning").batch_size == 64 and preset("reasoning").learning_rate == 5e-5
    assert preset("safety").lora == LoraSettings(rank=16, alpha=32)
    with pytest.raises(UsageError, match=r"'reasonin' \(did you mean 'reasoning'\?\).*safety, embedded"):
        preset("reasonin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0}, "learning_rate must be above 0, not 0"),
        ({"epochs": -1}, "epochs must be above 0"),
        ({"batch_size": 5}, "batch_size 5 is no multiple of micro_batch_size 3"),
        ({"micro_batch_size": 0}, "micro_batch_size must be above 0"),
        ({"max_length": 0}, "max_length must be above 0"),
        ({"warmup_fraction": 1.5}, "warmup_fraction must be from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SETTINGS, **change)


# Checkpoints on disk


def test_trl_and_the_lean_loop_train_the_same_model(lm: LanguageModel, tmp_path: Path) -> None:
    lean = fine_tune(lm, ROWS, SETTINGS, tmp_path / "lean", trainer="lean")
    trl = fine_tune(lm, ROWS, SETTINGS, tmp_path / "trl")
    losses = {path: json.loads((path / "losses.json").read_text()) for path in (lean, trl)}
    assert len(losses[lean]) == len(losses[trl]) == 4
    # The same sums in another order of rows: float32 leaves about six digits.
    assert losses[trl] == pytest.approx(losses[lean], rel=1e-4)
    base, a, b = (state(load_model(path, device="cpu").model) for path in (lm.name, lean, trl))
    for name in base:
        moved, apart = (a[name] - base[name]).abs(), (a[name] - b[name]).abs()
        # Adam makes a full step of entries whose gradient is all rounding, so single entries may differ, few do.
        assert moved.mean() > 1e-4 and apart.mean() < 0.01 * moved.mean(), name


@pytest.mark.parametrize("trainer", ["trl", "lean"])
def test_a_checkpoint_is_ordinary_complete_and_not_made_twice(lm: LanguageModel, tmp_path: Path, trainer: str) -> None:
    before = state(lm.model)
    settings = replace(SETTINGS, epochs=1)
    out = fine_tune(lm, ROWS, settings, tmp_path / "out", trainer=trainer)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "losses.json", "manifest.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))] and "checkpoints" not in names
    config = json.loads((out / "config.json").read_text())
    assert config.get("use_cache", True) is True
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["rows"], manifest["base"]) == (6, lm.name)
    assert manifest["final_loss"] == json.loads((out / "losses.json").read_text())[-1]
    tuned = load_model(out, device="cpu")
    assert tuned.tokenizer_fingerprint == lm.tokenizer_fingerprint
    assert equal(before, state(lm.model)), "the base in memory is not touched"
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    fine_tune(lm, ROWS, settings, out, trainer=trainer)
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    fine_tune(lm, ROWS[::-1], settings, out, trainer=trainer)
    assert (out / "model.safetensors").stat().st_mtime_ns != stamp, "other rows are another model"


def test_trl_prints_nothing(lm: LanguageModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fine_tune(lm, ROWS, replace(SETTINGS, epochs=2), tmp_path / "out")
    assert capfd.readouterr().out == ""


def test_trl_reads_a_chat_template_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TRL trains on is what the lean loop trains on: one `<s>`, one `</s>`, the loss from the response on."""
    import trl

    seen: list[tuple[list[int], list[int]]] = []
    step = trl.SFTTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        kept = inputs["attention_mask"].bool()
        for ids, labels, mask in zip(inputs["input_ids"], inputs["labels"], kept, strict=True):
            seen.append((ids[mask].tolist(), labels[mask].tolist()))
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", spy)
    lm = tiny_lm(template=TEMPLATE)
    fine_tune(lm, ROWS, replace(SETTINGS, epochs=1), tmp_path / "out")
    expected = [
        (e.prompt_ids + e.response_ids, [-100] * len(e.prompt_ids) + e.response_ids)
        for e in tokenize_examples(lm, ROWS, 128)
    ]
    assert sorted(seen) == sorted(expected)


def test_trl_goes_on_from_its_last_checkpoint(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl

    settings = replace(SETTINGS, batch_size=2, micro_batch_size=2, epochs=4)  # 12 steps, a checkpoint after each
    whole = fine_tune(lm, ROWS, settings, tmp_path / "whole")
    steps: list[float] = []
    training_step = trl.SFTTrainer.training_step
    kill_at = [11]  # while checkpoint-10 stands: its name sorts before checkpoint-9
    checkpoints = tmp_path / "out.partial" / "checkpoints"

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 9:
            shutil.copytree(checkpoints / "checkpoint-9", tmp_path / "checkpoint-9")
        if self.state.global_step + 1 == kill_at[0]:
            raise KeyboardInterrupt
        steps.append(self.state.global_step)
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(trl.SFTTrainer, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(lm, ROWS, settings, tmp_path / "out")
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-10"]
    # What a kill may leave: an older checkpoint not yet removed, and one begun and not finished.
    (tmp_path / "checkpoint-9").rename(checkpoints / "checkpoint-9")
    (checkpoints / "checkpoint-11").mkdir()
    kill_at[0], n_before = 99, len(steps)
    out = fine_tune(lm, ROWS, settings, tmp_path / "out")
    assert steps[n_before:] == [10, 11], "only what was missing is trained"
    assert json.loads((out / "losses.json").read_text()) == json.loads((whole / "losses.json").read_text())
    assert equal(state(load_model(out, device="cpu").model), state(load_model(whole, device="cpu").model))


def test_trl_reports_a_diverged_run(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(SkillbasisError, match=r"diverged.*lower the learning rate \(1e\+30\)"):
        fine_tune(lm, ROWS, replace(SETTINGS, learning_rate=1e30, warmup_fraction=0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lora_leaves_an_adapter_that_loads(lm: LanguageModel, saved: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = replace(SETTINGS, learning_rate=2e-2, epochs=10, lora=LoraSettings(rank=4, alpha=8, dropout=0.0))
    torch.rand(7)
    out = fine_tune(lm, ROWS, settings, tmp_path / "out")
    assert {"adapter_model.safetensors", "adapter_config.json", "manifest.json"} <= {p.name for p in out.iterdir()}
    assert not (out / "model.safetensors").exists() and not list(out.glob("*.bin"))
    ids = torch.tensor([lm.tokenizer("what is three?\nthree")["input_ids"]])
    with torch.inference_mode():
        base = lm.model(ids).logits
        by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved), out).eval()(ids).logits
        by_transformers = AutoModelForCausalLM.from_pretrained(out).eval()(ids).logits
    torch.testing.assert_close(by_peft, by_transformers)
    assert (by_peft - base).abs().max() > 0.1
    losses = json.loads((out / "losses.json").read_text())
    assert losses[0] == pytest.approx(loss_by_hand(lm, ROWS), rel=1e-4), "an adapter starts as nothing"
    assert losses[-1] < losses[0] - 0.5
    # The adapter's random start is seeded too.
    torch.rand(11)
    again = fine_tune(lm, ROWS, settings, tmp_path / "again")
    assert json.loads((again / "losses.json").read_text()) == losses


def test_fine_tune_requests_that_cannot_be_meant(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'tlr'.*trl, lean"):
        fine_tune(lm, ROWS, SETTINGS, tmp_path / "out", trainer="tlr")
    with pytest.raises(UsageError, match="no rows"):
        fine_tune(lm, [], SETTINGS, tmp_path / "out")
    assert math.isfinite(loss_by_hand(lm, ROWS)) and not list(tmp_path.iterdir())


# What a run is made of


def test_presets_are_the_paper_s() -> None:
    reasoning, safety = PRESETS["reasoning"], PRESETS["safety"]
    assert (reasoning.learning_rate, reasoning.epochs, reasoning.warmup_fraction) == (5e-5, 1, 0.1)
    assert (reasoning.micro_batch_size, reasoning.accumulation_steps(1)) == (2, 32)
    assert (reasoning.max_length, reasoning.bf16, reasoning.lora) == (8000, True, None)
    assert (safety.learning_rate, safety.lora) == (1e-4, LoraSettings(rank=16, alpha=32, dropout=0.05))


@pytest.mark.parametrize(
    ("change", "words"), [({"rank": 0}, "rank of LoRA must be above 0"), ({"dropout": 1.0}, "below 1, not 1.0")]
)
def test_adapters_that_cannot_be_meant(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LoraSettings(**change)


SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("family", "names"),
    [
        *((family, SEVEN) for family in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "qwen2_moe")),
        ("phi3", ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]),
        ("gpt2", ["c_attn", "c_fc", "c_proj"]),
        ("gpt_neox", ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]),
        ("mixtral", ["k_proj", "o_proj", "q_proj", "v_proj"]),
    ],
)
def test_adapters_are_put_on_the_projections(loaded: Any, family: str, names: list[str]) -> None:
    """On all of attention and MLP, on every block; on no router and not on the language-modelling head."""
    import copy

    from peft import get_peft_model

    lm = loaded(family)
    assert projections(lm) == names
    adapted = get_peft_model(copy.deepcopy(lm.model), lora_config(lm, LoraSettings(rank=2, alpha=4)))
    modules = [name for name, module in adapted.named_modules() if getattr(module, "lora_A", None)]
    assert {name.rsplit(".", 1)[-1] for name in modules} == set(names)
    per_block = [sum(f".{block}." in name for name in modules) for block in range(len(lm.blocks))]
    assert len(set(per_block)) == 1 and sum(per_block) == len(modules)


def test_rows_are_filled_up_to_whole_batches_without_loss(lm: LanguageModel) -> None:
    examples = tokenize_examples(lm, ROWS[:5], 128)
    data = _whole_batches(examples, 4, 0)
    assert data["input_ids"] == [e.prompt_ids + e.response_ids for e in examples] + [[0]] * 3
    assert data["labels"] == [[-100] * len(e.prompt_ids) + e.response_ids for e in examples] + [[-100]] * 3
    assert len(_whole_batches(examples[:4], 4, 0)) == 4


def test_fillers_teach_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    """Five rows in a batch of six: one step a whole epoch, as of five rows alone."""
    settings = replace(SETTINGS, epochs=3)
    out = fine_tune(lm, ROWS[:5], settings, tmp_path / "filled")
    alone = fine_tune(lm, ROWS[:5], replace(settings, batch_size=5, micro_batch_size=5), tmp_path / "alone")
    losses = [json.loads((path / "losses.json").read_text()) for path in (out, alone)]
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] == pytest.approx(loss_by_hand(lm, ROWS[:5]), rel=1e-5)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, alpha=4, dropout=0.1)])
def test_in_place_trains_the_same_and_copies_nothing(saved: Path, tmp_path: Path, lora: LoraSettings | None) -> None:
    settings = replace(SETTINGS, lora=lora)
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    one, other = load_model(saved, device="cpu"), load_model(saved, device="cpu")
    before = state(one.model)
    copied = fine_tune(one, ROWS, settings, tmp_path / "copied")
    assert equal(before, state(one.model))
    used = fine_tune(other, ROWS, settings, tmp_path / "used", in_place=True)
    assert (used / name).read_bytes() == (copied / name).read_bytes()
    assert not equal(before, state(other.model)), "it was not trained on a copy"


def test_the_checkpoint_is_in_the_precision_of_the_base(saved: Path, tmp_path: Path) -> None:
    """Trained in float32, or the steps would round away; saved in bfloat16, as the base was."""
    from safetensors.torch import load_file

    out = fine_tune(load_model(saved, dtype="bfloat16", device="cpu"), ROWS, SETTINGS, tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    exact = load_model(saved, dtype="bfloat16", device="cpu")
    exact.model.float()
    whole = load_file(fine_tune(exact, ROWS, SETTINGS, tmp_path / "exact") / "model.safetensors")
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32}
    assert equal({name: tensor.bfloat16() for name, tensor in whole.items()}, load_file(out / "model.safetensors"))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied(tmp_path: Path, tied: bool) -> None:
    from safetensors.torch import load_file

    tuned = fine_tune(tiny_lm(tie_word_embeddings=tied), ROWS, SETTINGS, tmp_path / "out")
    assert ("lm_head.weight" in load_file(tuned / "model.safetensors")) is not tied
    model = load_model(tuned, device="cpu").model
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


@pytest.mark.slow
def test_a_run_killed_outright_is_gone_on_with(lm: LanguageModel, saved: Path, tmp_path: Path) -> None:
    """SIGKILL between two steps, in a process of its own."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": prompt, "response": response}) for prompt, response in ROWS))
    # Adapters with dropout: the random numbers go on where they stopped, too.
    options = ["--epochs", "4", "--batch-size", "2", "--micro-batch-size", "1", "--lr", "2e-3"]
    options += ["--lora-rank", "2", "--lora-dropout", "0.3"]
    command = [sys.executable, Path(__file__).with_name("launched.py"), "train", rows, "--model", saved]
    killed = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "out"), *options],
        env=os.environ | {"TEST_KILL_AT": "8"},
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "out").exists(), killed.stderr[-2000:]
    assert (tmp_path / "out.partial" / "checkpoints" / "checkpoint-7").exists()
    adapters = LoraSettings(rank=2, dropout=0.3)
    settings = TrainingSettings(
        learning_rate=2e-3, epochs=4.0, batch_size=2, micro_batch_size=1, max_length=8000, lora=adapters
    )
    work = os.stat(tmp_path / "out.partial").st_ino
    out = fine_tune(lm, ROWS, settings, tmp_path / "out")
    whole = fine_tune(lm, ROWS, settings, tmp_path / "whole")
    assert os.stat(out).st_ino == work, "the work begun was used"
    assert (out / "losses.json").read_bytes() == (whole / "losses.json").read_bytes()
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()


# A model that is used at once


@pytest.mark.parametrize("trainer", ["lean", "trl"])
def test_a_tuned_model_comes_in_memory_or_by_way_of_a_checkpoint(
    lm: LanguageModel, trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skillbasis.train import fine_tuned, sft

    asked = []

    def in_memory(*given: Any) -> tuple[str, list[float]]:
        asked.append(("lean", *given))
        return "tuned", [2.0]

    def on_disk(*given: Any, trainer: str) -> Path:
        asked.append((trainer, *given[:3]))
        (given[3]).mkdir()
        (given[3] / "losses.json").write_text("[1.0]")
        return given[3]  # type: ignore[no-any-return]

    monkeypatch.setattr(sft, "fine_tune_in_memory", in_memory)
    monkeypatch.setattr(sft, "fine_tune", on_disk)
    monkeypatch.setattr(sft, "load_model", lambda path, dtype: ("loaded", path, dtype))
    found = fine_tuned(lm, ROWS, SETTINGS, tmp_path / "model", trainer=trainer)
    assert asked == [(trainer, lm, ROWS, SETTINGS)]
    loaded = ("loaded", tmp_path / "model", "float32"), [1.0]
    assert found == (("tuned", [2.0]) if trainer == "lean" else loaded)
    with pytest.raises(UsageError, match="unknown trainer"):
        fine_tuned(lm, ROWS, SETTINGS, tmp_path / "other", trainer="lora")
