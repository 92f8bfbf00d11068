"""``python -m orchestrator.models.prefetch SOURCE``: all that an engine reads of a model, into this machine's cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from orchestrator.core.errors import ModelSourceError, SegueError
from orchestrator.core.source import SourceKind, kind_of
from orchestrator.models.prepare import prepare

# The same weights once more, in forms that no engine here loads.
OTHER_FORMS = ("original/*", "consolidated*", "*.pth", "*.pt", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.tflite")
PICKLED = "*.bin"


def unwanted(files: Iterable[str]) -> list[str]:
    """Patterns of a repository's files to leave out."""
    safe = any(file.endswith(".safetensors") for file in files)
    return [*OTHER_FORMS, PICKLED] if safe else list(OTHER_FORMS)


def prefetch(
    source: str,
    progress: Callable[[str], None],
    listed: Callable[[str], Iterable[str]] = list_repo_files,
    download: Callable[..., str] = snapshot_download,
) -> str:
    """The folder with the model. Raises ModelSourceError."""
    place = prepare(source, progress)
    if kind_of(source) is not SourceKind.HUGGING_FACE or place != source:
        return place
    progress(f"downloading {source}")
    try:
        return download(source, ignore_patterns=unwanted(listed(source)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        hint = "is the Hub reachable from here, and for gated models HF_TOKEN set?"
        reason = str(error).strip().partition("\n")[0]
        raise ModelSourceError(f"it can't be downloaded: {reason}", where=source, hint=hint) from error


def _tell(line: str) -> None:
    print(f"prefetch: {line}", flush=True)  # noqa: T201


def main() -> int:
    try:
        for source in sys.argv[1:]:
            _tell(f"{source} is in {prefetch(source, _tell)}")
    except SegueError as error:
        _tell(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
