"""Requests that schemathesis makes of the gateway's own OpenAPI document."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import Any

import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.fuzz import judge
from tests.fuzz.aim import Aim

CASE_SECONDS = 8.0


def document(aim: Aim) -> dict[str, Any]:
    """As the gateway serves it; the first to ask waits until it is made."""
    with closing(http.client.HTTPConnection(aim.http, timeout=60)) as connection:
        connection.request("GET", "/openapi.json")
        return dict(json.loads(connection.getresponse().read()))


def names(of: dict[str, Any]) -> list[str]:
    """The fields of the bodies of all routes."""
    schemas = of["components"]["schemas"]
    found = {
        name for key, schema in schemas.items() if key.endswith("Request") for name in schema.get("properties", ())
    }
    return sorted(found)


def cases(of: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Valid ones and others, of every operation; most of the bodies name a model that is there."""
    schema = schemathesis.openapi.from_dict(of)
    operations = [result.ok() for result in schema.get_all_operations()]
    modes = (GenerationMode.POSITIVE, GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    each = [operation.as_strategy(generation_mode=mode) for operation in operations for mode in modes]
    return st.tuples(st.one_of(each), st.sampled_from(["together", "together", "apart", None])).map(_named)


def _named(drawn: tuple[Any, str | None]) -> Any:
    case, model = drawn
    if model is not None and isinstance(case.body, dict):
        case.body = {**case.body, "model": model}
    return case


class Schema:
    """Sends them."""

    def __init__(self, aim: Aim) -> None:
        self._url = f"http://{aim.http}"
        self._session = aim.held.enter_context(requests.Session())

    def run(self, case: Any) -> str:
        """Sends a case and judges the answer."""
        try:
            answer = case.call(base_url=self._url, session=self._session, timeout=CASE_SECONDS)
        except requests.Timeout as error:
            raise TimeoutError from error
        kind = answer.headers.get("content-type", [""])
        path = case.formatted_path
        if path in ("/ready", "/health", "/metrics"):
            return str(answer.status_code)
        text = kind[0] if isinstance(kind, list) else kind
        return judge.http(path, answer.status_code, text, answer.content, head=case.method.upper() == "HEAD")
