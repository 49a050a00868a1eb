"""What generation costs without this package, on random OPT weights of the same size in float16: dense torch whose decoding steps are
CUDA graphs, and transformers' generate. Called by main.ts; prints a line of JSON for each.

    python bench/generation-gpu/baselines.py --size 13b --batch 16 --prompt-tokens 64 --new-tokens 256 --repeats 3

The dense decoder does what Hugging Face's does with a static cache: a step is one graph over a cache of fixed length. To be fair to it,
there is a graph for each 64 positions, so that its attention reads no more than that beyond what a step needs, and none of its mask.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "decode"))

from dense import DenseOpt  # noqa: E402
from opt_sizes import POSITIONS, SIZES, VOCABULARY  # noqa: E402

WINDOW = 64  # positions that decoding graphs differ by


class GraphGenerator:
    """Greedy generation: prefill as it comes, a decoding step as one of a few CUDA graphs, which all read and write the same tensors."""

    def __init__(self, size, batch, capacity):
        self.model = DenseOpt(size)
        self.ids = torch.zeros(batch, 1, dtype=torch.long, device="cuda")
        self.at = torch.zeros(1, dtype=torch.long, device="cuda")
        _, _, self.caches = self.model.inputs(batch, 1, capacity)
        self.graphs = {}
        for length in range(WINDOW, capacity + WINDOW, WINDOW):
            self.graphs[length] = self.record(min(length, capacity))

    def run(self, ids, at, length):
        """The likeliest tokens after the last of `ids`; positions before `length` are looked at."""
        caches = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self.caches]
        self.ids.copy_(self.model.forward(ids, at, caches)[:, -1:])

    def step(self, length):
        self.run(self.ids, self.at, length)
        self.at += 1

    def record(self, length):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step(length)
        torch.cuda.current_stream().wait_stream(stream)
        self.at.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(length)
        return graph

    def generate(self, prompts, new_tokens):
        start = prompts.shape[1]
        self.run(prompts, torch.arange(start, device="cuda"), start)
        self.at.fill_(start)
        made = [self.ids.tolist()]
        for past in range(start, start + new_tokens - 1):
            self.graphs[-(-(past + 1) // WINDOW) * WINDOW].replay()
            made.append(self.ids.tolist())  # on the host, as whoever streams text has them; it waits for the step
        return made


def transformers_generator(size, capacity):
    """transformers' OPT with its defaults: eager, a cache that grows."""
    from transformers import OPTConfig, OPTForCausalLM

    layers, hidden, heads = SIZES[size]
    config = OPTConfig(
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        ffn_dim=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=max(POSITIONS - 2, capacity),
    )
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            model = OPTForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model = model.to_empty(device="cuda").eval()
    for parameter in model.parameters():
        parameter.normal_(0, 0.02)
    model.tie_weights()

    def generate(prompts, new_tokens):
        tokens = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=1,
        )
        return tokens[:, prompts.shape[1] :].tolist()

    return generate


def measure(what, generate, prompts, arguments, repeats):
    """The median of the repeats after one that is not counted: from the prompts on the host to the last token there."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        made = generate(prompts.cuda(), arguments.new_tokens)
        times.append(time.perf_counter() - start)
        count = sum(len(row) for row in made)
        if count != arguments.batch * arguments.new_tokens:
            raise RuntimeError(f"{what} made {count} tokens, expected {arguments.batch * arguments.new_tokens}")
    seconds = times[1:]
    row = {
        "side": what,
        "seconds": statistics.median(seconds),
        "tokensPerSecond": arguments.batch * arguments.new_tokens / statistics.median(seconds),
        "all": seconds,
        "gpuBytes": torch.cuda.max_memory_allocated(),
    }
    print(json.dumps(row), flush=True)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="13b")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-transformers", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    prompts = torch.randint(4, VOCABULARY, (arguments.batch, arguments.prompt_tokens))
    capacity = arguments.prompt_tokens + arguments.new_tokens
    dense = GraphGenerator(arguments.size, arguments.batch, capacity)
    measure("torch with CUDA graphs", dense.generate, prompts, arguments, arguments.repeats)
    del dense
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    if not arguments.no_transformers:
        measure("transformers generate", transformers_generator(arguments.size, capacity), prompts, arguments, 1)


if __name__ == "__main__":
    sys.exit(main())
