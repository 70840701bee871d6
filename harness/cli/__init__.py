"""The command line. Its modules may be imported one by one, as those of other packages' commands do."""


def main() -> None:
    """The console script `dspa-bench` (see `harness.cli.app.main`). It begins this process anew to set up its heap."""
    from harness.plugins import put_first

    put_first()  # before anything of ours is imported that a file in the working folder may hide
    from harness.heap import restart_with_heap

    restart_with_heap()
    from harness.cli.failures import one_line

    with one_line():  # an installed package's commands may not even load
        from harness.cli.app import main as program

        program()
