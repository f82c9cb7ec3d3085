"""The architectures: HF ``model_type`` -> config, weight table and relax graph."""

from __future__ import annotations

from mlc_bridge.models.arch import Arch, ModelConfig, Weight
from mlc_bridge.models.cohere import COHERE
from mlc_bridge.models.cohere2 import COHERE2
from mlc_bridge.models.deepseek_v2 import DEEPSEEK_V2
from mlc_bridge.models.deepseek_v3 import DEEPSEEK_V3
from mlc_bridge.models.ernie4_5 import ERNIE4_5
from mlc_bridge.models.ernie4_5_moe import ERNIE4_5_MOE
from mlc_bridge.models.exaone4 import EXAONE4
from mlc_bridge.models.gemma import GEMMA
from mlc_bridge.models.gemma2 import GEMMA2
from mlc_bridge.models.gemma3_text import GEMMA3_TEXT
from mlc_bridge.models.glm4 import GLM4
from mlc_bridge.models.glm4_moe import GLM4_MOE
from mlc_bridge.models.glm4_moe_lite import GLM4_MOE_LITE
from mlc_bridge.models.gpt_oss import GPT_OSS
from mlc_bridge.models.granite import GRANITE
from mlc_bridge.models.granitemoe import GRANITEMOE
from mlc_bridge.models.granitemoehybrid import GRANITEMOEHYBRID
from mlc_bridge.models.hunyuan_v1_dense import HUNYUAN_V1_DENSE
from mlc_bridge.models.hunyuan_v1_moe import HUNYUAN_V1_MOE
from mlc_bridge.models.internlm3 import INTERNLM3
from mlc_bridge.models.lfm2 import LFM2
from mlc_bridge.models.lfm2_moe import LFM2_MOE
from mlc_bridge.models.llama import LLAMA
from mlc_bridge.models.mellum import MELLUM
from mlc_bridge.models.ministral3 import MINISTRAL3
from mlc_bridge.models.mistral import MISTRAL
from mlc_bridge.models.mistral4 import MISTRAL4
from mlc_bridge.models.mixtral import MIXTRAL
from mlc_bridge.models.nemotron import NEMOTRON
from mlc_bridge.models.nemotron_h import NEMOTRON_H
from mlc_bridge.models.olmo2 import OLMO2
from mlc_bridge.models.olmo3 import OLMO3
from mlc_bridge.models.olmoe import OLMOE
from mlc_bridge.models.phi3 import PHI3
from mlc_bridge.models.qwen2 import QWEN2
from mlc_bridge.models.qwen2_moe import QWEN2_MOE
from mlc_bridge.models.qwen3 import QWEN3
from mlc_bridge.models.qwen3_5_moe_text import QWEN3_5_MOE_TEXT
from mlc_bridge.models.qwen3_5_text import QWEN3_5_TEXT
from mlc_bridge.models.qwen3_moe import QWEN3_MOE
from mlc_bridge.models.qwen3_next import QWEN3_NEXT
from mlc_bridge.models.seed_oss import SEED_OSS
from mlc_bridge.models.smollm3 import SMOLLM3
from mlc_bridge.models.starcoder2 import STARCODER2
from mlc_bridge.registry import Table, table

MODELS: Table[Arch] = table(
    "models",
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3_TEXT,
    PHI3,
    MIXTRAL,
    QWEN3_MOE,
    EXAONE4,
    GEMMA,
    ERNIE4_5,
    GLM4,
    GRANITE,
    GRANITEMOEHYBRID,
    LFM2,
    LFM2_MOE,
    OLMO2,
    OLMO3,
    QWEN3_5_TEXT,
    QWEN3_5_MOE_TEXT,
    QWEN3_NEXT,
    SEED_OSS,
    SMOLLM3,
    COHERE,
    COHERE2,
    NEMOTRON,
    NEMOTRON_H,
    MISTRAL4,
    GLM4_MOE_LITE,
    DEEPSEEK_V3,
    DEEPSEEK_V2,
    STARCODER2,
    HUNYUAN_V1_DENSE,
    INTERNLM3,
    MINISTRAL3,
    QWEN2_MOE,
    GLM4_MOE,
    ERNIE4_5_MOE,
    OLMOE,
    MELLUM,
    GPT_OSS,
    GRANITEMOE,
    HUNYUAN_V1_MOE,
)

__all__ = ["MODELS", "Arch", "ModelConfig", "Weight"]
