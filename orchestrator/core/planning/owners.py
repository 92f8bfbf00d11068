"""Hosts that are one model's, one role's or one pool's alone, as their labels say.

A pool goes by what is closest to it: hosts of its model and role, or else of its model, or else of its role. If there
are any it is on these alone; if there are none it is on hosts that say nothing of the kind, and on no other pool's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.core.spec import Role

MODEL = "segue.io/model"  # a model's name, or ``label_of`` it
ROLE = "segue.io/role"
_LENGTH = 30  # of a name that the chart makes worker groups' names of


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """What labels say of whose a host is; empty where they leave that open."""

    model: str = ""
    role: str = ""


NOBODY = Owner()


def label_of(model: str) -> str:
    """What the chart calls a model where its name can be no label; ``segue.dns`` there does the same."""
    plain = re.sub(r"[^a-z0-9-]+", "-", model.lower())[:_LENGTH].strip("-")
    return plain if plain == model else f"{plain or 'model'}-{hashlib.sha256(model.encode()).hexdigest()[:5]}"


def owner_of(labels: Mapping[str, str]) -> Owner:
    """Whose a host with these labels is."""
    return Owner(labels.get(MODEL, ""), labels.get(ROLE, ""))


def owner_for(model: str, role: Role, owners: Collection[Owner]) -> Owner:
    """Of the owners that hosts have, the one whose hosts a pool's replicas go on."""
    names = (model, label_of(model))
    closest = (*(Owner(name, role) for name in names), *(Owner(name) for name in names), Owner(role=role))
    return next((owner for owner in closest if owner in owners), NOBODY)


def selector_of(owner: Owner, owners: Iterable[Owner]) -> dict[str, str]:
    """Ray's label selector for hosts of that owner and, where there are others, of no other's."""
    owners = list(owners)
    said = {
        MODEL: (owner.model, {each.model for each in owners if each.model}),
        ROLE: (owner.role, {each.role for each in owners if each.role}),
    }
    return {label: own or f"!in({','.join(sorted(others))})" for label, (own, others) in said.items() if own or others}
