"""Which weights are kept while a model is trained: gradual pruning by what each weight is worth to the loss.

All of it works on the flat vector of prunable weights. The worth of a weight w with the mean square F of its gradient (the diagonal of the
Fisher information) is w²F, as in Optimal Brain Damage; the thresholds hold for the whole model, so that sparsity goes where it costs least.
"""

import torch


class Masks:
    """`mask` is 1 where a weight is kept. `pieces` are the linears' views of `weights`, in their order there; `scores` is `fisher`, or
    `magnitude` for the largest of each linear; no linear loses more than `largest` of its weights but by regrow()."""

    def __init__(self, weights: torch.Tensor, pieces: dict[str, torch.Tensor], scores: str, largest: float = 0.95):
        self.weights = weights
        self.mask = torch.ones_like(weights)
        self.fisher = torch.zeros_like(weights)
        self.scores, self.largest = scores, largest
        self.parts, at = {}, 0
        for name, piece in pieces.items():
            self.parts[name] = slice(at, at + piece.numel())
            at += piece.numel()

    def see(self, gradient: torch.Tensor, share: float = 0.1) -> None:
        """Takes up a gradient of −log p of tokens, such as the model would write."""
        self.fisher.lerp_(gradient.float().square(), share)

    def worth(self) -> torch.Tensor:
        if self.scores == "magnitude":
            return self.weights.abs()
        return self.weights.square() * (self.fisher + 1e-3 * self.fisher.mean())

    def prune(self, sparsity: float) -> None:
        """Keeps the worthiest; what was pruned before stays so."""
        worth = torch.where(self.mask > 0, self.worth(), -1.0)
        if self.scores == "magnitude":
            for part in self.parts.values():
                self.mask[part] = keep_largest(worth[part], sparsity)
            return
        # No linear may lose more than `largest` of its weights: the best of each are safe.
        for part in self.parts.values():
            safe = keep_largest(worth[part], self.largest) > 0
            worth[part] = torch.where(safe, worth[part] + 1e9, worth[part])
        self.mask.copy_(keep_largest(worth, sparsity))

    def regrow(self, share: float, gradient: torch.Tensor) -> torch.Tensor:
        """Swaps `share` of the kept weights, the least worthy, for as many pruned ones that the loss pulls at most, from zero (RigL,
        arXiv 1911.11134). Returns where weights are new."""
        kept = self.mask > 0
        count = int(share * kept.sum().item())
        if count == 0:
            return torch.zeros_like(kept)
        worth = torch.where(kept, self.worth(), torch.inf)
        pull = torch.where(kept, -1.0, gradient.abs() / (self.fisher + 1e-3 * self.fisher.mean()).sqrt())
        dropped = worth.topk(count, largest=False).indices
        grown = pull.topk(count).indices
        self.mask[dropped] = 0
        self.mask[grown] = 1
        new = torch.zeros_like(kept)
        new[grown] = True
        return new

    def sparsities(self) -> dict[str, float]:
        return {name: 1 - self.mask[part].mean().item() for name, part in self.parts.items()}


def keep_largest(worth: torch.Tensor, sparsity: float) -> torch.Tensor:
    """1 at the largest of `worth`, exactly the count that leaves `sparsity`."""
    kept = worth.numel() - int(sparsity * worth.numel())
    mask = torch.zeros_like(worth)
    mask[worth.topk(kept).indices] = 1
    return mask
