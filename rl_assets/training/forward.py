"""The trainer's view of a sequence: logprobs and entropy of each next token, under the grammar where one binds.

Only positions that the policy spoke at are projected onto the vocabulary, which is most of the cost of a small model.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def masked_logprobs(
    model: PreTrainedModel,
    ids: torch.Tensor,
    nodes: torch.Tensor,
    allowed: torch.Tensor | None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprob (nats) and entropy (nats) of ids[:, 1:], float32 (batch, length - 1), zero where nodes[:, 1:] < 0.

    Gradients flow through the logprobs alone.

    ids, nodes: int64 (batch, length); nodes holds the grammar node before a spoken token and -1 elsewhere. allowed:
    bool (nodes, vocabulary) or None for a policy that speaks freely. attention_mask: None for causal, or bool (batch,
    1, length, length), True where a query may look.
    """
    hidden = model.base_model(
        input_ids=ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    spoken = nodes[:, 1:] >= 0
    head = model.get_output_embeddings()
    assert head is not None
    logits = head(hidden[:, :-1][spoken]).float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed[nodes[:, 1:][spoken]], float("-inf"))
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, ids[:, 1:][spoken][:, None])[:, 0]
    with torch.no_grad():
        # What may not be said has probability 0 and logprob -inf, and adds nothing.
        varied = -(logprobs.exp() * logprobs).nan_to_num(nan=0.0).sum(-1)
    out = torch.zeros(spoken.shape, dtype=torch.float32)
    entropy = torch.zeros(spoken.shape, dtype=torch.float32)
    return out.masked_scatter(spoken, chosen), entropy.masked_scatter(spoken, varied)
