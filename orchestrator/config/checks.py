"""Combinations that can't work, told before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config.cursor import Cursor, shown
from orchestrator.config.defaults import effective_engine_args
from orchestrator.core.errors import ConfigError
from orchestrator.core.planning.hand_over import Half, Unlike, unlike
from orchestrator.core.spec import Backend, ClusterSpec, Endpoint, ModelSpec, PoolSpec, Role

# What KV blocks are made of: the two ends of a hand-over have to agree on it.
ALIKE = ("dtype", "block_size", "kv_cache_dtype", "max_model_len")
EVERY_INTERFACE = ("0.0.0.0", "::")  # noqa: S104  compared with, not bound to


def one_backend(cursor: Cursor, pools: Mapping[Role, PoolSpec]) -> Backend:
    """The backend of a model's pools, which is one: no KV goes from a mock to an engine."""
    backends = {pool.backend for pool in pools.values()}
    if len(backends) > 1:
        raise cursor.error("found different backends in one model, allowed: vllm or mock for all its pools")
    return backends.pop()


def batches(cursor: Cursor, model: ModelSpec) -> None:
    """An engine's step has room for a token of each sequence."""
    for role, pool in model.pools.items():
        args = effective_engine_args(model, pool)
        tokens, sequences = args.get("max_num_batched_tokens"), args.get("max_num_seqs")
        if tokens is not None and sequences is not None and tokens < sequences:
            found = f"found max_num_batched_tokens {tokens} below max_num_seqs {sequences} in {role}"
            raise cursor.error(f"{found}, allowed: at least as many")


def hand_over(cursor: Cursor, model: ModelSpec) -> None:
    """Prefill and decode can pass KV on to one another; a size that is left open can't be judged yet."""
    if not model.disaggregated:
        return
    prefill, decode = model.pools[Role.PREFILL], model.pools[Role.DECODE]
    halves = (Half(pool.device, pool.tensor_parallel, pool.pipeline_parallel) for pool in (prefill, decode))
    found = unlike(*halves)
    if found:
        raise _unlike(cursor, found)
    ours, theirs = effective_engine_args(model, prefill), effective_engine_args(model, decode)
    for name in ALIKE:
        if ours.get(name) != theirs.get(name):
            words = (
                "vLLM's default" if value is None else shown(value) for value in (ours.get(name), theirs.get(name))
            )
            raise _unlike(cursor, Unlike(name, *words))
    if ours.get("runner") == "pooling" or theirs.get("runner") == "pooling":
        raise cursor.error("found prefill and decode with runner pooling, allowed: serve", "pooling has no decode half")


def _unlike(cursor: Cursor, found: Unlike) -> ConfigError:
    what = f"found {found.name} {found.prefill} in prefill and {found.decode} in decode, allowed: {found.allowed}"
    return cursor.error(what, found.why)


def frontend(cursor: Cursor, options: Mapping[str, Any]) -> None:
    """Options that are only of use together."""
    if options.get("enable_auto_tool_choice") and not options.get("tool_call_parser"):
        raise cursor.error("found enable_auto_tool_choice without tool_call_parser, allowed: both or neither")
    if (options.get("fingerprint_mode") == "custom") != ("fingerprint_value" in options):
        raise cursor.error("found one of fingerprint_mode custom and fingerprint_value, allowed: both or neither")


def ports(cursor: Cursor, spec: ClusterSpec) -> None:
    """No two listeners want the same port, and processes that share one can name it."""
    wanted = {
        "gateway.http": spec.gateway.http,
        "gateway.grpc": spec.gateway.grpc,
        "controller.listen": spec.controller.listen,
    }
    places = list(wanted)
    for index, place in enumerate(places):
        for other in places[:index]:
            if _clash(wanted[place], wanted[other]):
                found = f"found {wanted[place]} for {place} and {wanted[other]} for {other}"
                written = [cursor.find(*each.split(".")) for each in (place, other)]
                raise max(written, key=lambda at: at.path.count(".")).error(f"{found}, allowed: a port for each")
    if spec.gateway.processes > 1 and 0 in (spec.gateway.http.port, spec.gateway.grpc.port):
        processes = cursor.find("gateway", "processes")
        raise processes.wrong("1 with port 0, or ports above 0, which several processes can share")


def _clash(one: Endpoint, other: Endpoint) -> bool:
    if one.port != other.port or one.port == 0:
        return False
    return one.host == other.host or one.host in EVERY_INTERFACE or other.host in EVERY_INTERFACE
