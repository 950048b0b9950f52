"""Chat: messages to prompts, outputs to messages, and conversations that keep their history."""
