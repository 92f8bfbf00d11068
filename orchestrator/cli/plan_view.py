"""A plan for people: the verdict first, then what each model needs, where it goes, and what else was looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_letters

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli.terminal import byte_count
from orchestrator.core.planning.choices import Choice, PoolChoice
from orchestrator.core.planning.differences import Difference
from orchestrator.core.planning.moves import Moves
from orchestrator.core.planning.places import RACK, ZONE, Gang, Node, Placed
from orchestrator.core.planning.plan import ClusterPlan, ModelPlan
from orchestrator.core.spec import Role

MOST_NODES = 24  # that are drawn
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
FREE = "·"


def as_tables(plan: ClusterPlan, differences: Sequence[Difference] | None = None) -> Group:
    """All of it, for a terminal; with ``differences`` also what would change in the cluster that runs."""
    parts: list[RenderableType] = [_verdict(plan)]
    for model in plan.models:
        parts += ["", *_model(model)]
    if plan.gangs:
        parts += ["", *_picture(plan)]
    if differences is not None:
        parts += ["", *changes(plan.moves, differences)]
    if plan.skipped:
        parts += ["", f"not planned, as they have no weights: {', '.join(plan.skipped)}"]
    return Group(*parts)


def _verdict(plan: ClusterPlan) -> Text:
    if not plan.models:
        return Text("There is nothing that has to fit", style="bold green")
    if plan.fits:
        buy = ", ".join(f"{count} x {size} {kind}" for kind, size, count in _to_buy(plan))
        return Text("It fits" + (f", if you have {buy}" if buy else ""), style="bold green")
    heading = "It does not fit:" if plan.reasons else "It fits, but does not do what is asked:"
    return Text("\n".join([heading, *(f"  {reason}" for reason in (*plan.reasons, *plan.misses))]), style="bold red")


def _to_buy(plan: ClusterPlan) -> list[tuple[str, int, int]]:
    kinds = dict.fromkeys((node.device, node.count) for node in plan.bought)
    return [(kind, size, sum(node.device == kind for node in plan.bought)) for kind, size in kinds]


def _model(model: ModelPlan) -> Iterator[RenderableType]:
    yield Text.assemble(
        (model.name, "bold"),
        f": {_billions(model.parameters)} parameters, {byte_count(model.weight_bytes)} of weights, "
        f"{byte_count(model.kv_bytes_per_token)} of KV cache a token",
    )
    choice = model.choice
    if isinstance(choice, Choice):
        yield _pools(choice)
        yield _totals(choice)
        for note in dict.fromkeys(note for pool in choice.pools for note in pool.fit.notes):
            yield Text(f"  note: {note}", style="dim")
    if choice.losers:
        yield ""
        yield _losers(model)


def _table(*headings: str, left: int = 1) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < left else "right", header_style="dim")
    return table


def _pools(choice: Choice) -> Table:
    headings = (
        "",
        "devices",
        "weights",
        "KV",
        "other",
        "of",
        "KV tokens",
        "to first token",
        "between",
        "tokens/s",
        "busy",
    )
    table = _table(*headings, left=2)
    for pool in choice.pools:
        device = pool.fit.device
        sizes = (byte_count(size) for size in (device.weights, device.kv, device.other, pool.device.memory_bytes))
        times = (_milliseconds(pool.ttft_ms), _milliseconds(pool.itl_ms))
        rates = (f"{pool.tokens_per_second:,.0f}", f"{pool.busy:.0%}")
        table.add_row(f"  {pool.role}", _devices(pool), *sizes, f"{pool.fit.kv_tokens:,}", *times, *rates)
    return table


def _devices(pool: PoolChoice) -> str:
    """'2 x (TP 4 x PP 2) H100-80GB'."""
    cut = [f"TP {pool.tensor_parallel}"] * (pool.tensor_parallel > 1)
    cut += [f"PP {pool.pipeline_parallel}"] * (pool.pipeline_parallel > 1)
    share = f"{pool.share:g} of a " if pool.share < 1 else ""
    return f"{pool.replicas} x {share}" + (f"({' x '.join(cut)}) " if cut else "") + pool.device.name


def _totals(choice: Choice) -> Text:
    load = choice.load
    size = f"{load.prompt_tokens:,} + {load.output_tokens:,} tokens"
    what = f"  at {choice.requests_per_second:,.3g} requests/s of {size}"
    if choice.assumed:
        most = choice.most_requests_per_second
        what = f"  one request of {size} at a time (assumed, as no load is said; up to {most:,.3g} a second)"
    money = (
        f"{choice.usd_per_hour:,.2f} USD/h, {_number(choice.usd_per_million_tokens)} USD and "
        f"{_number(choice.wh_per_million_tokens)} Wh a million tokens"
    )
    first, between = _milliseconds(choice.ttft_ms), _milliseconds(choice.itl_ms)
    return Text(f"{what}: first token after {first}, then one each {between}; {money}")


def _losers(model: ModelPlan) -> Table:
    table = _table("  also looked at", "", "", left=3)
    for loser in model.choice.losers:
        cut = f"TP {loser.tensor_parallel}" + (
            f" x PP {loser.pipeline_parallel}" if loser.pipeline_parallel > 1 else ""
        )
        table.add_row(f"  {loser.role}", f"{loser.device} {cut}", Text(loser.why, style="dim"))
    return table


def _picture(plan: ClusterPlan) -> Iterator[RenderableType]:
    """Each node's devices, with the letter of a pool and the number of its replica."""
    pools = list(dict.fromkeys((gang.model, gang.role) for gang in plan.gangs))
    marks = {pool: (_letters(place), COLOURS[place % len(COLOURS)]) for place, pool in enumerate(pools)}
    cells = _cells(plan, marks)
    table = _table("  node", "", "devices", left=3)
    shown = plan.nodes if len(plan.nodes) <= MOST_NODES else _busy_first(plan, cells)[:MOST_NODES]
    width = max((len(text.plain) for text in cells.values()), default=1)
    for node in shown:
        row = Text(" ").join(_padded(cells.get((node.name, device)), width) for device in range(node.count))
        labels = ", ".join(filter(None, (node.label(ZONE), node.label(RACK))))
        table.add_row(f"  {node.name}", f"{node.device} {labels}".strip(), row)
    yield table
    if len(plan.nodes) > len(shown):
        used = len(cells)
        total = sum(node.count for node in plan.nodes)
        yield f"  … and {len(plan.nodes) - len(shown)} more nodes; {used} of {total} devices are used"
    legend = Text("  ")
    for (model, role), (letter, colour) in marks.items():
        legend.append(f"{letter} ", style=colour).append(f"{model} {role}   ")
    yield legend.append(f"{FREE} free")


