"""A skill basis: unit directions in activation space, with all that is needed to use them on the same model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import building, fingerprint, read_json, write_json, write_tensors, write_text
from ..errors import ArtifactError, UsageError
from ..lm import LanguageModel

KIND = "basis"


@dataclass(frozen=True)
class SkillBasis:
    """K directions over the concatenated outputs of some decoder blocks of one model."""

    directions: np.ndarray
    """(K, blocks, hidden) float32, unit norm over blocks x hidden, largest-magnitude coordinate positive."""
    mean: np.ndarray
    """(blocks, hidden) float32, mean activation of the corpus the basis was found on."""
    explained_variance: np.ndarray
    """(K,) float64, variance of the scores along each direction, in descending order of the fitted objective."""
    score_std: np.ndarray
    """(K,) float64, standard deviation of the scores over that corpus."""
    config: dict[str, Any]
    """Model identity, block ids, pooling, span, corpus fingerprint, method and its settings and residuals."""

    @property
    def n_components(self) -> int:
        return len(self.directions)

    @property
    def block_ids(self) -> list[int]:
        return list(self.config["block_ids"])

    @property
    def mean_scores(self) -> np.ndarray:
        """(K,) float64: mean · v_k, which turns centred scores into uncentred ones."""
        flat = self.directions.reshape(self.n_components, -1).astype(np.float64)
        return flat @ self.mean.reshape(-1).astype(np.float64)

    @property
    def fingerprint(self) -> str:
        """Identifies the basis by its numbers, to the last bit, and its model."""
        arrays = (self.directions, self.mean, self.explained_variance, self.score_std)
        return fingerprint([self.config, *(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays)])

    def transform(self, activations: np.ndarray) -> np.ndarray:
        """Scores of activations.

        Args:
            activations: (n_rows, blocks, hidden) or (n_rows, blocks * hidden).
        Returns: (n_rows, K) float64, (x - mean) · v_k.
        """
        flat = activations.reshape(len(activations), -1) - self.mean.reshape(-1)
        return (flat @ self.directions.reshape(self.n_components, -1).T).astype(np.float64)  # type: ignore[no-any-return]

    def check_model(self, lm: LanguageModel) -> None:
        """Refuses a model the basis was not found on.

        Raises: ArtifactError: naming what differs.
        """
        self._check_identity(lm.identity)

    def check_activations(self, manifest: dict[str, Any]) -> None:
        """Refuses activations that are not made like those of the basis.

        Args:
            manifest: how they are made.
        Raises: ArtifactError: naming what differs.
        """
        self._check_identity(manifest)
        for key in ("block_ids", "pooling", "span", "template_fingerprint"):
            if manifest[key] != self.config[key]:
                raise ArtifactError(
                    f"activations and basis do not belong together: {key} is {manifest[key]} of the activations and "
                    f"{self.config[key]} in the basis; extract again with the settings of the basis"
                )

    def _check_identity(self, other: dict[str, Any]) -> None:
        for key in ("model_type", "hidden_size", "n_blocks", "weights_fingerprint"):
            if self.config[key] != other[key]:
                raise ArtifactError(
                    f"the basis was found on model {self.config['model']!r} ({key} {self.config[key]}), not on "
                    f"{other['model']!r} ({key} {other[key]}); give that model, or discover a basis of this one"
                )

    def check_direction(self, direction: int) -> None:
        """Raises: UsageError: when the basis has no such direction."""
        if not 0 <= direction < self.n_components:
            raise UsageError(f"direction {direction} does not exist; the basis has 0 to {self.n_components - 1}")

    def save(self, path: str | Path) -> None:
        """Writes `config.json`, `basis.safetensors` and a model card; complete or absent."""
        path = Path(path)
        with building(path, KIND, {"basis": self.fingerprint}, {}) as work:
            tensors: dict[str, np.ndarray] = {
                "directions": self.directions.astype(np.float32),
                "mean": self.mean.astype(np.float32),
                "explained_variance": self.explained_variance.astype(np.float64),
                "score_std": self.score_std.astype(np.float64),
                "mean_scores": self.mean_scores,
            }
            write_tensors(work / "basis.safetensors", tensors)
            write_json(work / "config.json", self.config)
            write_text(work / "README.md", self._card())

    def _card(self) -> str:
        config, shares = self.config, self.config["explained_variance_ratio"]
        rows = "\n".join(
            f"| {i} | {variance:.4g} | {share:.2%} |"
            for i, (variance, share) in enumerate(zip(self.explained_variance, shares, strict=True))
        )
        return (
            f"# Skill basis of {config['model']}\n\n"
            f"{self.n_components} unit directions in the outputs of decoder blocks {config['block_ids']} "
            f"(hidden size {config['hidden_size']}), pooled by {config['pooling']} over the tokens of "
            f"`{config['span']}`, found by {config['method']} on {config['rows']} rows of {config['corpus']}.\n\n"
            f"| direction | variance | share |\n|---|---|---|\n{rows}\n\n"
            "Load it with `skillbasis.SkillBasis.load(path)`; it is valid for this model only "
            f"(weights fingerprint `{config['weights_fingerprint']}`).\n"
        )

    @classmethod
    def load(cls, path_or_hub_id: str | Path) -> SkillBasis:
        """Reads a basis from a directory, or from the hub when no such directory exists.

        Raises: UsageError: nothing there, here or on the hub. ArtifactError: missing or damaged files.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = Path(path_or_hub_id)
        if not path.exists() and str(path_or_hub_id).count("/") == 1 and not str(path_or_hub_id).startswith("."):
            path = _download(str(path_or_hub_id))
        if not (path / "basis.safetensors").exists():
            raise UsageError(f"there is no basis at {path}; make one with skillbasis discover, or check the path")
        try:
            tensors = load_file(path / "basis.safetensors")
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path / 'basis.safetensors'} is damaged ({error}); discover it again") from error
        missing = {"directions", "mean", "explained_variance", "score_std"} - tensors.keys()
        if missing:
            raise ArtifactError(f"{path / 'basis.safetensors'} lacks {', '.join(sorted(missing))}; give a basis")
        return cls(
            directions=tensors["directions"],
            mean=tensors["mean"],
            explained_variance=tensors["explained_variance"],
            score_std=tensors["score_std"],
            config=read_json(path / "config.json"),
        )

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Uploads the basis as a model repository; returns its address. The token comes from the hub's own login."""
        import tempfile

        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "basis")
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=Path(folder) / "basis"))


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UsageError(
            f"there is no directory {repo_id} here, and it could not be fetched from the hub; check the path"
        ) from error


def fix_signs(directions: np.ndarray) -> np.ndarray:
    """Turns each direction so that its largest-magnitude coordinate is positive. (K, features) in and out."""
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    return directions * np.where(signs == 0, 1, signs)[:, None]
