"""Random OPT models: a decode step and a prompt, this provider against dense torch, in one run on one GPU.

    python bench/decode/decode.py --template build/gpu-models/sparse80/model.onnx --models FOLDER [--sizes 13b,30b]
        [--sparsities 0.8,0.5] [--batches 1,8,16,32] [--context 256] [--prefill 8x512] [--json FILE]

Models are made in FOLDER/<size>-<sparsity> where they are not there (random_model.py tells what the template is). A step reads the
cache of `context` positions, writes the newest in place and ends with the likeliest token; times are the median of what the host
sees from the start to the end of a run. The floor of a step is what it must read (packed weights as they are stored, the head, the
cache) over the GPU's read bandwidth. `gpuBytes` is what the row's own session holds of the GPU's memory after its runs, and its
buffers. Rows are written as they come, so that a run can be cut short. Sizes that do not fit the GPU densely run with --no-dense: 66b
on 80 GB, 175b on 141 GB (--sizes 66b --sparsities 0.8 --batches 1,8 --no-dense).
"""

import argparse
import json
import os
import sys
import time

import onnxruntime as ort
import torch

import random_model
from opt_sizes import SIZES, VOCABULARY

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def bandwidth():
    """GB/s of reading: a sum over 4 GB."""
    data = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
    data.sum()
    begin.record()
    for _ in range(10):
        data.sum()
    end.record()
    torch.cuda.synchronize()
    return 10 * data.numel() * 4 / begin.elapsed_time(end) / 1e6


