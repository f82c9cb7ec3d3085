"""A file of the real msModelSlim, built: the logits of Hugging Face with the tool's own weights.

Its fallback left q and k, o and the MLP in float and quantized v, so the fused layer stands apart.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers
from built import Build
from safetensors.torch import load_file

UNUSED = ("prefill", "batch_prefill", "decode", "batch_decode")
CASE = Path(__file__).parents[1] / "golden/sources/msmodelslim/real-w8a8-fallback-q-k"


def test_logits_of_the_tools_weights(built: Build, tmp_path: Path) -> None:
    model = built(CASE, "auto", without=UNUSED)
    ids = model.tokens(48)
    with torch.no_grad():
        wanted = reference(tmp_path)(torch.tensor([ids])).logits[0]
    got = torch.tensor(model.lib.all_logits(model.lib.cache(), ids))
    # One row of any layer set to zero moves a logit by 0.39 to 3 of their standard deviation.
    assert (got - wanted).abs().max() < 0.02 * wanted.std()


def reference(home: Path) -> torch.nn.Module:
    """The float32 model of the file's float tensors and the tool's dequantized ones."""
    (file,) = CASE.glob("quant_model_weight*.safetensors")
    state = {n: t for n, t in load_file(file).items() if t.dtype == torch.float32}
    state |= {n: t for n, t in load_file(CASE / "expected.safetensors").items() if "codes" not in n}
    shutil.copyfile(CASE / "config.json", home / "config.json")
    config = transformers.AutoConfig.from_pretrained(home)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict({n: t for n, t in state.items() if n in model.state_dict()})
    return model.eval()
