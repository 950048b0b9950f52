"""Pipelines: called as transformers' are, with the same results, around our engine."""

from unspool.pipelines.pipeline import pipeline

__all__ = ["pipeline"]
