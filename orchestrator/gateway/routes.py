"""The routes that clients may reach.

All else that vLLM's application has (scaling, sleep, RPC, raw token endpoints) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

# Answered by the application of the model that the body names.
MODEL_ROUTES: Mapping[str, str] = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/responses": "POST",
    "/v1/messages": "POST",
    "/v1/messages/count_tokens": "POST",
    "/v1/embeddings": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
}

# Of these, those that no worker is needed for.
WITHOUT_WORKERS = frozenset(("/v1/messages/count_tokens", "/tokenize", "/detokenize"))

# Answered by the gateway itself.
OWN_ROUTES: Mapping[str, str] = {
    "/health": "GET",
    "/ready": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
    "/v1/models": "GET",
}
MODEL_PREFIX = "/v1/models/"
