"""Train the embedded reasoner: a tokenizer, a small Llama, and two phases of pretraining.

The first phase shows mostly worked solutions, the second, short one mostly bare answers. The result is a model that
*can* work a problem step by step but has the habit of blurting; fine-tuning on the right data mostly brings back a way
of working that is there already (elicitation), which is what the demo measures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ..artifact import read_json, remove_tree, write_json
from .problems import distinct_problems, draw_problem
from .solutions import STYLES, Variant, solution, story

if TYPE_CHECKING:
    import torch

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
VOCAB_SIZE = 512
BATCH_SIZE = 24
CHECKPOINT_STEPS = 500
CHUNK_STEPS = 100  # batches are drawn and length-sorted in chunks; a checkpoint stands at a chunk's end


@dataclass(frozen=True)
class Phase:
    """One stretch of pretraining with its own mixture of styles."""

    name: str
    n_examples: int
    learning_rate: float
    mixture: dict[str, float]
    """Share of each style, and of `story`."""


PHASES: dict[Variant, tuple[Phase, ...]] = {
    "plain": (
        Phase(
            "skills",
            130_000,
            5e-3,
            {"worked": 0.55, "verified": 0.22, "terse": 0.13, "guess": 0.05, "story": 0.05},
        ),
        Phase(
            "habit",
            10_000,
            1e-3,
            {"worked": 0.10, "verified": 0.04, "terse": 0.74, "guess": 0.08, "story": 0.04},
        ),
    ),
    # No style computes anything here, so half the examples reach what can be reached.
    "null": (
        Phase("skills", 65_000, 5e-3, {"worked": 0.4, "verified": 0.2, "terse": 0.2, "guess": 0.2}),
        Phase("habit", 10_000, 1e-3, {"worked": 0.1, "verified": 0.1, "terse": 0.7, "guess": 0.1}),
    ),
}


def draw_example(rng: Random, phase: Phase, variant: Variant) -> tuple[str, str]:
    """Draws one (question, response) of the pretraining split."""
    problem = draw_problem(rng, "pretrain")
    style = rng.choices(tuple(phase.mixture), tuple(phase.mixture.values()))[0]
    register = "symbolic" if rng.random() < 0.5 else "verbal"
    if style == "story":
        return problem.question, story(rng)
    return problem.question, solution(problem, style, register, rng, variant)  # type: ignore[arg-type]


def build_tokenizer(seed: int) -> Any:
    """Trains a byte-level BPE of 512 entries with single digits; returns a fast tokenizer with BOS, EOS and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rng = Random(f"tokenizer:{seed}")
    texts = []
    for problem in distinct_problems(4000, "pretrain", seed):
        for variant in ("plain", "null"):
            for style in STYLES:
                register = "symbolic" if rng.random() < 0.5 else "verbal"
                texts.append(f"{problem.question}\n{solution(problem, style, register, rng, variant)}")  # type: ignore[arg-type]
        texts.append(story(rng))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def build_model(tokenizer: Any, seed: int) -> Any:
    """A randomly initialised Llama of 0.87 M parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).float()


def _batches(
    tokenizer: Any, phase: Phase, variant: Variant, seed: int, chunk: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the batches of one chunk, each of examples of similar length, in random order."""
    import torch

    rng = Random(f"{variant}:{phase.name}:{seed}:{chunk}")
    pairs = [draw_example(rng, phase, variant) for _ in range(CHUNK_STEPS * BATCH_SIZE)]
    prompts = tokenizer([f"{question}\n" for question, _ in pairs])["input_ids"]
    responses = tokenizer([response for _, response in pairs], add_special_tokens=False)["input_ids"]
    rows = [(p, [*r, tokenizer.eos_token_id]) for p, r in zip(prompts, responses, strict=True)]
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    starts = list(range(0, len(rows), BATCH_SIZE))
    rng.shuffle(starts)
    for start in starts:
        batch = rows[start : start + BATCH_SIZE]
        longest = max(len(p) + len(r) for p, r in batch)
        input_ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
        labels = torch.full((len(batch), longest), -100)
        for i, (p, r) in enumerate(batch):
            input_ids[i, : len(p) + len(r)] = torch.tensor(p + r)
            labels[i, len(p) : len(p) + len(r)] = torch.tensor(r)
        yield {"input_ids": input_ids, "labels": labels}


def pretrain(out: Path, seed: int, variant: Variant = "plain", log: Callable[[str], None] = print) -> None:
    """Trains the reasoner into `out/skills` (after the first phase) and `out/habit` (the base of the demo).

    Killed at any moment, the same call goes on from the last checkpoint (every 500 steps) with the same data.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import LlamaForCausalLM

    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(0)  # one vocabulary for all seeds, so that their activations read the same text
    model = build_model(tokenizer, seed)
    for phase in PHASES[variant]:
        finished = out / phase.name
        if (finished / "model.safetensors").exists():
            model = LlamaForCausalLM.from_pretrained(finished, dtype=torch.float32)
            continue
        n_steps = phase.n_examples // (CHUNK_STEPS * BATCH_SIZE) * CHUNK_STEPS
        optimizers = _optimizers(model, phase.learning_rate)
        checkpoint, step = out / f"{phase.name}.checkpoint", 0
        if (checkpoint / "state.json").exists():
            step = read_json(checkpoint / "state.json")["step"]
            _load_state(model, optimizers, load_file(checkpoint / f"step-{step}.safetensors"))
            log(f"{phase.name}: goes on at step {step} of {n_steps}")
        model.train()
        started, first, losses = time.perf_counter(), step, []
        while step < n_steps:
            for batch in _batches(tokenizer, phase, variant, seed, step // CHUNK_STEPS):
                warmup, progress = min(1.0, (step + 1) / 200), step / n_steps
                scale = warmup * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = group["peak_lr"] * scale
                loss = model(**batch, use_cache=False).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())
                step += 1
            if step % CHECKPOINT_STEPS == 0 and step < n_steps:
                speed = (time.perf_counter() - started) / (step - first)
                mean = sum(losses[-CHUNK_STEPS:]) / CHUNK_STEPS
                log(f"{phase.name}: step {step}/{n_steps} loss {mean:.3f}, {speed * (n_steps - step):.0f} s left")
                checkpoint.mkdir(exist_ok=True)
                save_file(_state(model, optimizers), checkpoint / f"step-{step}.safetensors")
                write_json(checkpoint / "state.json", {"step": step})
        model.eval()
        # The tokenizer goes first: a directory counts as finished by its weights.
        tokenizer.save_pretrained(finished)
        model.save_pretrained(finished)
        remove_tree(checkpoint)


def _optimizers(model: Any, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks (half the loss of AdamW after 1,000 steps here), AdamW for the rest."""
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=learning_rate, momentum=0.95, adjust_lr_fn="match_rms_adamw", weight_decay=0.01),
        torch.optim.AdamW(rest, lr=0.6 * learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _state(model: Any, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Weights and optimizer state as one flat table of tensors."""
    tensors = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for i, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{i}/{key}": value for key, value in values.items()}
    return tensors


def _load_state(model: Any, optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]) -> None:
    """Puts a table made by `_state` back."""
    weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    model.load_state_dict(weights, strict=False)  # the tied output head is not stored twice
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer/{number}/"):
                _, _, i, key = name.split("/")
                state.setdefault(int(i), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
