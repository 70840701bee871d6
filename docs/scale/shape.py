"""Writes what planning a run of Gemma-2-9B takes and no more: configurations, a tokenizer and triples of made-up words.

    python docs/scale/shape.py build/gemma2_9b build/data/models/SmolLM2-135M-Instruct.Q4_1.gguf

No weights are needed or written. Sizes of the model: Gemma 2's report (arXiv 2408.00118, table 1; its 28,672 counts
the gate and the up projection). SAEs: Gemma Scope's of 16,384 latents (arXiv 2408.05147) at the layers of the DSPA
paper. The tokenizer is another model's and stands for Gemma's, whose files are behind a licence: with 49 thousand
entries instead of 256 thousand it makes somewhat more tokens of a text. Texts are log-normal in length.
"""

import json
import sys
from pathlib import Path
from random import Random

from transformers import Gemma2Config

from harness.data.refs import ModelRef
from harness.model.dequantised import source_of
from harness.model.pretrained import read_tokenizer

TRIPLES = 61_000
MEAN_TOKENS = {"prompt": 150, "chosen": 250, "rejected": 250}  # an assumption, and most FLOPs are proportional to it
SPREAD = 0.6  # of the logarithm
LONGEST = 600
VOCABULARY = """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother
    area money story fact month lot right study book eye job word business issue side kind head house service friend
"""  # one token each in most vocabularies

out, tokenizer = Path(sys.argv[1]), sys.argv[2]
Gemma2Config(
    vocab_size=256_000,
    hidden_size=3584,
    intermediate_size=14_336,
    num_hidden_layers=42,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=256,
    query_pre_attn_scalar=256,
    max_position_embeddings=8192,
).save_pretrained(out / "model")
read_tokenizer(source_of(ModelRef(path=tokenizer))).save_pretrained(out / "model")
for name, layer in (("early", 9), ("late", 39)):
    sae = {"architecture": "jumprelu", "d_in": 3584, "d_sae": 16_384, "dtype": "float32", "device": "cpu"}
    about = {"hook_name": f"blocks.{layer}.hook_resid_post", "model_name": "gemma-2-9b", "sae_lens_version": "6.54.12"}
    (out / name).mkdir(parents=True, exist_ok=True)
    (out / name / "cfg.json").write_text(json.dumps(sae | {"apply_b_dec_to_input": True, "metadata": about}))
draw, words = Random(0), VOCABULARY.split()
with (out / "triples.jsonl").open("w") as file:
    for _ in range(TRIPLES):
        row = {}
        for part, mean in MEAN_TOKENS.items():
            length = round(mean * draw.lognormvariate(-(SPREAD**2) / 2, SPREAD))
            row[part] = " ".join(draw.choices(words, k=min(max(length, 8), LONGEST)))
        file.write(json.dumps(row) + "\n")
