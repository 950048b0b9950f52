"""Parts of the server's answers, in the shapes of OpenAI."""
