"""``KubePort`` over Kubernetes' own Python client, and the only place that imports it.

Of that client its transport is used: addresses, certificates, the token and its renewal. Its models are not: half of
what is read here are kinds that it has none of, and objects that are written back must not lose what it doesn't know.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from orchestrator.controller.kube.ports import (
    Change,
    Expired,
    Kind,
    KubeConflict,
    KubeForbidden,
    KubeRefused,
    KubeUnreachable,
    Listing,
    Object,
    Operation,
)
from orchestrator.core.errors import ConfigError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_ANSWER = 10.0  # seconds for one request
_WATCH = 60.0  # seconds after which the server ends a watch: one whose connection is dead goes unnoticed for no longer
_MARGIN = 10.0  # seconds
_PAGE = 500  # objects of a list that are sent at a time
_PATCH = "application/json-patch+json"
_NO_PATCH = "the server rejected our request due to an error in our request"
_USER = re.compile(r'User "([^"]+)"')


class KubeClient:
    """Needs a running event loop. ``close`` gives its connections back."""

    def __init__(self, configuration: Configuration, namespace: str) -> None:
        self._api = ApiClient(configuration)
        self._api.user_agent = "segue"
        self._namespace = namespace

    @property
    def namespace(self) -> str:
        return self._namespace

    async def get(self, kind: Kind, name: str) -> Object | None:
        status, answer, _ = await self._ask("GET", kind, name)
        return None if status == 404 else answer

    async def list(self, kind: Kind, selector: str = "") -> Listing:
        items: list[Object] = []
        query = [("limit", str(_PAGE)), *([("labelSelector", selector)] if selector else [])]
        more = ""
        while True:
            page = [*query, ("continue", more)] if more else query
            status, answer, _ = await self._ask("GET", kind, query=page)
            if status == 404:
                raise KubeRefused(f"{kind.full} are no kind that this Kubernetes has", where=kind.api_version)
            items += answer.get("items") or ()
            more = answer["metadata"].get("continue", "")
            if not more:
                return Listing(tuple(items), answer["metadata"]["resourceVersion"])

    async def create(self, kind: Kind, body: Object) -> Object:
        return await self._written("POST", kind, "", body)

    async def patch(self, kind: Kind, name: str, operations: Sequence[Operation]) -> Object:
        try:
            return await self._written("PATCH", kind, name, [dict(each) for each in operations])
        except KubeRefused as error:
            # A `test` that fails is answered as any patch that can't be applied, but not as an object that is wrong.
            if _NO_PATCH in error.what and any(each["op"] == "test" for each in operations):
                raise KubeConflict("it is not what it was any more", where=error.where) from error
            raise

    async def replace(self, kind: Kind, body: Object) -> Object:
        return await self._written("PUT", kind, body["metadata"]["name"], body)

    async def watch(self, kind: Kind, selector: str, since: str) -> AsyncIterator[Change]:
        query = [("watch", "1"), ("resourceVersion", since), ("allowWatchBookmarks", "true")]
        query += [("timeoutSeconds", str(int(_WATCH)))] + ([("labelSelector", selector)] if selector else [])
        bound = aiohttp.ClientTimeout(total=None, sock_connect=_ANSWER, sock_read=_WATCH + _MARGIN)
        where = self._path(kind)
        try:
            response = await self._send("GET", kind, "", query, None, bound)
            try:
                if response.status != 200:
                    self._complain(response.status, await response.read(), kind, "watch", where, response.headers)
                async for line in _lines(response):
                    yield _change(line, kind)
            finally:
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(error, where) from error

    async def close(self) -> None:
        await self._api.close()

    async def _written(self, method: str, kind: Kind, name: str, body: object) -> Object:
        status, answer, raw = await self._ask(method, kind, name, body=body)
        if status == 404:
            self._refuse(404, raw, self._path(kind, name))
        return answer

    async def _ask(
        self,
        method: str,
        kind: Kind,
        name: str = "",
        query: Sequence[tuple[str, str]] = (),
        body: object = None,
    ) -> tuple[int, dict[str, Any], bytes]:
        """Status 200 to 299 with the object, or 404; all else is raised."""
        where = self._path(kind, name)
        try:
            response = await self._send(method, kind, name, query, body, aiohttp.ClientTimeout(total=_ANSWER))
            async with response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(error, where) from error
        if response.status == 404:
            return 404, {}, content
        if not 200 <= response.status < 300:
            verb = {"POST": "create", "PUT": "update", "PATCH": "patch"}.get(method, "get" if name else "list")
            self._complain(response.status, content, kind, verb, where, response.headers)
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise KubeUnreachable("what answers is no API server", where=where) from error
        _require_object(answer, where)
        return response.status, answer, content

    async def _send(
        self,
        method: str,
        kind: Kind,
        name: str,
        query: Sequence[tuple[str, str]],
        body: object,
        bound: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = _PATCH if method == "PATCH" else "application/json"
        try:
            serialized = await self._api.param_serialize(
                method=method,
                resource_path=self._path(kind, name),
                query_params=list(query),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
        except ConfigException as error:  # the token is read again now and then
            raise KubeUnreachable(f"this pod's token can't be read: {error}", where=self._path(kind, name)) from error
        answer = await self._api.call_api(*serialized, _request_timeout=bound)
        response: aiohttp.ClientResponse = answer.response
        return response

    def _path(self, kind: Kind, name: str = "") -> str:
        root = f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.api_version}"
        place = f"/namespaces/{quote(self._namespace)}" if kind.namespaced else ""
        return f"{root}{place}/{kind.plural}" + (f"/{quote(name)}" if name else "")

    def _complain(
        self, status: int, content: bytes, kind: Kind, verb: str, where: str, headers: Mapping[str, str]
    ) -> NoReturn:
        said = _said(content)
        if status == 401:  # not for long: a token is being exchanged, or a key of the server's
            hint = "is its token mounted, and of this cluster?"
            raise KubeUnreachable("the API server does not know this pod's ServiceAccount", where=where, hint=hint)
        if status == 403:
            raise self._forbidden(said, kind, verb)
        if status == 410:
            raise Expired(said or "that version is gone", where=where)
        if status == 409:
            raise KubeConflict(said or "somebody wrote it in between", where=where)
        if status == 429 or status >= 500:
            after = headers.get("Retry-After", "")
            wait = float(after) if after.isascii() and after.isdigit() else None
            raise KubeUnreachable(f"the API server answers {status}: {said}", where=where, retry_after=wait)
        self._refuse(status, content, where)

    def _refuse(self, status: int, content: bytes, where: str) -> NoReturn:
        raise KubeRefused(f"the API server answers {status}: {_said(content)}", where=where)

    def _forbidden(self, said: str, kind: Kind, verb: str) -> KubeForbidden:
        user = _USER.search(said)
        who = user[1] if user else "this pod's ServiceAccount"
        where = f"namespace {self._namespace}" if kind.namespaced else "the whole cluster"
        value = "kubernetes.enabled" if kind.namespaced else "kubernetes.readNodes"
        hint = f"the chart gives the right with {value}, to the ServiceAccount of the head's pod"
        return KubeForbidden(f"{who} may not {verb} {kind.full}", where=where, hint=hint)


def in_cluster(folder: Path | None = None) -> KubeClient:
    """By the token that is mounted into this pod, in ``folder`` if not where Kubernetes does so by itself.

    Raises ConfigError where there is none.
    """
    configuration = Configuration()
    folder = folder or Path(os.environ.get("SEGUE_KUBERNETES_ACCOUNT", ACCOUNT))
    try:
        loader = InClusterConfigLoader(token_filename=str(folder / "token"), cert_filename=str(folder / "ca.crt"))
        loader.load_and_set(configuration)
        namespace = (folder / "namespace").read_text(encoding="utf-8").strip()
    except (ConfigException, OSError) as error:
        hint = "--kubernetes is for a pod whose ServiceAccount's token is mounted (automountServiceAccountToken)"
        raise ConfigError(f"not in a pod of Kubernetes: {error}", where=str(folder), hint=hint) from error
    return KubeClient(configuration, namespace)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines, however long: an object is one."""
    rest = b""
    async for part in response.content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def _change(line: bytes, kind: Kind) -> Change:
    try:
        event = json.loads(line)
        if event["type"] != "ERROR":
            _require_object(event["object"], kind.full)
            return Change(event["type"], event["object"])
        code, said = event["object"].get("code"), event["object"].get("message", "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KubeUnreachable(f"a watch of {kind.full} told what can't be read") from error
    if code == 410:
        raise Expired(said or "that version is gone", where=kind.full)
    raise KubeUnreachable(f"the API server ended a watch with {code}: {said}", where=kind.full)


def _require_object(answer: Any, where: str) -> None:
    """What a proxy or a page for people answers in the API server's place is not taken for one."""
    meta = answer.get("metadata") if isinstance(answer, dict) else None
    if not (isinstance(meta, dict) and meta.get("resourceVersion")):
        raise KubeUnreachable("what answers is no API server", where=where)


def _said(content: bytes) -> str:
    try:
        return str(json.loads(content).get("message", ""))
    except (ValueError, AttributeError):
        return content[:200].decode(errors="replace")


def _unreachable(error: Exception, where: str) -> KubeUnreachable:
    reason = str(error) or type(error).__name__
    return KubeUnreachable(f"the API server does not answer: {reason}", where=where)
