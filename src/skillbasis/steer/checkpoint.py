"""A model checkpoint as it lies on the disk: its configuration, and where each weight is, without loading any."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import read_json
from ..errors import ArtifactError, UsageError
from ..lm import resolve

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# The last matrix of an MLP under its name in the architectures of transformers; the number in front is the block's.
_DOWN_PROJECTION = re.compile(
    r"^(?P<list>(?:.+\.)?)(?P<block>\d+)\."
    r"(?P<module>mlp\.(?:down_proj|dense_4h_to_h|c_proj|fc2|fc_out)|feed_forward\.w2|fc2)"
    r"\.weight$"
)
_BLOCK_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # others keep their short name
_HEADER_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Entry:
    """One weight in a safetensors file."""

    dtype: str
    """`float32`, `bfloat16`, `float16`, ...; other types of numbers under the format's short name (`F8_E4M3`)."""
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte in the file."""
    end: int
    """Offset behind its last byte in the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A directory with `config.json` and weights in safetensors, of which nothing is in memory but the headers."""

    name: str
    """What the user named: a directory, a hub id, or `embedded`."""
    path: Path
    """Its directory: the hub's snapshot on this disk for a hub id."""
    config: Mapping[str, Any]
    """`config.json` as it is written, with nothing filled in."""
    files: Mapping[str, Path]
    """Name of a weight -> the safetensors file it is in."""

    @classmethod
    def open(cls, name: str | Path, *, revision: str | None = None) -> Checkpoint:
        """Reads configuration, index and headers.

        Args:
            name: a local directory, `embedded`, or a hub id, whose files are downloaded where they are not yet here.
            revision: hub revision.
        Raises: UsageError: no such model, none in safetensors, quantised, a LoRA adapter, or one that needs code of
            its own. ArtifactError: a file is damaged or missing.
        """
        path = _directory(str(name), revision)
        if not (path / "config.json").is_file():
            raise UsageError(_not_whole(path, name))
        config = read_json(path / "config.json")
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise ArtifactError(f"{path / 'config.json'} names no model_type; get this checkpoint anew")
        if config.get("quantization_config") is not None:
            raise UsageError(
                f"model {str(name)!r} is quantised, and its weights cannot be read as numbers; give the checkpoint it "
                "was quantised from"
            )
        if config.get("auto_map"):
            raise UsageError(
                f"model {str(name)!r} comes with code of its own (auto_map in config.json), which is not run; give a "
                "checkpoint of an architecture in transformers"
            )
        return cls(str(name), path, config, _weight_files(path, name))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all weights, in the order of the index."""
        return tuple(self.files)

    @property
    def shards(self) -> tuple[Path, ...]:
        """The files that hold the weights, in order of name."""
        return tuple(sorted(set(self.files.values())))

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the configuration that is the text decoder's; all of it for most models."""
        return self.config.get("text_config") or self.config

    @property
    def n_blocks(self) -> int:
        """Number of decoder blocks. Raises: UsageError: the configuration does not say."""
        for key in _BLOCK_COUNTS:
            if isinstance(self.text_config.get(key), int):
                return int(self.text_config[key])
        raise UsageError(
            f"config.json of {self.name!r} gives no number of decoder blocks (looked for {', '.join(_BLOCK_COUNTS)}); "
            "give a decoder model"
        )

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        headers = {path: read_header(path) for path in self.shards}
        for name, path in self.files.items():
            if name not in headers[path]:
                raise ArtifactError(f"{path} lacks the weight {name} that the index says is there; get it anew")
        return {name: headers[path][name] for name, path in self.files.items()}

    def entry(self, name: str) -> Entry:
        """Where a weight lies in its file, and what it is. Raises: UsageError: there is no such weight."""
        if name not in self.files:
            raise UsageError(f"model {self.name!r} has no weight {name}; it has {len(self.files)} others")
        return self._entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entry(name).shape

    def dtype(self, name: str) -> str:
        """`float32`, `bfloat16`, `float16`, ... as in the file."""
        return self.entry(name).dtype

    def tensor(self, name: str) -> torch.Tensor:
        """One weight, mapped from its file: what is not touched is not read, and nothing else is."""
        from safetensors import SafetensorError, safe_open

        self.entry(name)
        try:
            with safe_open(self.files[name], framework="pt") as file:
                return file.get_tensor(name)  # type: ignore[no-any-return]
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{self.files[name]} is damaged ({error}); get it anew") from error

    def down_projections(self) -> dict[int, str]:
        """The last matrix of each decoder block's MLP.

        Returns: by 0-based block, in order, the module's name in the files, such as `model.layers.3.mlp.down_proj`,
            `gpt_neox.layers.3.mlp.dense_4h_to_h` or `transformer.h.3.mlp.c_proj`; its weight is `NAME.weight`.
        Raises: UsageError: there is not one in every block, as in mixtures of experts.
        """
        found: dict[tuple[str, str], dict[int, str]] = {}
        for name in self.names:
            if match := _DOWN_PROJECTION.match(name):
                kind = match["list"], match["module"]
                found.setdefault(kind, {})[int(match["block"])] = name.removesuffix(".weight")
        blocks = list(range(self.n_blocks))
        fitting = [modules for modules in found.values() if sorted(modules) == blocks]
        if len(fitting) != 1:
            seen = ", ".join(f"{kind[0]}N.{kind[1]} in {len(modules)} blocks" for kind, modules in found.items())
            raise UsageError(
                f"model {self.name!r} (model type {self.config['model_type']!r}) has no single matrix that ends the "
                f"MLP of each of its {len(blocks)} blocks: saw {seen or 'none'}; steer it with hooks"
            )
        return {block: fitting[0][block] for block in blocks}


