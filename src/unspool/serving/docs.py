"""The tables of docs/serving.md, from the table of fields and the settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Final

from unspool.serving.requests.fields import BOTH, FIELDS, RequestField
from unspool.serving.settings import ModelSettings, Settings

BEGIN: Final = "<!-- {name}: begin -->"
END: Final = "<!-- {name}: end -->"


def tables() -> dict[str, str]:
    """Return the Markdown tables by name."""
    named = [field for field in FIELDS if field.source in ("OpenAI", "vLLM")]
    ours = [field for field in FIELDS if field.source == "Unspool"]
    inert = ", ".join(f"`{field.name}`" for field in FIELDS if field.source == "inert")
    return {
        "fields": _field_table(named),
        "options": _field_table(field for field in ours),
        "inert": f"{inert}\n",
        "settings": _setting_table(),
    }


def _field_table(rows: Iterable[RequestField]) -> str:
    lines = ["| Field | From | Route | Meaning |", "|---|---|---|---|"]
    for row in rows:
        route = "both" if row.routes == BOTH else row.routes[0]
        lines.append(f"| `{row.name}` | {row.source} | {route} | {row.help.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _setting_table() -> str:
    lines = ["| Setting | Default | Meaning |", "|---|---|---|"]
    for each in (*fields(ModelSettings), *fields(Settings)):
        default = "" if each.default in (None, ()) else f"`{each.default}`"
        lines.append(f"| `{each.name}` | {default} | {each.metadata['help']} |")
    return "\n".join(lines) + "\n"


def filled(page: str) -> str:
    """Return a page with the tables between their markers written anew."""
    for name, table in tables().items():
        begin, end = BEGIN.format(name=name), END.format(name=name)
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n\n{table}\n{end}{after}"
    return page
