"""An export as a data set on the Hub."""

from __future__ import annotations

from pathlib import Path

from ...artifact import read_manifest
from ...errors import UsageError
from .write import KIND


def push_dataset(path: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads an export as a data set repository; returns its address.

    The token is never an argument: it comes from the environment (`HF_TOKEN`) or the hub's own login.

    Raises: ArtifactError: `path` is no finished export. UsageError: there is no token.
    """
    from huggingface_hub import HfApi, get_token

    path = Path(path)
    read_manifest(path, KIND)
    if get_token() is None:
        raise UsageError("there is no token to upload with; set HF_TOKEN, or log in with 'hf auth login'")
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=path))
