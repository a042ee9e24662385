"""TRL's prompt-completion data with lists of messages: the only form of it whose loss is on the response alone."""

from __future__ import annotations

from ...corpus_formats import Message
from .form import ExportFormat, response_message

ABOUT = """`prompt`: the turns before the response; `completion`: the response, one assistant turn. TRL's `SFTTrainer`
applies the tokenizer's chat template and puts the loss on the completion only. Its `max_length` is 1024 unless given:

```python
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

data = load_dataset("json", data_files="train.jsonl", split="train")
SFTTrainer(model="...", args=SFTConfig(output_dir="...", max_length=8000), train_dataset=data).train()
```"""


def columns(prompt: list[Message], response: str) -> dict[str, list[Message]]:
    return {"prompt": prompt, "completion": [response_message(response)]}


TRL = ExportFormat("trl", columns, "prompt-response", ABOUT, ("trl",))
