"""The baseline: dense OPT in torch (cuBLAS, scaled_dot_product_attention), a decode step recorded as a CUDA graph."""

import statistics
import time

import torch
import torch.nn.functional as F

from opt_sizes import POSITIONS, SIZES, VOCABULARY


class DenseOpt:
    def __init__(self, size):
        layers, self.hidden, self.heads = SIZES[size]
        torch.manual_seed(0)

        def matrix(rows, columns):
            return torch.empty(rows, columns, dtype=torch.float16, device="cuda").normal_(0, 0.02)

        def vector(length, value=0.0):
            return torch.full((length,), value, dtype=torch.float16, device="cuda")

        h = self.hidden
        self.embedding, self.positions = matrix(VOCABULARY, h), matrix(POSITIONS, h)
        self.norm = (vector(h, 1.0), vector(h))
        self.blocks = [
            {
                "norm1": (vector(h, 1.0), vector(h)),
                "norm2": (vector(h, 1.0), vector(h)),
                "qkv": (matrix(3 * h, h), vector(3 * h)),
                "out": (matrix(h, h), vector(h)),
                "fc1": (matrix(4 * h, h), vector(4 * h)),
                "fc2": (matrix(h, 4 * h), vector(h)),
            }
            for _ in range(layers)
        ]

    def forward(self, ids, places, caches):
        """The likeliest next token of each of `ids` [batch, new], which go to the caches' positions `places` [new]."""
        batch, new = ids.shape
        h, heads = self.hidden, self.heads
        x = F.embedding(ids, self.embedding) + F.embedding(places + 2, self.positions)
        for block, (keys, values) in zip(self.blocks, caches):
            qkv = F.linear(F.layer_norm(x, (h,), *block["norm1"]), *block["qkv"])
            q, k, v = qkv.view(batch, new, 3, heads, h // heads).permute(2, 0, 3, 1, 4)
            keys.index_copy_(2, places, k)
            values.index_copy_(2, places, v)
            attended = F.scaled_dot_product_attention(q, keys, values, is_causal=new > 1)
            x = x + F.linear(attended.transpose(1, 2).reshape(batch, new, h), *block["out"])
            inner = F.relu(F.linear(F.layer_norm(x, (h,), *block["norm2"]), *block["fc1"]))
            x = x + F.linear(inner, *block["fc2"])
        return F.linear(F.layer_norm(x, (h,), *self.norm), self.embedding).argmax(-1)

    def inputs(self, batch, new, context):
        shape = (batch, self.heads, context, self.hidden // self.heads)
        caches = [tuple(torch.zeros(shape, dtype=torch.float16, device="cuda") for _ in "kv") for _ in self.blocks]
        return torch.randint(0, VOCABULARY, (batch, new), device="cuda"), torch.arange(context - new, context, device="cuda"), caches

    @torch.no_grad()
    def decode_milliseconds(self, batch, context, repeats):
        """Median time of a step, with its start and its end seen from the host, as for the other side."""
        inputs = self.inputs(batch, 1, context)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.forward(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.forward(*inputs)
        return median_milliseconds(graph.replay, repeats)

    @torch.no_grad()
    def prefill_milliseconds(self, batch, tokens, repeats):
        inputs = self.inputs(batch, tokens, tokens)
        return median_milliseconds(lambda: self.forward(*inputs), repeats)


def median_milliseconds(run, repeats):
    times = []
    for _ in range(repeats + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[3:])
