"""The sandbox for chat templates: that of transformers, with limits.

It provides what transformers gives a template (`tojson`, `raise_exception`, `strftime_now`, loop
controls, the block `generation`), and nothing random. A `Budget` counts every loop iteration,
operation, call and piece of output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import Template as Compiled
from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from kdcore_sft.budget import Budget

if TYPE_CHECKING:
    from _collections_abc import dict_items, dict_keys, dict_values

# Templates cannot call a filter whose name contains a space.
_TURNS, _SIZED, _WRITTEN = " turns", " sized", " written"


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates. `now` formats the date, or raises."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, now: Callable[[str], str]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimizer would evaluate constants without limits
            extensions=[loopcontrols, _Generation],
        )
        self.budget = Budget()
        self.filters["tojson"] = _tojson
        for name in ("random", "lipsum"):
            self.filters.pop(name, None)
            self.globals.pop(name, None)
        self.globals["raise_exception"] = _refused
        self.globals["strftime_now"] = now
        self.filters |= {name: self._limited(name, each) for name, each in self.filters.items()}
        self.filters |= {_TURNS: self._turns, _SIZED: self._sized, _WRITTEN: self._written}

    def compiled(self, source: str) -> Compiled:
        """The template with everything counted."""
        return self.from_string(_Counted().visit(self.parse(source)))

    def variables(self, source: str) -> frozenset[str]:
        """The variables that the template reads and does not set."""
        parsed = self.parse(source)
        day = {each.name for each in parsed.find_all(nodes.Name)} & {"strftime_now"}
        return frozenset(find_undeclared_variables(parsed) | day)

    def looked_for(self, source: str) -> frozenset[str]:
        """The texts that it compares with, or passes to methods, filters and tests."""
        texts = (
            each.value
            for node in self.parse(source).find_all(_SEARCHING)
            for each in _operands(node)
            if isinstance(each, nodes.Const)
        )
        return frozenset(each for each in texts if isinstance(each, str))

    def call(
        __self,  # templates may use any argument names
        __context: Context,
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Count a call; private names are not allowed as arguments."""
        if any(name.startswith("__") for name in kwargs):
            raise SecurityError("private names are no arguments")
        budget, given = __self.budget, [*args, *kwargs.values()]
        function = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps string methods
        name, owner = (getattr(function, each, None) for each in ("__name__", "__self__"))
        budget.call(str(name), owner, given)
        return budget.sized(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Check an operation before it is evaluated."""
        self.budget.step()
        if operator == "%" and isinstance(left, str):
            self.budget.format(left)
        elif operator == "*":
            for some, times in ((left, right), (right, left)):
                if isinstance(some, str | list | tuple) and isinstance(times, int):
                    self.budget.fits(len(some) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.budget.fits(left.bit_length() * right)
        return self.budget.sized(super().call_binop(context, operator, left, right))

    def _limited(self, name: str, filtering: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(filtering)
        def limited(*args: Any, **kwargs: Any) -> Any:
            # Some receive the context first.
            value, *given = args[1:] if hasattr(filtering, "jinja_pass_arg") else args
            self.budget.call(name, value, [*given, *kwargs.values()])
            return self.budget.sized(filtering(*args, **kwargs))

        return limited

    # Filters that take the context are not evaluated when a template is compiled.

    @property
    def _turns(self) -> Callable[..., Any]:
        @pass_context
        def turns(context: Context, some: Iterable[Any]) -> Iterator[Any]:
            for each in some:
                self.budget.step()
                yield each

        return turns

    @property
    def _sized(self) -> Callable[..., Any]:
        return pass_context(lambda context, value: self.budget.sized(value))

    @property
    def _written(self) -> Callable[..., Any]:
        return pass_context(lambda context, value: self.budget.write(str(value)))


class _Counted(NodeTransformer):
    """Inserts the counting filters into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _filtered(node.iter, _TURNS)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [_filtered(_as_expression(each), _WRITTEN) for each in node.nodes]
        return node

    def visit_NSRef(self, node: nodes.NSRef) -> nodes.NSRef:
        if node.attr.startswith("_"):
            raise SecurityError(f"{node.attr} is private")
        return node

    def _made(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, _SIZED) if getattr(node, "ctx", "load") == "load" else node

    visit_Concat = visit_List = visit_Tuple = visit_Dict = _made


def _as_expression(node: nodes.Expr) -> nodes.Expr:
    if isinstance(node, nodes.TemplateData):
        return nodes.Const(node.data, lineno=node.lineno)
    return node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


_SEARCHING = (nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)


def _operands(node: nodes.Node) -> Iterable[nodes.Node]:
    if isinstance(node, nodes.Compare):
        return [node.expr, *(each.expr for each in node.ops)]
    if isinstance(node, nodes.Call) and not isinstance(node.node, nodes.Getattr):
        return []  # a macro, which may print its arguments
    assert isinstance(node, nodes.Call | nodes.Filter | nodes.Test)
    return node.args


class _Generation(Extension):
    """`{% generation %}` marks answers for training; its content is rendered as is."""

    tags = {"generation"}  # noqa: RUF012 # as in Jinja's base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    options: Mapping[str, Any] = {"separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refused(message: str) -> NoReturn:
    raise TemplateError(message)


class ReadTurn(dict[str, Any]):
    """A turn that records which of its keys a template reads."""

    def __init__(self, turn: Mapping[str, Any], read: set[str]) -> None:
        super().__init__(turn)
        self._seen = read

    def __getitem__(self, key: str) -> Any:
        self._seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value; the key is recorded."""
        self._seen.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._seen.add(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> dict_keys[str, Any]:
        """All keys, recorded."""
        self._seen.update(super().keys())
        return super().keys()

    def values(self) -> dict_values[str, Any]:
        """All values, with all keys recorded."""
        self._seen.update(super().keys())
        return super().values()

    def items(self) -> dict_items[str, Any]:
        """All items, with all keys recorded."""
        self._seen.update(super().keys())
        return super().items()
