"""The model behind the server: its queue, its thread, and the figures about both."""
