"""A draft made of chosen layers of its target, with sorted exits that share one norm and one head (SD2).

Used by train.py. Shapes: B documents, L positions, M positions with a loss, D width, E exits, N tokens of the
draft vocabulary, K cached teacher probabilities per position.
Paper: Sorted Fine-Tuning (Valipour et al., 2023), of which SD2 makes drafts.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from methods.errors import UserError


def chosen_layers(text: str, available: int) -> list[int]:
    """Layers named by `first-K`, `spread-K` (evenly over the depth, both ends included) or a list like 0,1,5,29."""
    kind, _, number = text.partition("-")
    if kind in ("first", "spread") and number.isdigit() and 1 <= int(number) <= available:
        count = int(number)
        return list(range(count)) if kind == "first" else _spread(count, available)
    parts = text.replace(",", " ").split()
    layers = [int(part) for part in parts if part.isdigit()]
    if not layers or len(layers) != len(parts) or sorted(set(layers)) != layers or layers[-1] >= available:
        raise UserError(f"expected first-K, spread-K or ascending layer numbers below {available}, got '{text}'")
    return layers


def _spread(count: int, available: int) -> list[int]:
    return [round(i * (available - 1) / max(count - 1, 1)) for i in range(count)]


class SortedDraft(nn.Module):
    """Chosen layers of a target with its frozen embedding; norm and head of its own, shared by all exits."""

    embedding_VD: Tensor
    tokens_N: Tensor

    def __init__(self, target: LlamaForCausalLM, layers: Sequence[int], exits: Sequence[int], tokens_N: Tensor) -> None:
        super().__init__()
        if not exits or sorted(set(exits)) != list(exits) or exits[0] < 1 or exits[-1] != len(layers):
            raise UserError(f"expected ascending exits that end at {len(layers)} layers, got {list(exits)}")
        self.layer_numbers, self.exits = list(layers), list(exits)
        self.config: LlamaConfig = copy.deepcopy(target.config)
        self.config.num_hidden_layers = len(layers)
        self.config._attn_implementation = "sdpa"
        self.rotary = LlamaRotaryEmbedding(self.config)
        self.layers = nn.ModuleList(self._layer(target, source, i) for i, source in enumerate(layers))
        self.norm: LlamaRMSNorm = copy.deepcopy(target.model.norm)
        self.head = nn.Parameter(target.lm_head.weight.detach()[tokens_N].clone())
        self.register_buffer("embedding_VD", target.model.embed_tokens.weight.detach().clone(), persistent=False)
        self.register_buffer("tokens_N", tokens_N)
        whole = sum(p.numel() for p in target.model.layers.parameters()) + target.lm_head.weight.numel()
        self.costs = {str(exit_): whole / self.weights_read(exit_) for exit_ in self.exits}
        self.requires_grad_(True)

    def weights_read(self, exit_: int) -> int:
        """Parameters that one token needs at an exit; the embedding is looked up, not read."""
        return self.head.numel() + sum(p.numel() for p in self.layers[:exit_].parameters())

    def _layer(self, target: LlamaForCausalLM, source: int, index: int) -> LlamaDecoderLayer:
        layer = LlamaDecoderLayer(self.config, index)
        layer.load_state_dict(target.model.layers[source].state_dict())
        return layer

    def exit_states(self, tokens_BL: Tensor) -> list[Tensor]:
        """Normalised hidden states [B, L, D] of every exit."""
        hidden_BLD = self.embedding_VD[tokens_BL]
        positions_1L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)[None]
        rotary = self.rotary(hidden_BLD, positions_1L)
        states = []
        for number, layer in enumerate(self.layers, 1):
            hidden_BLD = layer(hidden_BLD, attention_mask=None, position_ids=positions_1L, position_embeddings=rotary)
            if number in self.exits:
                states.append(self.norm(hidden_BLD))
        return states

    def forward(self, tokens_BL: Tensor, where_M: Tensor, ids_MK: Tensor, probs_MK: Tensor, exits: int) -> Tensor:
        """losses_E of the last `exits` exits at the flat positions `where_M`, mean over positions, in nats.

        Only their mean (or sum) can be differentiated: the exits weigh the same.
        """
        states = torch.stack([state.flatten(0, 1)[where_M] for state in self.exit_states(tokens_BL)[-exits:]])
        if torch.is_autocast_enabled(states.device.type):
            states = states.to(torch.get_autocast_dtype(states.device.type))
        return soft_cross_entropy(states, self.head, ids_MK, probs_MK)

    @torch.no_grad()
    def predictions(self, tokens_BL: Tensor) -> Tensor:
        """The target token with the highest logit at each exit: [E, B, L]."""
        states = torch.stack(self.exit_states(tokens_BL))
        return self.tokens_N[torch.nn.functional.linear(states, self.head.to(states.dtype)).argmax(-1)]


def soft_cross_entropy(states_EMD: Tensor, head_ND: Tensor, ids_MK: Tensor, probs_MK: Tensor) -> Tensor:
    """losses_E: cross entropy of each exit to the sparse distribution `probs_MK` over head rows `ids_MK`, in nats.

    The gradient is made with the loss, block by block, so [M, N] logits never lie in memory as a whole. Only the mean
    or the sum of the losses can be differentiated.
    """
    return _SoftCrossEntropy.apply(states_EMD, head_ND, ids_MK, probs_MK)


class _SoftCrossEntropy(torch.autograd.Function):
    BLOCK = 512  # rows whose logits stay in a CPU's cache

    @staticmethod
    def forward(ctx: Any, states_EMD: Tensor, head_ND: Tensor, ids_MK: Tensor, probs_MK: Tensor) -> Tensor:
        exits, count, _ = states_EMD.shape
        head = head_ND.to(states_EMD.dtype)
        losses_E = torch.zeros(exits, device=head.device)
        grad_states, grad_head = torch.empty_like(states_EMD), torch.zeros_like(head_ND)
        for exit_, start in itertools.product(range(exits), range(0, count, _SoftCrossEntropy.BLOCK)):
            rows = slice(start, start + _SoftCrossEntropy.BLOCK)
            states = states_EMD[exit_, rows]
            loss, grad = _block_loss(states @ head.t(), ids_MK[rows], probs_MK[rows])
            losses_E[exit_] += loss
            grad_states[exit_, rows] = grad @ head
            if ctx.needs_input_grad[1]:  # of a target's own head it is not
                grad_head += grad.t() @ states
        ctx.save_for_backward(grad_states, grad_head)
        ctx.count = count
        return losses_E / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_head = ctx.saved_tensors
        scale = grads[0][0] / ctx.count
        return grad_states * scale, grad_head * scale if ctx.needs_input_grad[1] else None, None, None


def _block_loss(logits_MN: Tensor, ids_MK: Tensor, probs_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over M of the cross entropies, and its gradient by the logits in their dtype."""
    dtype, logits_MN = logits_MN.dtype, logits_MN.float()
    logsumexp_M = logits_MN.logsumexp(-1)
    loss = (probs_MK.sum(-1) * logsumexp_M - (probs_MK * logits_MN.gather(-1, ids_MK)).sum(-1)).sum()
    grad_MN = logits_MN.sub_(logsumexp_M[:, None]).exp_().mul_(probs_MK.sum(-1, keepdim=True))
    return loss, grad_MN.scatter_add_(-1, ids_MK, -probs_MK).to(dtype)
