"""The registry of peers, in the order in which they take turns."""

from . import chunked, compiled, correlation_sampler, eager, flex, float32_scores, kornia, ours, sdpa
from .base import Peer

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        ours.PEER,
        ours.TWO_CALLS,
        eager.PEER,
        float32_scores.PEER,
        eager.UNFOLD,
        chunked.PEER,
        sdpa.PEER,
        kornia.PEER,
        correlation_sampler.PEER,
        flex.PEER,
        compiled.PEER,
    )
}
