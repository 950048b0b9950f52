"""The command line: the `unspool` program, with one file per subcommand.

Owns: flags, output and exit codes. Does not know: the meaning of options (unspool.config), or how text is generated
(unspool.model). Commands import PyTorch and transformers late, so that `--help` is fast.
"""
