"""From a suite file to a filled run folder: load, check, plan, run, resume."""
