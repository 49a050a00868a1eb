"""What a model writes: sampled text, many rows at once."""

import torch
import torch.nn.functional as F

from opt_model import POSITION_OFFSET, layer_weights


@torch.no_grad()
def write(weights: dict, config: dict, prompts: torch.Tensor, length: int, generator: torch.Generator, coldest: float) -> torch.Tensor:
    """[rows, length]: `prompts` [rows, begun] and how the model goes on, each row at a temperature from `coldest` to 1."""
    rows, begun = prompts.shape
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    hidden = config["hidden_size"]
    kind, device = weights["embed_tokens.weight"].dtype, prompts.device
    shape = (layers, rows, heads, length, hidden // heads)
    keys, values = (torch.empty(shape, dtype=kind, device=device) for _ in range(2))
    colder = 1 / (coldest + (1 - coldest) * torch.rand(rows, 1, generator=generator, device=device))
    all_weights = [layer_weights(weights, index) for index in range(layers)]
    norm = [weights[f"final_layer_norm.{part}"] for part in ("weight", "bias")]
    out = torch.empty((rows, length), dtype=torch.long, device=device)
    out[:, :begun] = prompts
    for at in range(length - 1):
        token = out[:, at]
        x = F.embedding(token, weights["embed_tokens.weight"]) + weights["embed_positions.weight"][POSITION_OFFSET + at]
        for index, (qw, qb, kw, kb, vw, vb, ow, ob, w1, b1, w2, b2, n1, n1b, n2, n2b) in enumerate(all_weights):
            h = F.layer_norm(x, (hidden,), n1, n1b)
            keys[index, :, :, at] = F.linear(h, kw, kb).view(rows, heads, -1)
            values[index, :, :, at] = F.linear(h, vw, vb).view(rows, heads, -1)
            query = F.linear(h, qw, qb).view(rows, heads, 1, -1)
            context = F.scaled_dot_product_attention(query, keys[index, :, :, : at + 1], values[index, :, :, : at + 1])
            x = x + F.linear(context.reshape(rows, hidden), ow, ob)
            h = F.layer_norm(x, (hidden,), n2, n2b)
            x = x + F.linear(F.relu(F.linear(h, w1, b1)), w2, b2)
        if at + 1 >= begun:
            logits = F.linear(F.layer_norm(x, (hidden,), *norm), weights["embed_tokens.weight"]).float()
            # Gumbel's trick: the largest of logits − log(−log u) is a sample.
            noise = torch.empty_like(logits).exponential_(generator=generator).log_()
            out[:, at + 1] = (logits * colder - noise).argmax(-1)
    return out
