"""Train a small language model on real mathematical text, to read real text with where no larger one is at hand.

    python benchmarks/reading_model.py --data ../shared/data --out runs/reading-model

A Llama of 4.6 M parameters (8 blocks of width 192, 4,096 byte-level tokens) learns half of the problems with their
solutions and model traces. The other half it never sees: that is what is read with it (`held_out` writes it). A problem
is in one half with all that is written about it. About half an hour on two cores; killed at any moment, the same
command goes on from the last checkpoint. It is no good at mathematics: it has the words and habits of the text, no
more, and what is said of its directions is said of such a model.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from skillbasis.artifact import atomic_path, write_json
from skillbasis.engine import machine

FILES = (
    "gsm8k/train.jsonl.gz",
    "math_train/with_solutions.jsonl.gz",
    "traces_skyt1/short_cot_qwen.jsonl.gz",
    "traces_qwen25/instruct_14b_and_math_7b.jsonl.gz",
    "traces_qwen25/instruct_32b_prompt_styles.jsonl.gz",
    "traces_gsm8k_gpt3/solutions.jsonl.gz",
)
CONTEXT = 512
N_TOKENS = 4096
MAX_CHARACTERS = 6000
"""Of each text, so that a few runaway ones do not fill the training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of local benchmarks and traces")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=1.0)
    options = parser.parse_args()
    held_out(options.data, options.out)
    train([text for name in FILES for text in texts(options.data / name, learned=True)], options.out, options.epochs)


def rows(path: Path, *, learned: bool) -> Iterator[dict[str, Any]]:
    """The rows of one half of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if (hashlib.sha256(row["problem"].encode()).digest()[0] % 2 == 0) == learned:
                yield row


def texts(path: Path, *, learned: bool) -> Iterator[str]:
    for row in rows(path, learned=learned):
        yield f"{row['problem']}\n{row.get('response') or row['solution']}"[:MAX_CHARACTERS]


def held_out(data: Path, out: Path) -> None:
    """Writes the other half as corpora: solutions with level and subject, and traces with model and correctness."""
    out.mkdir(parents=True, exist_ok=True)
    written = {"solutions": FILES[:2], "traces": FILES[2:]}
    for name, files in written.items():
        with atomic_path(out / f"{name}.jsonl") as path, path.open("w", encoding="utf-8") as file:
            for source in files:
                for row in rows(data / source, learned=False):
                    kept = {"id": f"{source.split('/')[0]}/{row['id']}", "source_file": source.split("/")[0]}
                    fields = ("problem", "answer", "level", "subject", "model", "correct", "problem_id", "prompt_style")
                    kept |= {field: row[field] for field in fields if row.get(field) is not None}
                    kept["solution"] = row.get("response") or row["solution"]
                    if isinstance(kept.get("level"), int):
                        kept["level"] = f"level {kept['level']}"
                    kept["labels"] = [str(kept[field]) for field in ("subject", "level") if field in kept]
                    file.write(json.dumps(kept, ensure_ascii=False) + "\n")


def train(documents: list[str], out: Path, epochs: float) -> None:
    import torch
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    tokenizer = build_tokenizer(documents)
    encoded = tokenizer([document + tokenizer.eos_token for document in documents])["input_ids"]
    order = np.random.default_rng(0).permutation(len(encoded))
    stream = np.concatenate([np.array(encoded[i]) for i in order])
    blocks = stream[: len(stream) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    print(f"{len(documents):,} texts, {len(stream):,} tokens")
    config = LlamaConfig(
        vocab_size=N_TOKENS,
        hidden_size=192,
        intermediate_size=528,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    settings = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=0.01,
        adam_beta2=0.95,
        logging_steps=25,
        save_steps=50,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
    )
    dataset = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    trainer = Trainer(model, settings, train_dataset=dataset.with_format("torch"))
    result = trainer.train(resume_from_checkpoint=any((out / "checkpoints").glob("checkpoint-*")))
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    facts = {"texts": len(documents), "tokens": len(stream), "loss": result.training_loss, "machine": machine()}
    write_json(out / "reading-model.json", facts | {"parameters": model.num_parameters()})


def build_tokenizer(documents: list[str]) -> Any:
    """A byte-level BPE with a beginning, an end and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=N_TOKENS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=2048
    )


if __name__ == "__main__":
    main()
