"""draw(): renders a result for a terminal, a notebook or a page, with a registered drawing function.

Owns: the registry of drawing functions. Results use it instead of importing their renderers, to avoid an import cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

Medium: TypeAlias = Literal["plain", "terminal", "html", "markdown"]
Function = TypeVar("Function", bound=Callable[..., Any])

_DRAWINGS = "unspool.results.render"
_FUNCTIONS: dict[tuple[type, Medium], Callable[..., Any]] = {}


def draws(kind: type, medium: Medium) -> Callable[[Function], Function]:
    """Register the decorated function as the renderer of this result type for this medium."""

    def register(function: Function) -> Function:
        _FUNCTIONS[kind, medium] = function
        return function

    return register


def draw(result: Any, medium: Medium, **options: Any) -> Any:
    """Return the rendered result: text, or a rich renderable for a terminal.

    Args:
        result: a value of a registered type, or of a subclass.
        medium: the output medium.
        options: options of the drawing function, such as the `width` of a terminal in cells.
    """
    import_module(_DRAWINGS)
    function = next(_FUNCTIONS[kind, medium] for kind in type(result).__mro__ if (kind, medium) in _FUNCTIONS)
    return function(result, **options)


class Drawn:
    """Mixin that prints a result as its drawing: as text, in a terminal and in a notebook."""

    __slots__ = ()

    def __str__(self) -> str:
        return str(draw(self, "plain"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield draw(self, "terminal", width=options.max_width)

    def _repr_html_(self) -> str:
        return str(draw(self, "html"))
