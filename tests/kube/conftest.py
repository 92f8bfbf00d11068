"""The chart, rendered once a session by each helm."""

from __future__ import annotations

import functools
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube.cases import CASES, Values
from tests.kube.emulator.kinds import Schemas
from tests.kube.emulator.server import Server, serving
from tests.kube.emulator.state import State
from tests.kube.schemas import Kubernetes
from tests.kube.tools import NEWEST, ROOT, NotFetchedError, Tools, fetched

CHART = ROOT / "deploy" / "helm" / "segue"
HELM_SECONDS = 60
Object = dict[str, Any]


@functools.cache
def _tools() -> Tools | str:
    try:
        return fetched()
    except NotFetchedError as error:
        return f"helm, kubectl and Kubernetes' schemas are not here and can't be fetched: {error}"


@pytest.fixture(scope="session")
def tools() -> Tools:
    found = _tools()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def schemas(tools: Tools) -> Schemas:
    return Schemas(tools)


@pytest.fixture
def emulator(tools: Tools, schemas: Schemas) -> Iterator[Server]:
    """An API server of this test's own, which has to have had no error in itself."""
    with serving(State(schemas, Kubernetes(tools, NEWEST))) as server:
        yield server
    assert not server.failures
    assert not [each.name for each in threading.enumerate() if "process_request" in each.name], "threads left behind"


class Chart:
    """Renders the chart with one helm."""

    def __init__(self, helm: Path, folder: Path) -> None:
        self._helm = helm
        self._folder = folder
        self._rendered: dict[str, list[Object]] = {}

    def run(self, *arguments: str, values: Values | None = None) -> subprocess.CompletedProcess[str]:
        """helm's own word. It gets no cluster and none of this user's settings."""
        home = str(self._folder)
        environment = {"HOME": home, "KUBECONFIG": "/dev/null", "HELM_CACHE_HOME": home, "HELM_CONFIG_HOME": home}
        command = [str(self._helm), *arguments]
        if values is not None:
            file = self._folder / f"values-{abs(hash(json.dumps(values, sort_keys=True)))}.json"
            file.write_text(json.dumps(values), encoding="utf-8")
            command += ["--values", str(file)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HELM_SECONDS)

    def template(self, values: Values, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("template", "r", str(CHART), "--namespace", "llm", *arguments, values=values)

    def refusal(self, values: Values) -> str:
        """What helm says to values that it must not take."""
        done = self.template(values)
        assert done.returncode, "these values were taken"
        return done.stderr

    def objects(self, case: str) -> list[Object]:
        """All that the case comes to."""
        if case not in self._rendered:
            done = self.template(CASES[case])
            assert not done.returncode, done.stderr
            documents = yaml.load_all(done.stdout, Loader=yaml.CSafeLoader)
            self._rendered[case] = [document for document in documents if document]
        return self._rendered[case]


@pytest.fixture(scope="session")
def charts(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Chart]:
    """By ``helm4`` or ``helm3``."""
    return functools.cache(lambda name: Chart(tools.helm(name), tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def chart(charts: Callable[[str], Chart]) -> Chart:
    return charts("helm4")


def of(objects: list[Object], kind: str, ending: str = "") -> Object:
    """The one object of that kind whose name ends so."""
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"].endswith(ending)]
    return found
