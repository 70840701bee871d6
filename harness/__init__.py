"""dspa-bench: the machine. It knows no method, no task and no report by name."""
