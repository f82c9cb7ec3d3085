"""Claim: eight clients at once get at least four times the tokens per second of one.

    python benchmarks/serving.py MODEL_DIR [--clients 8] [--tokens 256] [--rounds 6] [--threads 2]

`mlc-bridge serve` runs in a process of its own, the clients are sockets of this one. One client and
all of them take turns, so that whatever else the machine does meets both; the ratio is that of the
medians, printed beside the pairs' own spread. Every answer has exactly ``--tokens`` tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = {
    "plain, greedy": {"temperature": 0},
    "plain, sampled": {"temperature": 1.0},
    "streamed, greedy": {"temperature": 0, "stream": True},
    "streamed, sampled": {"temperature": 1.0, "stream": True},
}
PROMPT = "def read_lines(path):\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    with serving(args.model, args.threads) as port:
        print(f"{args.model.name}: {args.threads} threads, {args.tokens} tokens, tokens/s in all")
        print(f"{'':20}{'one':>24}{f'{args.clients} at once':>24}{'ratio':>8}{'of pairs':>16}")
        for name, options in KINDS.items():
            pairs = [
                [rate(port, n, args.tokens, options) for n in (1, args.clients)]
                for _ in range(args.rounds + 1)
            ][1:]
            print(line(name, pairs), flush=True)


@contextmanager
def serving(model: Path, threads: int) -> Iterator[int]:
    """A server of ``model``; its port."""
    command = [sys.executable, "-m", "mlc_bridge", "serve", str(model), "--port", "0"]
    command += ["--mode", "server", "--threads", str(threads)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().rsplit(":", 1)[1])
        while True:
            try:
                asyncio.run(answer(port, 1, {}))
                break
            except (AssertionError, OSError):
                time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


def rate(port: int, clients: int, tokens: int, options: dict[str, object]) -> float:
    """Tokens per second of all clients together."""

    async def together() -> None:
        await asyncio.gather(*(answer(port, tokens, options) for _ in range(clients)))

    start = time.perf_counter()
    asyncio.run(together())
    return clients * tokens / (time.perf_counter() - start)


async def answer(port: int, tokens: int, options: dict[str, object]) -> None:
    """One request, read to its end."""
    body = json.dumps({"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, **options})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    found = await reader.read()
    writer.close()
    assert found.startswith(b"HTTP/1.1 200"), found[:300]


def line(name: str, pairs: list[list[float]]) -> str:
    one, all_ = ([pair[i] for pair in pairs] for i in (0, 1))
    ratios = [b / a for a, b in pairs]
    ratio = statistics.median(all_) / statistics.median(one)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"{name:20}{of(one):>24}{of(all_):>24}{ratio:>8.2f}{spread:>16}"


def of(values: list[float]) -> str:
    """min / median / max"""
    return f"{min(values):.0f}/{statistics.median(values):.0f}/{max(values):.0f}"


if __name__ == "__main__":
    main()
