"""What a report says in words: what is special about a layer, and why a leaf was left."""

from collections.abc import Sequence

from jinit._arithmetic import is_float
from jinit.empirical.names import Named
from jinit.empirical.plan import Plan
from jinit.layers import Layer

__all__ = ["not_tuned", "note_on"]

_MIXED = "one scale for all slices, which a loop reads in another order"
_LOST = "meets no input where it can be followed"


def note_on(named: Named, plan: Plan) -> str:
    """Returns why a layer was not rescaled, or what is special about it."""
    layer = named.layer
    if layer.reason:
        return layer.reason
    if not plan.solver.tuned[named.statistic]:
        return "excluded"
    if _is_bypassed(named, plan):
        return "zero: the gradient passes it as if it were random"
    notes = [
        "shared" if layer.shared else "",
        _MIXED if dict(layer.leaves)[layer.leaf].mixed else "",
        _on_joined(layer, plan.naming.joined_paths(named)),
    ]
    return "; ".join(note for note in notes if note)


def _is_bypassed(named: Named, plan: Plan) -> bool:
    """Returns whether a leaf of zeros stands alone in a layer's weight, or in a product."""
    zeros = {*plan.job.zeros}
    return any(
        plan.naming.leaf_at(leaf, named) in zeros and not degree.group
        for leaf, degree in named.layer.leaves
    )


def _on_joined(layer: Layer, paths: Sequence[str]) -> str:
    if not paths:
        return ""
    alike = len({degree.degree for _, degree in layer.scaled}) == 1
    return f"{'one scale' if alike else 'scaled together'} with {', '.join(paths)}"


def not_tuned(plan: Plan, notes: Sequence[str]) -> dict[str, str]:
    """Says by path why leaves were left: all those of every layer that was not rescaled.

    Args:
        plan: The layers.
        notes: What is said of each of them, in order.
    """
    naming, reasons = plan.naming, dict[int, str]()
    tuned = {
        leaf
        for named in naming.ordered
        if plan.solver.tuned[named.statistic]
        for leaf in naming.scaled(named)
    }
    for named, note in zip(naming.ordered, notes, strict=True):
        left = not plan.solver.tuned[named.statistic]
        why = note if left else f"its layer is scaled by {named.path}"
        for leaf, _ in (*named.layer.leaves, *named.layer.bias):
            reasons.setdefault(naming.leaf_at(leaf, named), why)
    for layer in plan.found.layers:
        if not layer.measured:
            reasons.update(
                (x, layer.reason) for leaf, _ in layer.leaves for x in naming.groups[leaf]
            )
    reasons.update((leaf, _LOST) for leaf in _lost(plan, {*reasons, *tuned}))
    return {naming.paths[x] or ".": why for x, why in reasons.items() if x not in tuned}


def _lost(plan: Plan, known: set[int]) -> list[int]:
    """Lists the parameters that an output depends on, and no layer has."""
    unused = {leaf for number in plan.found.unused for leaf in plan.naming.groups[number]}
    return [
        leaf
        for number, group in enumerate(plan.naming.groups)
        for leaf in group
        if plan.job.trainable[leaf]
        and is_float(plan.rolled.traced.in_avals[number])
        and leaf not in known | unused
    ]
