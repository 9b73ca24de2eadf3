"""Circuits that were transpiled before, of a primitive whose program runs the same ones again and again."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NoReturn

_MOST = 64
"""Circuits that are kept; of a loop these are few."""


class IsaCircuits:
    """Transpiles circuits for one backend, each once with the same settings.

    That is not for speed alone: transpiled anew, a circuit may be laid out on other qubits, with other errors, and an
    optimizer would see its function jump.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[Hashable, bytes], Any] = OrderedDict()

    def get(
        self, circuits: Sequence[Any], settings: Hashable, transpile: Callable[[list[Any]], list[Any]]
    ) -> list[Any]:
        """Get circuits transpiled.

        Args:
            circuits: They.
            settings: All that decides how they are transpiled.
            transpile: Transpiles those that are not known, with these settings.
        """
        keys = [None if (known := _key(circuit)) is None else (settings, known) for circuit in circuits]
        with self._lock:
            found = {key: self._known[key] for key in keys if key is not None and key in self._known}
        first = {key: i for i, key in reversed([*enumerate(keys)])}
        new = [i for i, key in enumerate(keys) if key is None or (key not in found and first[key] == i)]
        made = dict(zip(new, transpile([circuits[i] for i in new]), strict=True)) if new else {}
        with self._lock:
            for i, circuit in made.items():
                if (key := keys[i]) is not None:
                    self._known[key] = found[key] = circuit
            for key in found:
                if key in self._known:
                    self._known.move_to_end(key)
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
        return [made[i] if key is None or i in made else _like(circuits[i], found[key]) for i, key in enumerate(keys)]


_of_primitives: weakref.WeakKeyDictionary[Any, IsaCircuits] = weakref.WeakKeyDictionary()


def keep_isa_circuits(primitive: Any, kept: IsaCircuits) -> None:
    """Have the circuits of a primitive transpiled once."""
    _of_primitives[primitive] = kept


def isa_circuits_of(primitive: Any) -> IsaCircuits | None:
    """Those of a primitive, if they are kept."""
    try:
        return _of_primitives.get(primitive)
    except TypeError:  # none, or one of a class of the user's that can't be a key
        return None


def _like(circuit: Any, known: Any) -> Any:
    """The transpiled circuit, with the name and metadata of this one, which are in the results."""
    if (known.name, known.metadata) == (circuit.name, circuit.metadata):
        return known
    made = known.copy(name=circuit.name)
    made.metadata = circuit.metadata
    return made


def _key(circuit: Any) -> bytes | None:
    """What is equal for equal circuits; None for one that can't be recognized, or that was laid out before."""
    from ..canonical.circuits import Circuits
    from ..canonical.values import OpaqueError

    def refuse(item: Any, _: Callable[[Any], bytes]) -> NoReturn:
        raise OpaqueError(type(item).__name__)

    if circuit.layout is not None:
        return None
    try:
        return Circuits(refuse).circuit(circuit)
    except (OpaqueError, RecursionError):
        return None
