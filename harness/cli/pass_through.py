"""``dspa-bench lm-eval`` and ``fastchat``: the evaluators' own programs, in a process that knows artifacts."""

import os
import runpy
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from harness.cli.options import command_group
from harness.plugins import installed, need

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
    need("lm_eval", "`dspa-bench lm-eval`")
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
    """FastChat's modules with all their own arguments; artifacts are models to them.

    `fastchat.serve.controller`, `fastchat.serve.model_worker` (or `multi_model_worker`) and
    `fastchat.serve.openai_api_server`, each in a process of its own, serve artifacts under OpenAI's API.
    `fastchat.serve.cli` and `huggingface_api` talk to one, `fastchat.llm_judge.gen_model_answer` has it answer
    questions, `show_result` and `qa_browser` show judgments.

    For a module's own help: `dspa-bench fastchat MODULE --help`
    """
    fastchat_command(module, context.args)


_SERVE = "serve artifacts with `dspa-bench fastchat fastchat.serve.model_worker`"
_INSTEAD = {
    "fastchat.llm_judge.gen_judgment": "it needs openai < 1; use `dspa-bench mt-bench judge ANSWERS`",
    "fastchat.llm_judge.gen_api_answer": "it needs openai < 1; for an artifact use fastchat.llm_judge.gen_model_answer",
    "fastchat.serve.launch_all_serve": f"the processes that it starts know no artifacts; {_SERVE}",
    **dict.fromkeys(
        (f"fastchat.serve.{name}_worker" for name in ("huggingface_api", "vllm", "lightllm", "sglang", "mlx")),
        f"its backend loads models itself, without steering; {_SERVE}",
    ),
}
"""What cannot run artifacts, or not with the libraries of today, and what to use."""
_GRADIO = ("fastchat.llm_judge.qa_browser", "fastchat.serve.gradio_")


def fastchat_command(module: str, arguments: Sequence[str]) -> None:
    """Run ``module`` of FastChat as ``python -m`` would, with ``arguments``; raises ValueError for no such module.

    FastChat writes log files into the current folder by default; here it does so only where LOGDIR says.
    """
    need("fastchat", "`dspa-bench fastchat`")
    if not module.startswith("fastchat.") or not installed(module):
        raise ValueError(
            f"FastChat has no module {module!r}; for example fastchat.serve.model_worker, fastchat.serve.controller, "
            "fastchat.serve.openai_api_server, fastchat.serve.cli, fastchat.llm_judge.show_result"
        )
    if module in _INSTEAD:
        raise ValueError(f"{module}: {_INSTEAD[module]}")
    if module.startswith(_GRADIO) and not installed("gradio"):
        raise ValueError(
            f"{module} needs gradio, which is not installed: `pip install 'gradio<4'`; all answers and verdicts "
            "of a run are in its report/report.html, too"
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
        with ExitStack() as mended:
            if module == "fastchat.llm_judge.gen_model_answer":
                from harness.evaluators.fastchat.model import answering

                mended.enter_context(answering(arguments))
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