def _letters(place: int) -> str:
    """A to Z, a to z, AA, AB ..."""
    more, last = divmod(place, len(ascii_letters))
    return (_letters(more - 1) if more else "") + ascii_letters[last].swapcase()


def _cells(plan: ClusterPlan, marks: dict[tuple[str, Role], tuple[str, str]]) -> dict[tuple[str, int], Text]:
    gangs: dict[str, Gang] = {gang.gang_id: gang for gang in plan.gangs}
    cells: dict[tuple[str, int], Text] = {}
    for placed in plan.placement.placed:
        gang = gangs[placed.gang_id]
        letter, colour = marks[gang.model, gang.role]
        for node, devices in placed.stages:
            for device in devices:
                cell = cells.setdefault((node, device), Text())
                cell.append(("+" if cell.plain else "") + letter + gang.gang_id.rpartition("-")[2], style=colour)
    return cells


def _padded(cell: Text | None, width: int) -> Text:
    text = cell.copy() if cell is not None else Text(FREE, style="dim")
    text.pad_right(width - len(text.plain))
    return text


def _busy_first(plan: ClusterPlan, cells: dict[tuple[str, int], Text]) -> list[Node]:
    busy = {node for node, _ in cells}
    return sorted(plan.nodes, key=lambda node: node.name not in busy)


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def changes(moves: Moves, differences: Sequence[Difference]) -> Iterator[RenderableType]:
    """What becomes other in the cluster that runs, line by line."""
    if moves.empty and not differences:
        yield Text("nothing changes in the cluster that runs", style="green")
        return
    yield "in the cluster that runs:"
    for each in differences:
        yield Text(f"  ~ {each.where}: {each.was} -> {each.now}", style="yellow")
    for placed in moves.added:
        yield Text(f"  + {placed.gang_id} on {_where(placed)}", style="green")
    for was, now in moves.moved:
        yield Text(f"  > {was.gang_id} from {_where(was)} to {_where(now)}", style="yellow")
    for placed in moves.removed:
        yield Text(f"  - {placed.gang_id} on {_where(placed)}", style="red")
    if moves.kept:
        stay = (
            "1 replica stays where it is" if len(moves.kept) == 1 else f"{len(moves.kept)} replicas stay where they are"
        )
        yield Text(f"  = {stay}", style="dim")


def _where(placed: Placed) -> str:
    return " + ".join(f"{node} [{', '.join(map(str, devices))}]" for node, devices in placed.stages)
