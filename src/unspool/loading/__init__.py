"""Loading models: from a name, a folder, a GGUF file or a loaded model to a LanguageModel."""
