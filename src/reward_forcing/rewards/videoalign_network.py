"""VideoAlign's network: Qwen2-VL without its language head, and a linear head read at the reward tokens.

B clips, L tokens, R reward tokens in a sequence, D rows of the head, E width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen2VLModel

from reward_forcing.rewards.videoalign_frames import Patches


@dataclass(frozen=True)
class RewardNetwork:
    """The network and its vocabulary.

    qwen: language model and vision tower. head: [D, E]. video_token: id of the placeholder of one visual token.
    reward_tokens: ids of the tokens where the head is read, in the order in which a text holds them.
    """

    qwen: Qwen2VLModel
    head: Tensor
    video_token: int
    reward_tokens: tuple[int, ...]

    @torch.no_grad()
    def logits(self, ids: Sequence[Sequence[int]], patches: Patches) -> Tensor:
        """Raw rewards [B, R], float32, in the order in which the texts hold their R reward tokens.

        ids: token ids of B texts, one video placeholder for each visual token. patches: those of the B clips.
        All tokens, visual ones too, are at positions 0, 1, 2, ... on each axis: the published model was trained
        without Qwen2-VL's own positions. A head of one row is read at each token, one of R rows on the diagonal.
        Shorter texts are filled up on the right, where causal attention hides the filling from them.
        """
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)  # [B, L]
        device = self.head.device
        visual = rows.flatten().eq(self.video_token).nonzero().squeeze(1).to(device)
        grid = torch.tensor([patches.grid] * len(rows), device=device)
        features = self.qwen.visual(patches.values.to(device), grid_thw=grid).pooler_output
        assert len(features) == len(visual), f"{len(features)} visual tokens for {len(visual)} placeholders"
        embeddings = self.qwen.language_model.embed_tokens(rows.to(device))
        embeddings.view(-1, embeddings.shape[-1])[visual] = features.to(embeddings.dtype)
        positions = torch.arange(rows.shape[1], device=device).expand(3, len(rows), -1)
        hidden = self.qwen.language_model(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
        read = torch.isin(rows.flatten(), torch.tensor(self.reward_tokens)).nonzero().squeeze(1).to(device)
        at_tokens = hidden.last_hidden_state.flatten(0, 1)[read].unflatten(0, (len(rows), -1))  # [B, R, E]
        logits = at_tokens.float() @ self.head.float().T  # [B, R, D]
        return logits[..., 0] if len(self.head) == 1 else logits.diagonal(dim1=1, dim2=2)
