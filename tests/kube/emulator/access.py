"""Who may do what, as RBAC would have it, and what was asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.kube.emulator.kinds import Kind
from tests.kube.emulator.state import RefusedError

Object = dict[str, Any]
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Asked:
    """One request, in RBAC's words."""

    verb: str
    group: str
    resource: str
    name: str
    namespace: str
    agent: str


@dataclass
class Access:
    """Everybody may do everything, until ``rules`` bind the clients of one user agent (this emulator has no users)."""

    asked: list[Asked] = field(default_factory=list)
    agent: str = ""
    account: str = ""
    token: str = ""  # that clients have to bring, if there is one
    namespaced: list[Object] = field(default_factory=list)
    everywhere: list[Object] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def bind(self, agent: str, account: str, objects: list[Object]) -> None:
        """As if the account of these objects' RoleBindings were the client's."""
        self.agent, self.account = agent, account
        rules = {(each["kind"], each["metadata"]["name"]): each.get("rules", []) for each in objects}
        for each in objects:
            if each["kind"] in ("RoleBinding", "ClusterRoleBinding"):
                assert {"kind": "ServiceAccount", "name": account.rpartition(":")[2]}.items() <= each["subjects"][
                    0
                ].items()
                found = rules[each["roleRef"]["kind"], each["roleRef"]["name"]]
                (self.namespaced if each["kind"] == "RoleBinding" else self.everywhere).extend(found)

    def know(self, authorization: str) -> None:
        """Raises RefusedError with 401 where the token is another one."""
        scheme, _, token = authorization.partition(" ")
        if self.token and (scheme.lower(), token) != ("bearer", self.token):
            raise RefusedError(401, "Unauthorized", "Unauthorized")

    def require(self, command: str, kind: Kind, namespace: str, name: str, agent: str, *, watch: bool) -> None:
        """Raises RefusedError with 403."""
        verb = VERBS.get(command) or ("watch" if watch else "get" if name else "list")
        asked = Asked(verb, kind.group, kind.plural, "" if verb == "create" else name, namespace, agent)
        self.asked.append(asked)
        if not self.agent or agent != self.agent:
            return
        rules = [*self.everywhere, *(self.namespaced if namespace else [])]
        if not any(allows(rule, asked) for rule in rules):
            place = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
            what = f'cannot {verb} resource "{kind.plural}" in API group "{kind.group}" {place}'
            self.refused.append(f"{verb} {kind.full} {name}")
            target = f'{kind.full} "{name}"' if name else kind.full
            raise RefusedError(403, "Forbidden", f'{target} is forbidden: User "{self.account}" {what}')


def allows(rule: Object, asked: Asked) -> bool:
    """A rule with names never allows a creation, as the name is not known by then."""
    names = rule.get("resourceNames")
    return (
        asked.verb in rule["verbs"]
        and asked.group in rule["apiGroups"]
        and asked.resource in rule["resources"]
        and (not names or asked.name in names)
    )
