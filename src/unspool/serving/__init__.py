"""The HTTP server: OpenAI's API over one engine. Owns routes, fields and limits; decoding is the engine's."""
