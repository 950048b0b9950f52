"""Chat: messages to prompts, outputs to messages, conversations that keep their history."""
