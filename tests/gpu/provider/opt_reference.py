"""OPT in NumPy and float32, from the weights of an ONNX file that `flashllm export` or `rewrite` wrote."""

import numpy as np
import onnx
from onnx import numpy_helper

from packed import unpack


class OptReference:
    def __init__(self, path: str):
        model = onnx.load(path)
        self.tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.packed = {}
        attention = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
        self.heads = next(a.i for a in attention.attribute if a.name == "num_heads")
        for node in model.graph.node:
            if node.op_type == "SparseMatMul":
                integers = {a.name: a.i for a in node.attribute}
                bitmap, _, values = (self.tensors[name] for name in node.input[1:4])
                base = node.input[1].removesuffix("_bitmap")
                self.packed[base] = unpack(bitmap, values, integers["in_features"], integers["nnz"])
        self.layers = 1 + max(int(n.split(".")[3]) for n in self.tensors if n.startswith("model.decoder.layers."))
        self.vocabulary, self.width = self.tensor("embed_tokens.weight").shape
        self.head_dim = self.width // self.heads

    def tensor(self, name: str) -> np.ndarray:
        full = f"model.decoder.{name}"
        return self.packed[full] if full in self.packed else self.tensors[full].astype(np.float32)

    def linear(self, x, name):
        return x @ self.tensor(f"{name}.weight").T + self.tensor(f"{name}.bias")

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.tensor(f"{name}.weight") + self.tensor(f"{name}.bias")

    def logits(self, ids, mask, positions) -> np.ndarray:
        """[batch, sequence, vocabulary] of whole sequences, without a cache."""
        batch, length = ids.shape
        x = self.tensor("embed_tokens.weight")[ids] + self.tensor("embed_positions.weight")[positions + 2]
        causal = np.tril(np.ones((length, length), bool))
        bias = np.where(mask[:, None, None, :] == 1, 0.0, -30000.0)
        for i in range(self.layers):
            at = f"layers.{i}"
            qkv = self.linear(self.norm(x, f"{at}.self_attn_layer_norm"), f"{at}.self_attn.qkv_proj")
            q, k, v = qkv.reshape(batch, length, 3, self.heads, self.head_dim).transpose(2, 0, 3, 1, 4)
            scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(self.head_dim) + bias
            scores = np.where(causal, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended = (weights / weights.sum(-1, keepdims=True)) @ v
            x = x + self.linear(attended.transpose(0, 2, 1, 3).reshape(batch, length, -1), f"{at}.self_attn.out_proj")
            hidden = np.maximum(self.linear(self.norm(x, f"{at}.final_layer_norm"), f"{at}.fc1"), 0)
            x = x + self.linear(hidden, f"{at}.fc2")
        return self.norm(x, "final_layer_norm") @ self.tensor("embed_tokens.weight").T
