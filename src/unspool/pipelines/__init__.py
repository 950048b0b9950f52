"""Pipelines with the calls and results of transformers' pipelines, on our engine."""

from unspool.pipelines.pipeline import pipeline

__all__ = ["pipeline"]
