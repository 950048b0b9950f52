"""Plots of results with matplotlib, one picture per file: pure functions of the result.

Importing this package raises `MissingExtra` if matplotlib is not installed.
"""

from __future__ import annotations

from unspool.extras import require_extra

require_extra("plot", "`plot` draws with matplotlib")
