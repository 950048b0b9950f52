"""HTTP of the server: events, answers, security, sockets, and the OpenAPI document."""