def read_header(path: Path) -> dict[str, Entry]:
    """Reads the header of a safetensors file and holds it against the file's length.

    Raises: ArtifactError: the file is missing, cut short or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - _HEADER_LENGTH_BYTES):
                raise ValueError("its header is cut short")
            header = json.loads(file.read(length))
        data = _HEADER_LENGTH_BYTES + length
        entries = {
            name: Entry(
                _DTYPES.get(value["dtype"], value["dtype"]),
                tuple(value["shape"]),
                data + value["data_offsets"][0],
                data + value["data_offsets"][1],
            )
            for name, value in header.items()
            if name != "__metadata__"
        }
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing from the checkpoint; get it anew") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); get it anew") from error
    if max((entry.end for entry in entries.values()), default=data) != size:
        raise ArtifactError(f"{path} is damaged (it is {size} bytes long, not what its header says); get it anew")
    return entries


def _directory(name: str, revision: str | None) -> Path:
    """The model's directory on this disk."""
    path = Path(resolve(name))
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"],
                ignore_patterns=["original/*", "consolidated*", "onnx/*"],
            )
        )
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(". ")
        raise UsageError(
            f"model {name!r} cannot be found: {reason}; give a model directory, a hub id, or 'embedded'"
        ) from error


def _weight_files(path: Path, name: str | Path) -> dict[str, Path]:
    """Name of every weight -> its file."""
    if (path / INDEX).is_file():
        index = read_json(path / INDEX)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places:
            raise ArtifactError(f"{path / INDEX} is damaged (it has no weight_map); get it anew")
        for file in places.values():
            if not isinstance(file, str) or Path(file).name != file:
                raise ArtifactError(f"{path / INDEX} is damaged (it names the file {file!r}); get it anew")
        if missing := sorted({file for file in places.values() if not (path / file).is_file()}):
            raise ArtifactError(f"{path / missing[0]} is missing from the checkpoint; get it anew")
        return {weight: path / file for weight, file in places.items()}
    if not (path / SINGLE).is_file():
        raise UsageError(_not_whole(path, name))
    return dict.fromkeys(read_header(path / SINGLE), path / SINGLE)


def _not_whole(path: Path, name: str | Path) -> str:
    """What to say of a directory that is no checkpoint."""
    if (path / "adapter_config.json").is_file():
        return f"{str(name)!r} is a LoRA adapter, not a whole model; bake with --merge, or give the merged model"
    if not (path / "config.json").is_file():
        return f"{str(name)!r} has no config.json, so it is no model; give a model directory"
    others = sorted({file.suffix for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf")})
    return (
        f"model {str(name)!r} has no weights in safetensors ({SINGLE} or {INDEX}"
        f"{', only ' + ' and '.join(others) if others else ''}); save it once more with save_pretrained of transformers"
    )
