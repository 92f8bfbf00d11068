"""Segue: an inference cluster orchestrator that runs prefill and decode in separate worker pools."""

import os

# A checkout with native modules: they win over the sources, so the sources must be the ones that they were made of.
if os.path.exists(os.path.join(os.path.dirname(__file__), "compiled.json")):
    from orchestrator.compiled import check

    check()
