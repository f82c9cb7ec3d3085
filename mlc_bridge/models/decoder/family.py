"""What all architectures of the family share: an architecture says how its config is read, and
which ``Decoder`` it describes; weight table, graph and states are the decoder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlc_bridge.models.arch import Weight
from mlc_bridge.models.decoder.model import Decoder
from mlc_bridge.models.decoder.rope_block import refuse_unknown, unknown
from mlc_bridge.models.decoder.settings import Settings
from mlc_bridge.schemes.scheme import Scheme

if TYPE_CHECKING:
    from mlc_bridge.models.arch import Graph


class DecoderFamily:
    name: str
    defaults: Mapping[str, Any] = {}
    """What transformers' config class of this architecture sets where config.json is silent."""
    renamed: Mapping[str, str] = {}
    """Keys of config.json -> how this family calls them."""
    rope_keys: tuple[str, ...] = ()
    """Keys that this architecture alone reads in a rotary embedding's block."""

    def read(self, flat: Settings) -> Any:
        """The architecture's config; every key that it asks for counts as read."""
        raise NotImplementedError

    def decoder(self, config: Any) -> Decoder:
        raise NotImplementedError

    def config(self, hf: Mapping[str, Any], **overrides: Any) -> Any:
        """Raises ConfigError for a value that cannot be built and for a key of effect unread."""
        flat = Settings.of(hf, overrides, self.defaults, self.renamed)
        made = self.read(flat)
        flat.refuse_unread()
        refuse_unknown(flat, self.rope_keys)
        return made

    def unused(self, hf: Mapping[str, Any]) -> tuple[str, ...]:
        """Keys of a config.json that are neither read nor known to be harmless."""
        flat = Settings.of(hf, {}, self.defaults, self.renamed)
        self.read(flat)
        return (*flat.unread(), *unknown(flat, self.rope_keys))

    def weights(self, config: Any) -> list[Weight]:
        return self.decoder(config).weights()

    def graph(self, config: Any, scheme: Scheme) -> Graph:
        from mlc_bridge.models.decoder.graph import DecoderGraph
        from mlc_bridge.models.decoder.hybrid_graph import HybridGraph

        decoder = self.decoder(config)
        return (HybridGraph if decoder.is_hybrid else DecoderGraph)(decoder, scheme)
