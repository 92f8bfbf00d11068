"""The HTTP side: discovery, objects, watches, on a port of loopback that nobody else has."""

from __future__ import annotations

import copy
import json
import re
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.kube.emulator import watching, wire
from tests.kube.emulator.access import Access
from tests.kube.emulator.kinds import KINDS, Kind
from tests.kube.emulator.patches import JSON_PATCH
from tests.kube.emulator.state import Key, Object, RefusedError, State
from tests.kube.emulator.watching import Query, wanted
from tests.kube.tools import NEWEST

PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
Hook = Callable[[str, str], None]


class LostError(Exception):
    """Raised by a hook: the client gets no answer, its connection is closed."""


class Server(ThreadingHTTPServer):
    """One of these is an API server with nothing in it but two namespaces.

    ``before`` and ``after`` are called with method and path around what a request does, in a thread of its own: they
    may wait, and raise RefusedError or LostError.
    """

    daemon_threads = False  # so that none is left behind when it is closed

    def __init__(self, state: State, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tls = tls is not None
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.state = state
        self.access = Access()
        self.before: Hook = lambda method, path: None
        self.after: Hook = lambda method, path: None
        self.failures: list[str] = []  # of the emulator itself: a test has to see them
        self._open: set[socket.socket] = set()
        for name in ("default", "llm"):
            with state.changed:
                state.create(
                    KINDS[0], "", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, "test"
                )

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def drop_all(self) -> None:
        """Breaks every connection."""
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def end_watches(self, *, dropping: bool = False) -> None:
        """Each as a server that has enough of it, or as a connection that breaks."""
        with self.state.changed:
            self.state.dropping = dropping
            self.state.era += 1
            self.state.changed.notify_all()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.server_address[1]}"

    def kubeconfig(self) -> str:
        cluster, context = {"server": self.url}, {"cluster": "emulator", "user": "test", "namespace": "llm"}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "emulator",
                "clusters": [{"name": "emulator", "cluster": cluster}],
                "users": [{"name": "test", "user": {}}],
                "contexts": [{"name": "emulator", "context": context}],
            }
        )


@contextmanager
def serving(state: State, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(state, tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.end_watches()
        server.drop_all()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait for 40 ms
    server: Server
    kinds: ClassVar = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}

    def log_message(self, *_: Any) -> None:
        pass

    def _go(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            answer = self._answer(url.path, query, body)
            if answer is not None:
                self._send(*answer)
        except RefusedError as refused:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}}
            words = {"message": str(refused), "reason": refused.reason, "code": refused.code}
            self._send(refused.code, status | words, refused.headers)
        except (LostError, OSError):
            self.close_connection = True
        except Exception:
            self.server.failures.append(f"{self.command} {self.path}\n{traceback.format_exc()}")
            self._send(
                500, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": "broken"}
            )

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _go  # noqa: N815 - http.server's names

    def _send(self, code: int, thing: Object | str, headers: dict[str, str] | None = None) -> None:
        body = (thing if isinstance(thing, str) else json.dumps(thing)).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(thing, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, path: str, query: Query, body: bytes) -> tuple[int, Object | str] | None:
        known = discovered(path)
        if known is not None:
            return 200, known
        parts = PATH.fullmatch(path)
        kind = parts and self.kinds.get((parts["group"] or "", parts["core"] or parts["version"], parts["plural"]))
        if not parts or not kind:
            raise RefusedError(404, "NotFound", "the server could not find the requested resource")
        key = (parts["namespace"] or "", parts["name"] or "")
        watch = self.command == "GET" and query.get("watch") in ("1", "true")
        agent = (self.headers.get("User-Agent") or "").partition("/")[0]
        self.server.access.know(self.headers.get("Authorization") or "")
        self.server.access.require(self.command, kind, key[0], key[1], agent, watch=watch)
        self.server.before(self.command, path)
        if watch:
            if key[1]:
                query["fieldSelector"] = f"metadata.name={key[1]}"
            return self._watch(kind, key[0], query)
        with self.server.state.changed:
            code, thing = self._carry_out(kind, key, parts["sub"] or "", query, self._decoded(body))
            thing = copy.deepcopy(thing)
        self.server.after(self.command, path)
        return code, thing

    def _decoded(self, body: bytes) -> Object:
        form = (self.headers.get("Content-Type") or "").partition(";")[0]
        if not body:
            return {}
        if form == "application/vnd.kubernetes.protobuf":
            return wire.decoded(body)
        if form == JSON_PATCH:
            return {"operations": json.loads(body)}
        return dict(yaml.safe_load(body) if "yaml" in form else json.loads(body))

    def _carry_out(self, kind: Kind, key: Key, sub: str, query: Query, body: Object) -> tuple[int, Object | str]:
        state, dry = self.server.state, "dryRun" in query
        manager = query.get("fieldManager") or (self.headers.get("User-Agent") or "").partition("/")[0]
        form = (self.headers.get("Content-Type") or "").partition(";")[0]
        if sub == "scale":
            if self.command != "GET":
                state.scale(kind, key, body["spec"]["replicas"], manager)
            return 200, scale_of(state.get(kind, key))
        if sub == "log":
            return 200, f"log of {state.get(kind, key)['metadata']['name']}\n"
        match self.command:
            case "GET" if key[1]:
                return 200, state.get(kind, key)
            case "GET":
                found = [each for _, each in sorted(state.things[kind].items()) if wanted(each, key[0], query)]
                meta = {"resourceVersion": str(state.version)}
                return 200, {
                    "kind": f"{kind.name}List",
                    "apiVersion": kind.api_version,
                    "metadata": meta,
                    "items": found,
                }
            case "POST":
                return 201, state.create(kind, key[0], body, manager, dry=dry)
            case "PUT":
                return 200, state.replace(kind, key, body, manager, dry=dry)
            case "PATCH":
                force = query.get("force") == "true"
                return 200, state.patch(kind, key, form, body, manager, force=force, dry=dry)
        return 200, state.delete(kind, key)

    def _watch(self, kind: Kind, namespace: str, query: Query) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        watching.stream(self.server.state, kind, namespace, query, self._chunk)
        if self.server.state.dropping:
            self.close_connection = True  # as a connection that breaks: without the end of its body
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, thing: Object) -> None:
        self.wfile.write(watching.line(thing))
        self.wfile.flush()


