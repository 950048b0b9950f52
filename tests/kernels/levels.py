"""The names of the instruction sets that tests go through."""

from unspool.kernels.build import LEVELS, machine

HERE = list(LEVELS.get(machine(), ()))
