"""A skill basis: unit directions in activation space, with all that is needed to use them on the same model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import building, fingerprint, read_json, write_json, write_tensors, write_text
from ..errors import ArtifactError, UsageError
from ..lm import LanguageModel

KIND = "basis"
STABILITY = "stability"
"""Key of the configuration."""


@dataclass(frozen=True)
class SkillBasis:
    """K directions over the concatenated outputs of some decoder blocks of one model."""

    directions: np.ndarray
    """(K, blocks, hidden) float32, unit norm over blocks x hidden; of principal directions the largest-magnitude
    coordinate is positive, one of a sparse autoencoder points to where its latent is active."""
    mean: np.ndarray
    """(blocks, hidden) float32, mean activation of the corpus the basis was found on."""
    explained_variance: np.ndarray
    """(K,) float64, variance of the scores along each direction, in descending order of the fitted objective."""
    score_std: np.ndarray
    """(K,) float64, standard deviation of the scores over that corpus."""
    config: dict[str, Any]
    """Model identity, block ids, pooling, span, corpus fingerprint, method and its settings and residuals; and under
    `stability`, once measured, what `Stability.to_json` says."""
    score_covariance: np.ndarray | None = None
    """(K, K) float64, covariance of the scores over that corpus; None where they are uncorrelated, as those of
    principal directions are."""

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
        """Identifies the basis by its numbers, to the last bit, and its model; what is measured later changes nothing.

        Tables of scores name their basis by it, so they stay valid when its stability is recorded.
        """
        arrays = [self.directions, self.mean, self.explained_variance, self.score_std]
        arrays += [] if self.score_covariance is None else [self.score_covariance]
        config = {key: value for key, value in self.config.items() if key != STABILITY}
        return fingerprint([config, *(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays)])

    @property
    def block_scale(self) -> np.ndarray | None:
        """(blocks * hidden,) float64, the deviation of each block that its activations were divided by before the PCA.

        None where they were not divided (`normalize_blocks`).
        """
        if self.config.get("method") != "pca" or not self.config["settings"]["normalize_blocks"]:
            return None
        return np.repeat(np.asarray(self.config["block_rms"], dtype=np.float64), self.config["hidden_size"])

    @property
    def frame(self) -> np.ndarray:
        """(K, blocks * hidden) float64 unit rows: the directions in the units they were found in.

        These are the directions themselves, but for `normalize_blocks`: there a score is (x / s)·(s v) for block
        deviations s, and it is the vectors s v that are orthogonal and that angles are measured between.
        """
        flat = self.directions.reshape(self.n_components, -1).astype(np.float64)
        scaled = flat if self.block_scale is None else flat * self.block_scale
        return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)  # type: ignore[no-any-return]

    @property
    def stability(self) -> dict[str, Any] | None:
        """What was measured of its stability, as `Stability.to_json` wrote it; None where it was not measured.

        A record that was measured on other directions than these does not count.
        """
        record: dict[str, Any] | None = self.config.get(STABILITY)
        return record if record is not None and record["basis"] == self.fingerprint else None

    @property
    def unstable(self) -> tuple[int, ...]:
        """Directions found to be unstable; none where the stability was not measured (`stability` is None)."""
        record = self.stability
        return tuple(entry["direction"] for entry in record["directions"] if entry["unstable"]) if record else ()

    def caution(self, directions: Iterable[int]) -> str | None:
        """A sentence on those of the directions that are unstable; None if none is, or it was not measured."""
        found = sorted(set(directions) & set(self.unstable))
        if not found:
            return None
        named = f"direction {found[0]} is" if len(found) == 1 else f"directions {', '.join(map(str, found))} are"
        return f"{named} unstable: other rows of the same corpus may well give others (see 'skillbasis stability')"

    def with_stability(self, record: dict[str, Any]) -> SkillBasis:
        """The same basis with a record of its stability (`Stability.to_json`)."""
        return replace(self, config=self.config | {STABILITY: record})

    def transform(self, activations: np.ndarray) -> np.ndarray:
        """Scores of activations.

        Args:
            activations: (n_rows, blocks, hidden) or (n_rows, blocks * hidden).
        Returns: (n_rows, K) float64, (x - mean) · v_k.
        """
        flat = activations.reshape(len(activations), -1) - self.mean.reshape(-1)
        return (flat @ self.directions.reshape(self.n_components, -1).T).astype(np.float64)  # type: ignore[no-any-return]

    def combined_std(self, weights: np.ndarray) -> float:
        """Standard deviation of the weighted sum of the scores. Args: weights: (K,)."""
        covariance = np.diag(self.explained_variance) if self.score_covariance is None else self.score_covariance
        return float(np.sqrt(max(weights @ covariance @ weights, 0.0)))

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
            if self.score_covariance is not None:
                tensors["score_covariance"] = self.score_covariance.astype(np.float64)
            write_tensors(work / "basis.safetensors", tensors)
            write_json(work / "config.json", self.config)
            write_text(work / "README.md", self._card())

    def _card(self) -> str:
        config, shares = self.config, self.config["explained_variance_ratio"]
        stability = self._stability_cells()
        head = "| direction | variance | share |" + (" stability |" if stability else "")
        rows = "\n".join(
            f"| {i} | {variance:.4g} | {share:.2%} |" + (f" {stability[i]} |" if stability else "")
            for i, (variance, share) in enumerate(zip(self.explained_variance, shares, strict=True))
        )
        return (
            f"# Skill basis of {config['model']}\n\n"
            f"{self.n_components} unit directions in the outputs of decoder blocks {config['block_ids']} "
            f"(hidden size {config['hidden_size']}), pooled by {config['pooling']} over the tokens of "
            f"`{config['span']}`, found by {config['method']} on {config['rows']} rows of {config['corpus']}.\n\n"
            f"{head}\n{'|---' * (head.count('|') - 1)}|\n{rows}\n\n{self._overlap_words()}{self._stability_words()}"
            "Load it with `skillbasis.SkillBasis.load(path)`; it is valid for this model only "
            f"(weights fingerprint `{config['weights_fingerprint']}`).\n"
        )

    def _overlap_words(self) -> str:
        config = self.config
        if config.get("orthogonal", True):
            return ""
        words = "The directions are not orthogonal: their shares overlap and do not add up."
        if config["method"] == "sae":
            held, dictionary = config["held_out"], config["dictionary"]
            words += (
                f" They are the most important of {dictionary['size']} latents of a TopK sparse autoencoder "
                f"({dictionary['dead']} dead), which explains {held['explained_variance']:.1%} of the variance of "
                f"{held['rows']} held-out rows with at most {config['settings']['active']} latents a row; those kept "
                f"span {config['span_variance_ratio']:.1%} of the variance of all rows. A direction points to where "
                "its latent is active; its sign was not turned."
            )
        return f"{words}\n\n"

    def _stability_cells(self) -> list[str]:
        """A cell of the model card per direction; none where the stability was not measured."""
        entries = self.stability["directions"] if self.stability else []
        cells = []
        for entry in entries:
            cosine = entry["cosine"] or entry["half_cosine"]
            mark = ", unstable" if entry["unstable"] else ""
            cells.append(f"{cosine['median']:.3f} [{cosine['low']:.3f}, {cosine['high']:.3f}]{mark}")
        return cells

    def _stability_words(self) -> str:
        record = self.stability
        if record is None:
            return ""
        how = (
            f"{record['n_bootstrap']} bootstrap resamples of the rows (95 % percentile interval)"
            if record["n_bootstrap"]
            else f"{2 * record['n_repeats']} halves of the rows (range)"
        )
        return (
            f"Stability: median absolute cosine of the direction with its match in {how}; "
            f"unstable where the lower end is below {record['threshold']:g}.\n\n"
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
            score_covariance=tensors.get("score_covariance"),
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