def weight_bytes(path, size):
    """The packed weights as they are stored, and the head."""
    import onnx

    packed = 0
    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.op_type == "SparseMatMul":
            integers = {attribute.name: attribute.i for attribute in node.attribute}
            packed += integers["out_features"] * (-(-integers["in_features"] // 64) * 8) + 2 * integers["nnz"]
    return packed + 2 * VOCABULARY * SIZES[size][1]


def cache_bytes(size, batch, context):
    layers, hidden, _ = SIZES[size]
    return 4 * layers * batch * context * hidden


class Report:
    """Rows, printed and written as they come."""

    def __init__(self, arguments):
        self.path = arguments.json
        self.dense = {}
        self.result = {
            "what": "a decode step and a prompt of random OPT models against dense torch",
            "date": time.strftime("%Y-%m-%d"),
            "commit": arguments.commit,
            "gpu": torch.cuda.get_device_name(),
            "onnxruntime": ort.__version__,
            "torch": torch.__version__,
            "context": arguments.context,
            "readGBs": round(bandwidth(), 1),
            "rows": [],
        }
        torch.cuda.empty_cache()
        print(f"{self.result['gpu']}, reads {self.result['readGBs']:.0f} GB/s, context {arguments.context}", flush=True)

    def add(self, row):
        key = row["size"], row["what"], row["batch"]
        if row["side"] == "dense":
            self.dense[key] = row["milliseconds"]
        elif key in self.dense:
            row["speedUp"] = round(self.dense[key] / row["milliseconds"], 3)
        if "bytes" in row:
            row["floorMilliseconds"] = round(row["bytes"] / self.result["readGBs"] / 1e6, 4)
        self.result["rows"].append(row)
        self.print(row)
        if not self.path:
            return
        with open(self.path + ".part", "w", encoding="utf8") as file:
            json.dump(self.result, file, indent=1)
        os.replace(self.path + ".part", self.path)

    def print(self, row):
        parts = [f"{row['size']} {row.get('sparsity', 'dense')} {row['what']} B={row['batch']}: {row['milliseconds']:.3f} ms"]
        if "speedUp" in row:
            parts.append(f"{row['speedUp']:.2f}x dense")
        if "floorMilliseconds" in row:
            parts.append(f"floor {row['floorMilliseconds']:.3f} ms ({100 * row['floorMilliseconds'] / row['milliseconds']:.0f} %)")
        if "cpuMilliseconds" in row:
            parts.append(f"GPU {row['gpuMilliseconds']:.3f} ms, CPU works {row['cpuMilliseconds']:.3f} ms")
            parts.append(f"{row['gpuBytes'] / 1e9:.1f} GB")
        print(", ".join(parts), flush=True)
        for kernel in row.get("kernels", [])[:12]:
            print(
                f"    adds {kernel['adds']:9.1f} us of {kernel['microseconds']:9.1f}, gaps {kernel['gaps']:6.1f}"
                f"  {kernel['launches']:4d} x  {kernel['name'][:90]}",
                flush=True,
            )


def measure_dense(size, arguments, report):
    from dense import DenseOpt

    model = DenseOpt(size)
    for batch in arguments.batches:
        took = model.decode_milliseconds(batch, arguments.context, arguments.repeats)
        report.add({"side": "dense", "size": size, "what": "step", "batch": batch, "milliseconds": took})
    for batch, tokens in arguments.prefill:
        took = model.prefill_milliseconds(batch, tokens, 3)
        report.add({"side": "dense", "size": size, "what": f"prompt of {tokens}", "batch": batch, "milliseconds": took})


def measure_sparse(path, size, sparsity, arguments, report):
    from sparse import Step, bind, free_bytes, gpu_session

    weights = weight_bytes(path, size)

    def measure(what, batch, new, context, expected_batch, graph_id, repeats, extra, expanded_megabytes=0):
        before, start = free_bytes(), time.perf_counter()
        session = gpu_session(path, expected_batch, expanded_megabytes, arguments.compact_weights, arguments.jagged_megabytes)
        loading = time.perf_counter() - start
        print(f"{size} {sparsity}: loaded in {loading:.1f} s, {weights / 1e9:.2f} GB of weights", flush=True)
        common = {"side": "flashllm", "size": size, "sparsity": sparsity, "loadSeconds": round(loading, 2), "weightBytes": weights}
        common |= {"compactWeights": arguments.compact_weights, "jaggedMegabytes": arguments.jagged_megabytes}
        held = before - free_bytes()
        # The buffers count by their sizes: they may lie in memory that those of an earlier session left to the provider.
        binding, buffers = bind(session, batch, new, context)
        before = free_bytes()
        step = Step(session, binding, graph_id)
        took, worked = step.times(repeats)
        held += buffers + before - free_bytes()
        kernels, on_gpu = step.kernels()
        row = {"what": what, "batch": batch, "milliseconds": took, "gpuMilliseconds": on_gpu, "cpuMilliseconds": worked, **extra}
        row |= {"cacheBytes": cache_bytes(size, batch, context), "gpuBytes": held, "kernels": kernels}
        report.add(common | row)
        if graph_id >= 0:
            session.release_captured_graph(graph_id)

    for batch in arguments.batches:
        expected = batch if arguments.expected_batch < 0 else arguments.expected_batch
        extra = {"bytes": weights + cache_bytes(size, batch, arguments.context), "expectedBatch": expected}
        measure("step", batch, 1, arguments.context, expected, 0, arguments.repeats, extra)
    for batch, tokens in arguments.prefill:
        for megabytes in sorted({0, arguments.expanded_megabytes}):
            extra = {"expandedMegabytes": megabytes}
            measure(f"prompt of {tokens}", batch, tokens, tokens, max(arguments.expected_batch, 0), -1, 3, extra, megabytes)


def parse():
    def words(text):
        return text.split(",")

    parser = argparse.ArgumentParser()
    parser.add_argument("--library", default=os.path.join(ROOT, "native", "linux-x64", "libonnxruntime_ep_flashllm.so"))
    parser.add_argument("--template", default=os.path.join(ROOT, "build", "gpu-models", "sparse80", "model.onnx"))
    parser.add_argument("--models", required=True)
    parser.add_argument("--sizes", type=words, default=["13b", "30b"])
    parser.add_argument("--sparsities", type=words, default=["0.8", "0.5"])
    parser.add_argument("--batches", type=lambda text: [int(one) for one in text.split(",")], default=[1, 8, 16, 32])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument(
        "--prefill",
        type=lambda text: [tuple(int(one) for one in prompt.split("x")) for prompt in words(text)],
        default=[],
        help="prompts, batch x tokens each, as 1x128,8x512",
    )
    parser.add_argument(
        "--expanded-megabytes", type=int, default=0, help="measure prompts with this option of the provider too"
    )
    parser.add_argument("--expected-batch", type=int, default=-1, help="the provider's option expected_batch; -1: the step's own batch")
    parser.add_argument("--compact-weights", action="store_true", help="the provider's option compact_weights, in every session")
    parser.add_argument("--jagged-megabytes", type=int, default=0, help="the provider's option jagged_megabytes, in every session")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--no-dense", action="store_true")
    parser.add_argument("--commit", default="")
    parser.add_argument("--json")
    return parser.parse_args()


def main():
    arguments = parse()
    ort.register_execution_provider_library("flashllm", os.path.abspath(arguments.library))
    report = Report(arguments)
    for size in arguments.sizes:
        if not arguments.no_dense:
            measure_dense(size, arguments, report)
        for sparsity in arguments.sparsities:
            folder = os.path.join(arguments.models, f"{size}-{sparsity}")
            path = os.path.join(folder, "model.onnx")
            if not os.path.exists(path):
                path = random_model.make(size, float(sparsity), arguments.template, folder)
            measure_sparse(path, size, sparsity, arguments, report)


if __name__ == "__main__":
    sys.exit(main())
