"""Encodes expressions of circuit parameters, and the classical ones that a running circuit evaluates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qiskit.circuit import Parameter, ParameterExpression
from qiskit.circuit.classical import expr

from . import newer, values

# Parameters ---------------------------------------------------------------------------------------------------------
#
# Qiskit orders the terms of a sum and the factors of a product by the parameters' random uuids, and that order may
# decide where a minus sign stands. So sums and products are unordered here, and signs are moved outward.


@dataclass(frozen=True)
class _Node:
    """A node of an expression.

    Attributes:
        sign: 1 or -1.
        body: The encoded node, without its sign.
        terms: The sign and the body of each term of a sum.
        factors: The exponent, 1 or -1, and the body of each factor of a product.
    """

    sign: int
    body: bytes
    terms: tuple[tuple[int, bytes], ...] = ()
    factors: tuple[tuple[int, bytes], ...] = ()

    def signed(self) -> bytes:
        return (b"-" if self.sign < 0 else b"+") + self.body


def parameter(expression: ParameterExpression, bound: Mapping[Any, bytes]) -> bytes:
    """A parameter, or an expression of parameters.

    Args:
        expression: The expression.
        bound: Replacements for the variables of the enclosing loops.
    """
    if isinstance(expression, Parameter):
        return b"P" + _leaf(expression, bound)
    names = expression.parameters
    if not names:
        return values.number(expression.numeric())
    if len(names) == 1 and expression.is_symbol():  # of several, one may remain in the result, and all must be bound
        return b"P" + _leaf(next(iter(names)), bound)
    stack: list[_Node] = []
    for step in expression._qpy_replay:  # noqa: SLF001 - the only access to the tree; QPY's writer uses it too
        name = _operation(step.op)
        if name in ("ADD", "SUB", "MUL", "DIV", "POW", "RSUB", "RDIV", "RPOW"):
            right = _operand(step.rhs, stack, bound)
            left = _operand(step.lhs, stack, bound)
            if name[0] == "R":
                name, left, right = name[1:], right, left
            stack.append(_combine(name, left, right))
        elif name in _FUNCTIONS:
            stack.append(_Node(1, b"F" + values.text(name) + _operand(step.lhs, stack, bound).signed()))
        else:  # a substitution, as recorded by older versions of Qiskit
            raise values.OpaqueError(f"the operation {name} of a parameter expression")
    if len(stack) != 1:
        raise values.OpaqueError("a parameter expression that can't be read")
    return b"X" + stack[0].signed()


_FUNCTIONS = frozenset(("SIN", "COS", "TAN", "ASIN", "ACOS", "ATAN", "EXP", "LOG", "SIGN", "CONJ", "ABS"))


def _operation(code: Any) -> str:
    return str(code).rsplit(".", 1)[-1]


def _leaf(item: Parameter, bound: Mapping[Any, bytes]) -> bytes:
    return bound[item] if bound and item in bound else values.text(item.name)


def _operand(item: Any, stack: list[_Node], bound: Mapping[Any, bytes]) -> _Node:
    if item is None:
        return stack.pop()
    if isinstance(item, Parameter):
        return _Node(1, _leaf(item, bound))
    if isinstance(item, ParameterExpression):
        return _Node(1, parameter(item, bound))
    if isinstance(item, int | float) and item < 0:
        return _Node(-1, values.number(-item))
    return _Node(1, values.number(item))


def _combine(name: str, left: _Node, right: _Node) -> _Node:
    if name in ("ADD", "SUB"):
        flipped = 1 if name == "ADD" else -1
        return _sum((*_terms(left, 1), *_terms(right, flipped)))
    if name in ("MUL", "DIV"):
        exponent = 1 if name == "MUL" else -1
        factors = (*_factors(left, 1), *_factors(right, exponent))
        return _product(left.sign * right.sign, factors)
    return _Node(1, b"^" + left.signed() + right.signed())


def _terms(node: _Node, sign: int) -> tuple[tuple[int, bytes], ...]:
    if node.terms:
        return tuple((sign * node.sign * each, body) for each, body in node.terms)
    return ((sign * node.sign, node.body),)


def _sum(terms: tuple[tuple[int, bytes], ...]) -> _Node:
    """A sum. Of its two forms, with all signs flipped or not, the smaller one is taken."""
    forms = []
    for sign in (1, -1):
        flipped = tuple(sorted((sign * each, body) for each, body in terms))
        pieces = b"".join((b"-" if each < 0 else b"+") + body for each, body in flipped)
        forms.append((pieces, sign, flipped))
    pieces, sign, flipped = min(forms)
    return _Node(sign, b"S" + pieces + b";", terms=flipped)


_ONE = values.number(1)


def _factors(node: _Node, exponent: int) -> tuple[tuple[int, bytes], ...]:
    if node.factors:
        return tuple((exponent * each, body) for each, body in node.factors)
    return () if node.body == _ONE else ((exponent, node.body),)


def _product(sign: int, factors: tuple[tuple[int, bytes], ...]) -> _Node:
    factors = tuple(sorted(factors))
    if not factors:
        return _Node(sign, _ONE)
    if len(factors) == 1 and factors[0][0] == 1:
        return _Node(sign, factors[0][1])
    pieces = b"".join((b"/" if each < 0 else b"*") + body for each, body in factors)
    return _Node(sign, b"M" + pieces + b";", factors=factors)


# Classical expressions ----------------------------------------------------------------------------------------------


def classical(node: expr.Expr, resource: Callable[[Any], bytes], bound: Mapping[Any, bytes]) -> bytes:
    """A classical expression.

    Args:
        node: The expression.
        resource: Encodes a clbit or a classical register.
        bound: Replacements for the variables of the enclosing loops.
    """
    parts: tuple[bytes, ...]
    if isinstance(node, expr.Var | newer.Stretch):
        if bound and node in bound:
            parts = (bound[node],)
        elif isinstance(node, newer.Stretch) or node.standalone:
            parts = (values.text(node.name),)
        else:
            parts = (resource(node.var),)
    elif isinstance(node, expr.Value):
        parts = (_constant(node.value),)
    elif isinstance(node, expr.Cast):
        parts = (b"T" if node.implicit else b"F", classical(node.operand, resource, bound))
    elif isinstance(node, expr.Unary):
        parts = (values.text(node.op.name), classical(node.operand, resource, bound))
    elif isinstance(node, expr.Binary):
        sides = (classical(side, resource, bound) for side in (node.left, node.right))
        parts = (values.text(node.op.name), *sides)
    elif isinstance(node, expr.Index):
        parts = tuple(classical(side, resource, bound) for side in (node.target, node.index))
    else:
        raise values.OpaqueError(values.name_of(node))
    return b"L" + values.sequence((values.text(type(node).__name__), type_of(node), *parts))


def type_of(node: Any) -> bytes:
    """The type of a classical expression or variable."""
    kind = node.type
    return values.text(type(kind).__name__) + values.number(getattr(kind, "width", 0) or 0)


def _constant(value: Any) -> bytes:
    if hasattr(value, "unit") and hasattr(value, "value"):  # a duration
        return values.text(str(value.unit())) + values.number(value.value())
    return values.number(value)


def declared(variables: Iterable[Any], bound: Mapping[Any, bytes]) -> bytes:
    """Variables that a circuit declares, takes as input or captures, by their names."""
    return values.collection((bound.get(each) or values.text(each.name)) + type_of(each) for each in variables)
