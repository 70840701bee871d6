"""``dspa-bench fastchat``: FastChat's own modules, in a process that knows artifacts."""

import os
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec


def fastchat_command(module: str, arguments: Sequence[str]) -> None:
    """Run ``module`` of FastChat as ``python -m`` would, with ``arguments``; raises ValueError for no such module.

    FastChat writes log files into the current folder by default; here it does so only where LOGDIR says.
    """
    if not module.startswith("fastchat.") or not _exists(module):
        raise ValueError(
            f"FastChat has no module {module!r}; for example fastchat.serve.model_worker, fastchat.serve.controller, "
            "fastchat.serve.openai_api_server, fastchat.serve.cli, fastchat.llm_judge.show_result"
        )
    os.environ.setdefault("LOGDIR", "")
    if module == "fastchat.serve.openai_api_server":
        from harness.evaluators.fastchat.patches import mend_chunks

        mend_chunks()
    elif module != "fastchat.serve.controller":  # these two hold no model, and start in no time without torch
        from harness.evaluators.fastchat.model import register

        register()
    if module == "fastchat.llm_judge.qa_browser":
        from harness.evaluators.fastchat.patches import mend_browser

        mend_browser()
    before = sys.argv
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
