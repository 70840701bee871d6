"""Brute-force references the tests compare with: plain loops, no cache, one row at a time."""

import math
from contextlib import contextmanager

import numpy as np
import torch

from harness.model.decoder import find_decoder


def dense_map(rho, delta, percentile, gate, min_support):
    """A by its definition, in float64 loops over input latents."""
    n, d_in = rho.shape
    a = np.zeros((d_in, delta.shape[1]))
    for i in range(d_in):
        tau = np.percentile(rho[:, i], percentile)
        open_ = rho[:, i] >= tau
        if gate == "strict":
            open_ &= rho[:, i] > 0
            if open_.sum() >= min_support:
                a[i] = delta[open_].sum(0) / open_.sum()
        else:
            a[i] = delta[open_].sum(0) / n
    return a


@contextmanager
def hooked(module, hook):
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class ReferenceDSPA:
    """DSPA on one row at a time, recomputing everything from scratch at every token."""

    def __init__(self, aligned):
        steering = aligned.intervention
        settings = steering.params()
        self.model, self.chat, self.settings = aligned.model, aligned.chat, settings
        self.input, self.output = steering.saes
        self.map = steering.condition_map.truncated
        self.input_limit, self.output_limit = (math.inf if x is None else x for x in settings["norm_limits"])
        self.layers = find_decoder(aligned.model).layers

    def words(self, ids: list[int]) -> list[str]:
        return self.chat.tokenizer.convert_ids_to_tokens(ids)

    @torch.no_grad()
    def sets(self, prompt: list[int]) -> tuple[list[int], list[int]]:
        seen = {}

        def keep(_module, _args, out):
            seen["h"] = out[0] if isinstance(out, tuple) else out

        with hooked(self.layers[self.input.layer], keep):
            self.model(input_ids=torch.tensor([prompt]))
        short = seen["h"][0].float().norm(dim=-1) <= self.input_limit
        kept = [p for p, token in enumerate(prompt) if token not in self.chat.special_ids and short[p]]
        if self.settings["condition"] == "last_turn" and "usr" in (words := self.words(prompt)):
            begin = len(words) - words[::-1].index("usr")
            kept = [p for p in kept if begin <= p < begin + words[begin:].index("end")]
        if not kept:
            return [], []
        rho = (self.input.sae.encode(seen["h"][0, kept]) > 0).double().mean(0)
        order = sorted(range(len(rho)), key=lambda i: -float(rho[i]))
        chosen = [i for i in order[: self.settings["k_prompt"]] if rho[i] > 0]
        s = np.zeros(self.map.d_out)
        for i in chosen:
            for column, value in zip(self.map.columns[i].tolist(), self.map.values[i].tolist(), strict=True):
                s[column] += value
        order = np.argsort(s, kind="stable")
        k = self.settings["k_diff"]
        ablate = [int(j) for j in order[:k] if s[j] < 0] if self.settings["mode"] != "augment" else []
        augment = [int(j) for j in order[::-1][:k] if s[j] > 0] if self.settings["mode"] != "ablate" else []
        return ablate, augment

    @torch.no_grad()
    def logits(self, prompt: list[int], continuation: list[int]):
        """Logits at every position of prompt + continuation, steered from the last prompt token on."""
        ablate, augment = self.sets(prompt)
        ids = prompt + continuation
        first = 0 if self.settings["positions"] == "all" else len(prompt) - 1
        edited = [p for p in range(first, len(ids)) if ids[p] not in self.chat.special_ids]

        def hook(_module, _args, out):
            h = (out[0] if isinstance(out, tuple) else out).clone()
            for p in edited:
                if h[0, p].float().norm() > self.output_limit:
                    continue
                f = self.output.sae.encode(h[0, p])
                g = f.clone()
                size = float(f.max())
                for j in ablate + augment:
                    if f[j] > 0:
                        step = self.settings["alpha"] * (size if self.settings["scale"] == "max" else float(f[j]))
                        g[j] = max(float(f[j]) + (step if j in augment else -step), 0.0)
                h[0, p] += self.output.sae.W_dec.T @ (g - f)
            return (h, *out[1:]) if isinstance(out, tuple) else h

        with hooked(self.layers[self.output.layer], hook):
            return self.model(input_ids=torch.tensor([ids])).logits[0]

    def greedy(self, prompt: list[int], n: int) -> tuple[int, ...]:
        new: list[int] = []
        while len(new) < n:
            new.append(int(self.logits(prompt, new)[-1].argmax()))
            if new[-1] in self.chat.stop_ids:
                break
        return tuple(new)
