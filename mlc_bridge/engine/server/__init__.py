"""OpenAI's REST interface over an engine (starlette and uvicorn, the extra ``serve``).

    POST /v1/chat/completions  /v1/completions  /v1/responses     server-sent events with "stream"
    GET  /v1/models  /v1/models/{id}
    POST /tokenize  /detokenize
    GET  /health  /version  /metrics  /

Errors are OpenAI's error object: 400 for what a request got wrong, 429 and 503 for what we cannot
take now, 500 for what we did. A client that goes away cancels its answers, streamed or not.
"""

from mlc_bridge.errors import MissingDependency

try:
    import prometheus_client  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise MissingDependency(str(error.name), "serving", "pip install 'mlc-bridge[serve]'") from None

from mlc_bridge.engine.server.app import app
from mlc_bridge.engine.server.run import serve
from mlc_bridge.engine.server.settings import Settings

__all__ = ["Settings", "app", "serve"]
