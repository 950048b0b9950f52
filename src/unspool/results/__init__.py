"""Result types: frozen values with text, JSON, terminal and notebook forms. They depend on neither model nor engine."""

from unspool.results.comparison import Compared, Comparison
from unspool.results.figures import Figures
from unspool.results.generation import Chunk, Completion, Generation, Timing, TopLogprob, Usage
from unspool.results.next_tokens import NextToken, NextTokens
from unspool.results.score import TextScore
from unspool.results.table import to_records
from unspool.results.trace import Trace, trace_schema
from unspool.results.transcript import Transcript, TranscriptSegment

__all__ = [
    "Chunk",
    "Compared",
    "Comparison",
    "Completion",
    "Figures",
    "Generation",
    "NextToken",
    "NextTokens",
    "TextScore",
    "Timing",
    "TopLogprob",
    "Trace",
    "Transcript",
    "TranscriptSegment",
    "Usage",
    "to_records",
    "trace_schema",
]
