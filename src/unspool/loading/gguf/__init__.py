"""GGUF files: llama.cpp's format, converted once to a folder of transformers."""
