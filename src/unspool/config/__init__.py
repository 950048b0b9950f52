"""GenerationConfig, the option table, and the resolution of config layers.

Importing this package loads neither torch nor transformers.
"""

from unspool.config.docs import help_for, json_schema, option_table_markdown
from unspool.config.foreign import NO_EFFECT, REFUSED
from unspool.config.generation import OPTIONS, GenerationConfig, nearest_option, option_status
from unspool.config.layers import resolve
from unspool.config.strategies import STRATEGIES
from unspool.options.option import GROUPS, UNSET, Option
from unspool.options.order import PROCESSOR_ORDER, complete_order

__all__ = [
    "GROUPS",
    "NO_EFFECT",
    "OPTIONS",
    "PROCESSOR_ORDER",
    "REFUSED",
    "STRATEGIES",
    "UNSET",
    "GenerationConfig",
    "Option",
    "complete_order",
    "help_for",
    "json_schema",
    "nearest_option",
    "option_table_markdown",
    "resolve",
    "option_status",
]
