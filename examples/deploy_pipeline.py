"""The four stages of ``mlc-bridge build``, one by one, with the Python API.

    python examples/deploy_pipeline.py examples/models/stdlib-llama-7m-awq dist/pipeline

Each stage is a function from a frozen Job to a frozen Report and reads and writes files, so any of
them can be run alone, on another machine, or replaced by MLC LLM's own tool.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlc_bridge import (
    CompileJob,
    ConvertJob,
    GenConfigJob,
    MLCEngine,
    compile_model,
    convert_weight,
    gen_config,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Checkpoint to answer, stage by stage.")
    parser.add_argument("model_dir", help="checkpoint directory or hub id")
    parser.add_argument("output", type=Path, help="MLC directory to write")
    parser.add_argument("--prompt", default="Write a Python function that reads a file.")
    args = parser.parse_args()

    # 1. mlc-chat-config.json and tokenizer; the scheme is the one that keeps the checkpoint's bits.
    config = gen_config(GenConfigJob(args.model_dir, args.output)).config
    print(f"1 gen-config  {config.model_type}, {config.quantization}, {config.conv_template.name}")

    # 2. params_shard_*.bin and tensor-cache.json.
    weights = convert_weight(ConvertJob(args.model_dir, args.output, config.quantization))
    print(f"2 convert     {weights.nbytes / 1e6:.2f} MB, {weights.bits_per_weight:.2f} bits/weight")

    # 3. lib.so for this machine.
    lib = compile_model(CompileJob(args.output, args.output / "lib.so"))
    print(f"3 compile     {lib.path}, {lib.seconds:.1f} s")

    # 4. An answer, token by token.
    print("4 chat        ", end="")
    with MLCEngine(args.output) as engine:
        for chunk in engine.chat.completions.create(
            messages=[{"role": "user", "content": args.prompt}],
            max_tokens=64,
            temperature=0.0,
            stream=True,
        ):
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
