"""Attacks on the program, for `make attack`: each module that is a part has ``run() -> list[Row]``."""
