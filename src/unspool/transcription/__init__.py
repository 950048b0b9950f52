"""Transcription of audio of any length: windows of audio, their segments, and the decision to try again."""
