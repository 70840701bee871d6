"""The command line. Its modules may be imported one by one, as those of other packages' commands do."""


def main() -> None:
    """The console script `dspa-bench` (see `harness.cli.app.main`)."""
    from harness.cli.app import main as program

    program()
