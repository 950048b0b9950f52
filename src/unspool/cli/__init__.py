"""The command line: `unspool generate`, `unspool next`, `unspool models`.

Owns: flags, what is shown where, exit codes. Does not know: what an option means (unspool.config), how text is made
(unspool.model). Nothing heavy is imported before a command needs it, so that help answers at once.
"""
