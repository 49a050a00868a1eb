"""The baseline: a decode step of dense OPT in torch (cuBLAS, scaled_dot_product_attention), recorded as a CUDA graph."""

import statistics
import time

import torch
import torch.nn.functional as F

SIZES = {"6.7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 56)}  # layers, hidden, heads
VOCABULARY = 50272


class DenseOpt:
    def __init__(self, size):
        self.layers_, self.hidden, self.heads = SIZES[size]
        torch.manual_seed(0)

        def matrix(rows, columns):
            return torch.empty(rows, columns, dtype=torch.float16, device="cuda").normal_(0, 0.02)

        def vector(length, value=0.0):
            return torch.full((length,), value, dtype=torch.float16, device="cuda")

        h = self.hidden
        self.embedding, self.positions = matrix(VOCABULARY, h), matrix(2050, h)
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
            for _ in range(self.layers_)
        ]

    def step(self, ids, index, caches):
        batch, h, heads = len(ids), self.hidden, self.heads
        x = F.embedding(ids, self.embedding) + self.positions[256]
        for block, (keys, values) in zip(self.blocks, caches):
            qkv = F.linear(F.layer_norm(x, (h,), *block["norm1"]), *block["qkv"])
            q, k, v = qkv.view(batch, 1, 3, heads, h // heads).permute(2, 0, 3, 1, 4)
            keys.index_copy_(2, index, k)
            values.index_copy_(2, index, v)
            attended = F.scaled_dot_product_attention(q, keys, values).transpose(1, 2).reshape(batch, 1, h)
            x = x + F.linear(attended, *block["out"])
            inner = F.relu(F.linear(F.layer_norm(x, (h,), *block["norm2"]), *block["fc1"]))
            x = x + F.linear(inner, *block["fc2"])
        return F.linear(F.layer_norm(x, (h,), *self.norm), self.embedding).argmax(-1)

    @torch.no_grad()
    def milliseconds(self, batch, context, repeats):
        """Median time of a step, with its start and its end seen from the host, as for the other side."""
        shape = (batch, self.heads, context, self.hidden // self.heads)
        caches = [tuple(torch.zeros(shape, dtype=torch.float16, device="cuda") for _ in "kv") for _ in self.blocks]
        ids = torch.randint(0, VOCABULARY, (batch, 1), device="cuda")
        index = torch.full((1,), context - 1, dtype=torch.long, device="cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.step(ids, index, caches)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(ids, index, caches)
        times = []
        for _ in range(repeats + 3):
            torch.cuda.synchronize()
            start = time.perf_counter()
            graph.replay()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1000)
        return statistics.median(times[3:])
