"""Requests of the server: their fields, and the options of the engine that they become."""
