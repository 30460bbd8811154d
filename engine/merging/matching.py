"""Token merging: which image tokens share their computation, and how they are merged and given back.

Structure-then-detail merging (Fang et al., "SDTM", CVPR 2025), from its idea: early in the schedule whole windows of alike
tokens are computed as one, late in it tokens nobody attends to join a neighbour. A `Merge` is made from scores on small
windows, without a device sync, and its two functions are gathers: they serve every block and several evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True)
class Merge:
    """A partition of `count` tokens: some as they are, the others in groups that are computed as one token each.

    kept (K,): the former, ascending. groups (G, k): the tokens of each group. weights (G, k): what each counts in its
    group's mean, rows summing to 1; 0 for a token that is in the row but not in the group. rows (count,): where each
    token's value is found in a merged sequence, which is [kept, groups]. places (K + G,): the token whose position each
    merged one takes.
    """

    kept: Tensor
    groups: Tensor
    weights: Tensor
    rows: Tensor
    places: Tensor

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def merged_count(self) -> int:
        return len(self.kept) + len(self.groups)

    def merge(self, x: Tensor) -> Tensor:
        """Tokens (B, count, C) -> (B, merged_count, C)."""
        own = x.index_select(1, self.members).unflatten(1, self.groups.shape)
        mean = own.mul_(self.weights.to(x.dtype)[..., None]).sum(2)
        return torch.cat([x.index_select(1, self.kept), mean], dim=1)

    def unmerge(self, y: Tensor) -> Tensor:
        """Tokens (B, merged_count, C) -> (B, count, C): each token gets its group's."""
        return y.index_select(1, self.rows)

    @property
    def members(self) -> Tensor:
        """All tokens (G * k,) of the groups' rows, each once."""
        return self.groups.flatten()

    @property
    def sizes(self) -> Tensor:
        """How many tokens each of a merged sequence (merged_count,) stands for."""
        return torch.cat([self.weights.new_ones(len(self.kept)), (self.weights > 0).sum(1)])

    def shared(self) -> Tensor:
        """Bool (count,), true for tokens that are computed together with others."""
        return self.sizes[self.rows] > 1

    def residual(self, x: Tensor) -> Tensor:
        """By how much the members of groups differ from their group's mean in tokens (B, count, C): (B, G * k, C), 0 for a
        token that is in the row but not in the group."""
        own = x.index_select(1, self.members).unflatten(1, self.groups.shape)
        mean = (own * self.weights.to(x.dtype)[..., None]).sum(2)
        return ((own - mean[:, :, None]) * (self.weights > 0)[..., None]).flatten(1, 2)


def windows(size: Size, window: Size = (2, 2), frames: int = 1) -> Tensor:
    """Members (W, rows * columns) of the whole windows of a grid (rows, columns), row by row, frame by frame.

    What the grid leaves over at its lower and right edge is in no window.
    """
    (h, w), (wh, ww) = size, window
    ny, nx = h // wh, w // ww
    index = torch.arange(frames * h * w).view(frames, h, w)[:, : ny * wh, : nx * ww]
    return index.reshape(frames, ny, wh, nx, ww).permute(0, 1, 3, 2, 4).reshape(-1, wh * ww)


def pairwise_similarity(features: Tensor, members: Tensor) -> Tensor:
    """How alike the tokens of each window are, (W, k, k): 1 for equal ones, 0 on average for two tokens at random.

    features (count, C): of all tokens. members (W, k): the tokens of each window.

    One small Gram product tells all distances. Of the measures tried this kept most of the picture: cosines do not see how
    far apart two bright tokens are.
    """
    centred = features.float() - features.float().mean(0)
    scaled = centred / centred.square().sum(1).mean().sqrt().clamp(min=1e-6)
    own = scaled[members]
    products = own @ own.transpose(1, 2)
    squares = products.diagonal(dim1=1, dim2=2)
    return 1 - (squares[:, :, None] + squares[:, None] - 2 * products) / 2


def window_similarity(alike: Tensor) -> Tensor:
    """The mean similarity of each window's pairs, (W, k, k) -> (W,); a token is not paired with itself."""
    k = alike.shape[-1]
    return (alike.sum((1, 2)) - alike.diagonal(dim1=1, dim2=2).sum(1)) / (k * (k - 1))


def normalised_age(age: Tensor) -> Tensor:
    """The matchings since each token (count,) was merged, as a share of their mean: what was spared for long is due."""
    return age / age.mean().clamp(min=1e-6)


def _partition(count: int, kept: int, taken: Tensor, groups: Tensor, weights: Tensor, joined: Tensor, lead: Tensor) -> Merge:
    """The merge of `count` tokens of which `kept` are left alone.

    taken (count,): bool, true for the others. groups, weights (G, k): as of `Merge`. joined (G, k): bool, true where a member
    takes its group's value. lead (G,): the member whose position the group takes.
    """
    order = torch.argsort(taken.to(torch.uint8), stable=True)[:kept]
    rows = torch.empty(count, dtype=torch.long, device=taken.device)
    rows[order] = torch.arange(kept, device=taken.device)
    at = kept + torch.arange(len(groups), device=taken.device)
    spill = torch.cat([rows, rows.new_zeros(1)])
    spill[torch.where(joined, groups, count)] = at[:, None].expand_as(groups)
    rows = spill[:count]
    places = torch.cat([order, groups.gather(1, lead[:, None])[:, 0]])
    return Merge(order, groups, weights, rows, places)


def merge_windows(score: Tensor, members: Tensor, number: int, count: int, lead: int = 0) -> Merge:
    """Merge the `number` windows of the highest score (W,) into one token each. lead: the member whose position it takes."""
    groups = members[score.topk(number).indices.sort().values]
    taken = torch.zeros(count, dtype=torch.bool, device=members.device)
    taken[groups.flatten()] = True
    k = members.shape[1]
    weights = torch.full(groups.shape, 1 / k, device=members.device)
    joined = torch.ones_like(groups, dtype=torch.bool)
    leads = torch.full((number,), lead % k, device=members.device)
    return _partition(count, count - number * k, taken, groups, weights, joined, leads)


def merge_tokens(score: Tensor, members: Tensor, number: int, count: int, lead: int = 0) -> Merge:
    """Merge the `number` tokens of the highest score (W, k) into the leader of their window. lead: which member leads; its own
    score does not count."""
    width, k = members.shape
    lead = lead % k
    score = score.clone()
    score[:, lead] = -torch.inf
    joined = torch.zeros(width * k, dtype=torch.bool, device=members.device)
    joined[score.flatten().topk(number).indices] = True
    joined = joined.view(width, k)
    joined[:, lead] = True
    weights = joined / joined.sum(1, keepdim=True)
    taken = torch.zeros(count, dtype=torch.bool, device=members.device)
    taken[members.flatten()] = joined.flatten()
    leads = torch.full((width,), lead, device=members.device)
    return _partition(count, count - number - width, taken, members, weights, joined, leads)
