"""Writing text with an OPT model on a GPU, thousands of sequences at once: the data that finetune.py distils on."""

import torch
import torch.nn.functional as F


@torch.no_grad()
def sample(model, prompts: torch.Tensor, length: int) -> torch.Tensor:
    """[rows, length]: the prompts, [rows, begun], and how the model goes on, token after token, sampled at temperature 1.

    `model` is an OPTForCausalLM with layer norms before its blocks and an embedding of the layers' width. In bfloat16 but for the
    distribution that is sampled from. Keys and values of all rows are kept: 4 · layers · hidden_size · length bytes a row.
    """
    config = model.config
    if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
        raise ValueError("only models with norms before the blocks and an embedding of the layers' width can be sampled from")
    rows, begun = prompts.shape
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    weights = {name: value.detach().to(torch.bfloat16) for name, value in model.model.decoder.state_dict().items()}
    store = torch.empty(config.num_hidden_layers, 2, rows, heads, length, width, dtype=torch.bfloat16, device=prompts.device)
    ids = torch.empty(rows, length, dtype=torch.long, device=prompts.device)
    ids[:, :begun] = prompts

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    for place in range(length - 1):
        x = weights["embed_tokens.weight"][ids[:, place]] + weights["embed_positions.weight"][place + 2]
        for layer in range(config.num_hidden_layers):
            at = f"layers.{layer}"
            normed = norm(x, f"{at}.self_attn_layer_norm")
            query, key, value = (linear(normed, f"{at}.self_attn.{part}_proj").view(rows, heads, width) for part in "qkv")
            store[layer, 0, :, :, place] = key
            store[layer, 1, :, :, place] = value
            keys, values = store[layer, :, :, :, : place + 1]
            heard = F.scaled_dot_product_attention(query[:, :, None], keys, values)
            x = x + linear(heard.reshape(rows, -1), f"{at}.self_attn.out_proj")
            inner = F.relu(linear(norm(x, f"{at}.final_layer_norm"), f"{at}.fc1"))
            x = x + linear(inner, f"{at}.fc2")
        if place + 1 < begun:
            continue
        logits = F.linear(norm(x, "final_layer_norm"), weights["embed_tokens.weight"]).float()
        # The largest of logits plus Gumbel noise is a sample of their softmax.
        noise = torch.empty_like(logits).exponential_().log_()
        ids[:, place + 1] = (logits - noise).argmax(-1)
    return ids
