"""What a report says in words: what is special about a layer, and why a leaf was left."""

from collections.abc import Sequence

from jinit._arithmetic import is_float
from jinit.empirical.layer_names import Named
from jinit.empirical.traced_model import TracedModel
from jinit.layers import Layer

__all__ = ["not_tuned", "note_on"]

_MIXED = "one scale for all slices, which a loop reads in another order"
_LOST = "meets no input where it can be followed"


def note_on(named: Named, model: TracedModel) -> str:
    """Returns why a layer was not rescaled, or what is special about it."""
    layer = named.layer
    if layer.reason:
        return layer.reason
    if not model.solver.tuned[named.statistic]:
        return "excluded"
    if _is_bypassed(named, model):
        return "zero: the gradient passes it as if it were random"
    notes = [
        "shared" if layer.shared else "",
        _MIXED if dict(layer.leaves)[layer.leaf].mixed else "",
        _on_joined(layer, model.names.joined_paths(named)),
    ]
    return "; ".join(note for note in notes if note)


def _is_bypassed(named: Named, model: TracedModel) -> bool:
    """Returns whether a leaf of zeros stands alone in a layer's weight, or in a product."""
    zeros = {*model.request.zeros}
    return any(
        model.names.leaf_at(leaf, named) in zeros and not degree.group
        for leaf, degree in named.layer.leaves
    )


def _on_joined(layer: Layer, paths: Sequence[str]) -> str:
    if not paths:
        return ""
    alike = len({degree.degree for _, degree in layer.scaled}) == 1
    return f"{'one scale' if alike else 'scaled together'} with {', '.join(paths)}"


def not_tuned(model: TracedModel, notes: Sequence[str]) -> dict[str, str]:
    """Says by path why leaves were left: all those of every layer that was not rescaled.

    Args:
        model: The layers.
        notes: What is said of each of them, in order.
    """
    names, reasons = model.names, dict[int, str]()
    tuned = {
        leaf
        for named in names.ordered
        if model.solver.tuned[named.statistic]
        for leaf in names.scaled(named)
    }
    for named, note in zip(names.ordered, notes, strict=True):
        left = not model.solver.tuned[named.statistic]
        why = note if left else f"its layer is scaled by {named.path}"
        for leaf, _ in (*named.layer.leaves, *named.layer.bias):
            reasons.setdefault(names.leaf_at(leaf, named), why)
    for layer in model.found.layers:
        if not layer.measured:
            reasons.update(
                (x, layer.reason) for leaf, _ in layer.leaves for x in names.groups[leaf]
            )
    reasons.update((leaf, _LOST) for leaf in _lost(model, {*reasons, *tuned}))
    return {names.paths[x] or ".": why for x, why in reasons.items() if x not in tuned}


def _lost(model: TracedModel, known: set[int]) -> list[int]:
    """Lists the parameters that an output depends on, and no layer has."""
    unused = {leaf for number in model.found.unused for leaf in model.names.groups[number]}
    return [
        leaf
        for number, group in enumerate(model.names.groups)
        for leaf in group
        if model.request.trainable[leaf]
        and is_float(model.rolled.traced.in_avals[number])
        and leaf not in known | unused
    ]