def scale_of(thing: Object) -> Object:
    meta = {name: thing["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
    count = {"replicas": thing["spec"]["replicas"]}
    return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": count, "status": count}


def discovered(path: str) -> Object | None:
    """What clients ask first: versions, groups, kinds and which parameters their patches take."""
    groups = sorted({(kind.group, kind.version) for kind in KINDS})
    if path in ("/version", "/version/"):
        major, minor = NEWEST.split(".")
        return {"major": major, "minor": minor, "gitVersion": f"v{NEWEST}.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        found = [
            {"groupVersion": f"{group}/{version}", "version": version, "name": group}
            for group, version in groups
            if group
        ]
        listed = [{"name": each.pop("name"), "versions": [each], "preferredVersion": each} for each in found]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    if path == "/openapi/v3":
        places = [f"apis/{group}/{version}" if group else "api/v1" for group, version in groups]
        return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}?hash=1"} for place in places}}
    if parts := re.fullmatch(r"(/openapi/v3)?/(?:api/v1|apis/([^/]+)/([^/]+))", path):
        kinds = [kind for kind in KINDS if (kind.group, kind.version) == (parts[2] or "", parts[3] or "v1")]
        if kinds:
            return _parameters(kinds) if parts[1] else _listed(kinds)
    return None


def _listed(kinds: list[Kind]) -> Object:
    found: list[Object] = []
    for kind in kinds:
        one = {"name": kind.plural, "singularName": kind.name.lower(), "namespaced": kind.namespaced, "kind": kind.name}
        found.append(one | {"shortNames": list(kind.short), "verbs": VERBS})
        for sub in kind.subresources:
            other = {"kind": "Scale", "group": "autoscaling", "version": "v1"} if sub == "scale" else {}
            found.append(one | {"name": f"{kind.plural}/{sub}", "verbs": ["get", "patch", "update"]} | other)
    version = kinds[0].api_version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": found}


def _parameters(kinds: list[Kind]) -> Object:
    names = ("dryRun", "fieldManager", "fieldValidation", "force")
    paths = {}
    for kind in kinds:
        gvk = {"group": kind.group, "version": kind.version, "kind": kind.name}
        parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
        operation = {"x-kubernetes-group-version-kind": gvk, "parameters": parameters, "responses": {}}
        base = f"/apis/{kind.group}/{kind.version}" if kind.group else "/api/v1"
        paths[f"{base}/{kind.plural}/{{name}}"] = {
            verb: operation | {"x-kubernetes-action": verb} for verb in ("get", "put", "patch", "delete")
        }
    info = {"title": "emulator", "version": NEWEST}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}
