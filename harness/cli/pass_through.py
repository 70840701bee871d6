"""``dspa-bench lm-eval`` and ``fastchat``: the evaluators' own programs, in a process that knows artifacts."""

import os
import runpy
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from harness.cli.options import command_group
from harness.plugins import installed

commands = command_group()
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


class _HandingOver(TyperCommand):
    """All that follows a word is the other program's, `--help` too; before it the options are ours."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if not args or args[0].startswith("-") else ["--", *args])


@commands.command(
    "lm-eval",
    cls=_HandingOver,
    context_settings=PASS_THROUGH,
    epilog="Example: `dspa-bench lm-eval run --model aligned --model_args artifact=dspa-300 --tasks arc_easy`",
)
def lm_eval(context: typer.Context) -> None:
    """lm-eval with all its own arguments; artifacts are its model type `aligned`.

    For lm-eval's own help: `dspa-bench lm-eval run --help`
    """
    from harness.evaluators.lm_eval import main as lm_eval_main

    lm_eval_main(context.args)


@commands.command(
    "fastchat",
    cls=_HandingOver,
    context_settings=PASS_THROUGH,
    epilog="Example: `dspa-bench fastchat fastchat.serve.model_worker --model-path dspa-300 --device cpu`",
)
def fastchat(
    context: typer.Context, module: Annotated[str, typer.Argument(help="FastChat's module, e.g. fastchat.serve.cli.")]
) -> None:
    """Any module of FastChat with all its own arguments; artifacts are models to it.

    `fastchat.serve.controller`, `fastchat.serve.model_worker` and `fastchat.serve.openai_api_server`, each in a process
    of its own, serve an artifact under OpenAI's API.

    For a module's own help: `dspa-bench fastchat MODULE --help`
    """
    fastchat_command(module, context.args)


def fastchat_command(module: str, arguments: Sequence[str]) -> None:
    """Run ``module`` of FastChat as ``python -m`` would, with ``arguments``; raises ValueError for no such module.

    FastChat writes log files into the current folder by default; here it does so only where LOGDIR says.
    """
    if not module.startswith("fastchat.") or not installed(module):
        raise ValueError(
            f"FastChat has no module {module!r}; for example fastchat.serve.model_worker, fastchat.serve.controller, "
            "fastchat.serve.openai_api_server, fastchat.serve.cli, fastchat.llm_judge.show_result"
        )
    os.environ.setdefault("LOGDIR", "")
    if module == "fastchat.serve.openai_api_server":
        from harness.evaluators.fastchat import mend_chunks

        mend_chunks()
    elif module != "fastchat.serve.controller":  # these two hold no model, and start in no time without torch
        from harness.evaluators.fastchat.model import register

        register()
    if module == "fastchat.llm_judge.qa_browser":
        from harness.evaluators.fastchat import mend_browser

        mend_browser()
    before = sys.argv
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
