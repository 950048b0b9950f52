"""The command line: `unspool generate`, `chat`, `next`, `score`, `trace`, `compare` and `models`.

Owns: flags, output and exit codes. Does not know: the meaning of options (unspool.config), or how text is generated
(unspool.model). Commands import PyTorch and transformers late, so that `--help` is fast.
"""
