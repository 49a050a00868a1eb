"""OPT in plain torch functions, for training: pre-norm decoders with tied embeddings, as facebook/opt-* but 350m.

All parameters lie in flat vectors (Parameters), so that an optimizer's step is a few operations whatever the number of layers.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

POSITION_OFFSET = 2  # OPT's first position is row 2 of its table
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")
NORMS = ("self_attn_layer_norm", "final_layer_norm")


def read_checkpoint(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Configuration and float32 tensors of a Hugging Face folder, by names without `model.decoder.`; lm_head left out, being tied."""
    config = json.loads((folder / "config.json").read_text())
    if not config.get("do_layer_norm_before", True) or not config.get("tie_word_embeddings", True):
        raise SystemExit(f"{folder}: post-norm or untied OPT models are not trained here")
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if "lm_head" not in name:
                tensors[name.removeprefix("model.").removeprefix("decoder.")] = tensor.float()
    return config, tensors


class Parameters:
    """One float32 vector `flat` with all parameters and, for the products, a bfloat16 copy whose pieces are autograd leaves and whose
    gradients lie in one vector again."""

    def __init__(self, tensors: dict[str, torch.Tensor], device: str):
        # Linears first: what may be pruned is one slice.
        names = sorted(tensors, key=lambda name: (not is_pruned(name), name))
        self.shapes = {name: tensors[name].shape for name in names}
        self.flat = torch.cat([tensors[name].reshape(-1) for name in names]).to(device)
        self.pruned = sum(tensors[name].numel() for name in names if is_pruned(name))
        self.cast = torch.empty_like(self.flat, dtype=torch.bfloat16)
        self.gradient = torch.zeros_like(self.cast)
        self.refresh()
        self.leaves = {}
        for name, piece in self.pieces(self.cast).items():
            leaf = piece.detach().requires_grad_()
            leaf.grad = self.pieces(self.gradient)[name]
            self.leaves[name] = leaf

    def pieces(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of a vector laid out as `flat`, by name."""
        out, at = {}, 0
        for name, shape in self.shapes.items():
            out[name] = flat[at : at + shape.numel()].view(shape)
            at += shape.numel()
        return out

    def refresh(self) -> None:
        """Brings the bfloat16 copy up to date."""
        self.cast.copy_(self.flat)


def is_pruned(name: str) -> bool:
    return name.startswith("layers.") and name.endswith(".weight") and any(f".{linear}." in name for linear in LINEARS)


def layer(x: torch.Tensor, p: list[torch.Tensor], heads: int) -> torch.Tensor:
    """One decoder layer: float32 [batch, length, hidden] to the same; `p` as layer_weights gives them."""
    (qw, qb, kw, kb, vw, vb, ow, ob, w1, b1, w2, b2, n1, n1b, n2, n2b) = p
    batch, length, hidden = x.shape
    size = (hidden,)
    kind = qw.dtype
    h = F.layer_norm(x, size, n1.float(), n1b.float()).to(kind)

    def split(y: torch.Tensor) -> torch.Tensor:
        return y.view(batch, length, heads, hidden // heads).transpose(1, 2)

    context = F.scaled_dot_product_attention(
        split(F.linear(h, qw, qb)), split(F.linear(h, kw, kb)), split(F.linear(h, vw, vb)), is_causal=True
    )
    x = x + F.linear(context.transpose(1, 2).reshape(batch, length, hidden), ow, ob)
    h = F.layer_norm(x, size, n2.float(), n2b.float()).to(kind)
    return x + F.linear(F.relu(F.linear(h, w1, b1)), w2, b2)


def layer_weights(weights: dict[str, torch.Tensor], index: int) -> list[torch.Tensor]:
    names = [f"layers.{index}.{part}.{kind}" for part in (*LINEARS, *NORMS) for kind in ("weight", "bias")]
    return [weights[name] for name in names]


def forward(weights: dict[str, torch.Tensor], config: dict, ids: torch.Tensor, layer_function=layer) -> list[torch.Tensor]:
    """Outputs of the layers, float32, and last what goes into the head, in the type of the weights."""
    positions = weights["embed_positions.weight"][POSITION_OFFSET : POSITION_OFFSET + ids.shape[1]]
    x = F.embedding(ids, weights["embed_tokens.weight"]).float() + positions.float()
    outputs = []
    for index in range(config["num_hidden_layers"]):
        x = layer_function(x, layer_weights(weights, index), config["num_attention_heads"])
        outputs.append(x)
    norm, bias = weights["final_layer_norm.weight"].float(), weights["final_layer_norm.bias"].float()
    outputs.append(F.layer_norm(x, x.shape[-1:], norm, bias).to(weights["embed_tokens.weight"].dtype))
    return outputs


@torch.no_grad()
def perplexity(weights: dict[str, torch.Tensor], config: dict, ids: list[int], window: int = 1024, windows: int = 16) -> float:
    """As bench/perplexities.ts measures it: windows evenly spaced in the text, each without context."""
    count = len(ids) // window
    taken = min(windows, count)
    starts = [i * count // taken * window for i in range(taken)]
    head = weights["embed_tokens.weight"]
    loss = 0.0
    for start in starts:
        row = torch.tensor([ids[start : start + window]], device=head.device)
        logits = forward(weights, config, row)[-1][0, :-1] @ head.T
        loss += F.cross_entropy(logits.float(), row[0, 1:]).item()
    return math.exp(loss / taken)
