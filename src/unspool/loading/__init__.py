"""From a name, a folder, a GGUF file or a loaded model to a LanguageModel, and back to a folder."""
