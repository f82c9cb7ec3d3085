"""Chat with a compiled model through MLCEngine: ours, or MLC LLM's on the same artifact.

    python examples/infer_with_mlcengine.py dist/model --prompt "What does os.path.join do?"
    python examples/infer_with_mlcengine.py dist/model --engine mlc_llm

Both engines take the same calls; only the import differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def open_engine(kind: str, model: str, model_lib: str | None, device: str) -> Any:
    if kind == "mlc_bridge":
        from mlc_bridge import MLCEngine

        return MLCEngine(model, device, model_lib=model_lib)
    try:
        from mlc_llm import MLCEngine as TheirEngine
    except ImportError:
        sys.exit(
            "--engine mlc_llm needs MLC LLM's own wheels, in an environment without apache-tvm; "
            "`mlc-bridge doctor` says where they are"
        )
    lib = model_lib or str(Path(model) / "lib.so")
    return TheirEngine(model, device=device, model_lib=lib, mode="local")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model directory: mlc-chat-config.json, weights, lib.so")
    parser.add_argument("--model-lib", help="compiled lib (default: lib.so of the model directory)")
    parser.add_argument("--engine", choices=["mlc_bridge", "mlc_llm"], default="mlc_bridge")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt", default="Write a Python function that reads a file.")
    parser.add_argument("--max-tokens", type=int, default=128)
    args = parser.parse_args()

    engine = open_engine(args.engine, args.model, args.model_lib, args.device)
    try:
        for response in engine.chat.completions.create(
            messages=[{"role": "user", "content": args.prompt}],
            model=args.model,
            max_tokens=args.max_tokens,
            temperature=0.0,
            stream=True,
        ):
            for choice in response.choices:
                print(choice.delta.content or "", end="", flush=True)
        print()
    finally:
        engine.terminate()


if __name__ == "__main__":
    main()
