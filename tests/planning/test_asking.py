"""What a plan reads of models that are on a hub: what isn't there, and what can't be had, are two things."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from orchestrator.core.errors import ModelSourceError
from orchestrator.core.planning.plan import Asked
from orchestrator.core.spec import ClusterSpec, ModelSpec, PoolSpec, Role
from orchestrator.planning.asking import INDEX, asked
from tests.planning.models import SMOLLM2_135M

MODEL = "somebody/some-model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG, WHOLE = "config.json", "model.safetensors"
INDEX_TEXT = json.dumps({"metadata": {"total_size": 269_030_016}})


class Hub:
    """A hub on this machine, with some files of one model, of which it refuses to give the ``refused`` ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {CONFIG: json.dumps(SMOLLM2_135M)}
        self.refused: tuple[str, ...] = ()
        self.asked: list[str] = []

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        file = path.removeprefix(f"/{MODEL}/resolve/main/")
        self.asked.append(file)
        if file in self.refused:
            return 403, b"", {}
        if file not in self.files:
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        return 200, self.files[file].encode(), {"X-Repo-Commit": COMMIT, "ETag": f'"{abs(hash(file)):040x}"'}

    def cached(self, file: str, content: bytes) -> None:
        """As a download leaves it."""
        (self.folder / f"models--{MODEL.replace('/', '--')}" / "snapshots" / COMMIT / file).write_bytes(content)

    def read(self) -> Asked:
        model = ModelSpec("m", MODEL, {Role.SERVE: PoolSpec(Role.SERVE)})
        return asked(ClusterSpec("c", (model,)), lambda _: None)["m"]

    @property
    def stored(self) -> int | None:
        return self.read().settings[Role.SERVE].stored_bytes


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, headers = found.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    found = Hub(tmp_path)
    address = f"http://127.0.0.1:{server.server_port}"
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    own = {"ENDPOINT": address, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(tmp_path)}
    for name, value in own.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def header(tensors: dict[str, object]) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def test_a_model_of_several_files_says_its_size_in_the_index(hub: Hub) -> None:
    hub.files[INDEX] = INDEX_TEXT
    assert hub.stored == 269_030_016


def test_what_was_fetched_needs_no_network(hub: Hub) -> None:
    hub.files[INDEX] = INDEX_TEXT
    first = hub.read()
    hub.asked.clear()
    assert hub.read() == first
    assert hub.asked == []


def test_a_model_of_one_file_has_no_index(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.stored is None
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.stored is None  # known from before


def test_an_index_that_can_not_be_had_is_an_error(hub: Hub) -> None:
    hub.refused = (INDEX,)
    with pytest.raises(ModelSourceError, match=INDEX):
        hub.read()


def test_an_index_that_is_no_json_is_an_error(hub: Hub) -> None:
    hub.files[INDEX] = "{"
    with pytest.raises(ModelSourceError, match="it can't be read"):
        hub.read()


def test_a_model_of_one_file_that_was_fetched_needs_no_index(hub: Hub) -> None:
    hub.refused = (INDEX,)
    with pytest.raises(ModelSourceError):
        hub.read()  # leaves config.json
    hub.cached(WHOLE, header({"a": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}}))
    assert hub.stored == 24


def test_a_repository_without_a_config_is_told(hub: Hub) -> None:
    del hub.files[CONFIG]
    with pytest.raises(ModelSourceError, match=r"the repository has no config\.json"):
        hub.read()
