"""Run by LLaMA-Factory's own Python: what it makes of an exported folder, as JSON on the last line of stdout.

Usage: python llamafactory_loader.py YAML MODEL, in the folder. The YAML goes through LLaMA-Factory's own reader of
settings, then its template and its loader of data.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types


def main(yaml_file: str, model: str) -> None:
    # torchaudio, which it imports for rows with sound, has no build for the CPU here.
    stand_in = types.ModuleType("torchaudio")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = stand_in

    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer
    from llamafactory.model.model_utils.misc import find_all_linear_modules
    from transformers import AutoModelForCausalLM

    sys.argv = ["llamafactory-cli", yaml_file, f"model_name_or_path={model}", "use_cpu=true"]
    model_args, data_args, training_args, finetuning_args, _ = get_train_args()
    modules = load_tokenizer(model_args)
    tokenizer = modules["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    data = get_dataset(template, model_args, data_args, training_args, stage="sft", **modules)["train_dataset"]
    network = AutoModelForCausalLM.from_pretrained(model)
    result = {
        "rows": [{"text": tokenizer.decode(r["input_ids"]), "learnt": learnt(tokenizer, r["labels"])} for r in data],
        "settings": {
            "learning_rate": training_args.learning_rate,
            "epochs": training_args.num_train_epochs,
            "micro_batch_size": training_args.per_device_train_batch_size,
            "accumulation_steps": training_args.gradient_accumulation_steps,
            "scheduler": str(training_args.lr_scheduler_type.value),
            "warmup": training_args.get_warmup_steps(1000),
            "bf16": training_args.bf16,
            "cutoff_len": data_args.cutoff_len,
            "finetuning_type": finetuning_args.finetuning_type,
            "output_dir": training_args.output_dir,
        },
        "lora": [finetuning_args.lora_rank, finetuning_args.lora_alpha, finetuning_args.lora_dropout],
        "lora_target": sorted(find_all_linear_modules(network, False)),
        "asked_target": finetuning_args.lora_target,
    }
    print(json.dumps(result))


def learnt(tokenizer: object, labels: list[int]) -> str:
    return tokenizer.decode([label for label in labels if label != -100])  # type: ignore[attr-defined, no-any-return]


if __name__ == "__main__":
    main(*sys.argv[1:])
