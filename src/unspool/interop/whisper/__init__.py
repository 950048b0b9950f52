"""Whisper's calls of several windows: timestamps, segments, long audio and repeated attempts, in transformers' form."""
