"""What a cluster's controllers leave to those after them, and whose turn it is: in the key-value store of Ray's GCS.

    term/<number>    one a claim, as JSON: when, and a token of the claimer's own, so that none is mistaken for one of a
                     former cluster
    memory/<number>  what the controller of that term last remembered, as JSON

Each cluster has a namespace of its own. Terms only grow, and a claim is a put that overwrites nothing: of two that want
the same number one gets it. Every function blocks, for as long as Ray takes.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict

from ray.experimental import internal_kv as kv

from orchestrator.controller.ports import Memory
from orchestrator.core.errors import StaleEpoch

_TERM, _MEMORY = "term/", "memory/"
_TOKEN_BYTES = 16
_CLAIMS_KEPT = 16


def claim(cluster: str) -> tuple[int, str]:
    """The next term, and the token that shows it to be the caller's."""
    token = secrets.token_hex(_TOKEN_BYTES)
    claimed = json.dumps({"token": token, "at": time.time()})
    numbers = sorted(_numbers(cluster, _TERM))
    term = max(numbers, default=0) + 1
    while kv._internal_kv_put(_key(_TERM, term), claimed, overwrite=False, namespace=_space(cluster)):
        term += 1
    for former in numbers[:-_CLAIMS_KEPT]:
        kv._internal_kv_del(_key(_TERM, former), namespace=_space(cluster))
    return term, token


def ages(cluster: str) -> list[float]:
    """How many seconds ago each of the last terms was claimed."""
    now = time.time()
    claims = (kv._internal_kv_get(_key(_TERM, term), namespace=_space(cluster)) for term in _numbers(cluster, _TERM))
    return [now - json.loads(claim)["at"] for claim in claims if claim is not None]


def require_newest(cluster: str, term: int, token: str) -> None:
    """Raises StaleEpoch unless the term is the caller's and no higher one was claimed, nor the cluster taken down."""
    newest = max(_numbers(cluster, _TERM), default=0)
    if newest != term:
        raise stale(cluster, term, newest)
    kept = kv._internal_kv_get(_key(_TERM, term), namespace=_space(cluster))
    if kept is None or json.loads(kept)["token"] != token:
        raise stale(cluster, term, 0)


def stale(cluster: str, term: int, newest: int) -> StaleEpoch:
    """``newest`` is 0 where the cluster was taken down since."""
    follows = f"term {newest} was claimed since" if newest else "the cluster was taken down since"
    return StaleEpoch(f"the controller of term {term} is not its controller any more: {follows}", where=cluster)


def remember(cluster: str, memory: Memory, term: int, token: str) -> None:
    """Raises StaleEpoch as ``require_newest`` does.

    Looked at before and after, so that whoever claims the next term after this has returned finds it.
    """
    require_newest(cluster, term, token)
    kv._internal_kv_put(_key(_MEMORY, term), json.dumps(asdict(memory)), namespace=_space(cluster))
    require_newest(cluster, term, token)
    for former in _numbers(cluster, _MEMORY):
        if former < term:
            kv._internal_kv_del(_key(_MEMORY, former), namespace=_space(cluster))


def recall(cluster: str) -> Memory | None:
    """What was last remembered, by whomever; None where there is nothing."""
    while (newest := max(_numbers(cluster, _MEMORY), default=0)) > 0:
        kept = kv._internal_kv_get(_key(_MEMORY, newest), namespace=_space(cluster))
        if kept is not None:  # else a newer one replaced it since
            return Memory(**json.loads(kept))
    return None


def forget(cluster: str) -> None:
    """Leaves nothing; repeatable."""
    kv._internal_kv_del("", del_by_prefix=True, namespace=_space(cluster))


def _numbers(cluster: str, kind: str) -> list[int]:
    keys = kv._internal_kv_list(kind, namespace=_space(cluster))
    return [int(key.decode().removeprefix(kind)) for key in keys]


def _key(kind: str, number: int) -> str:
    return f"{kind}{number}"


def _space(cluster: str) -> str:
    return f"segue/{cluster}"
