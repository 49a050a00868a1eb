"""A decode step of random OPT models: this provider against dense torch with a CUDA graph, in one run on one GPU.

    python bench/decode/decode.py --models FOLDER [--sizes 13b,30b] [--batches 1,8,16,32] [--context 256] [--json FILE]

FOLDER/<size>-<sparsity>/model.onnx are made by
    flashllm export --random <size> --share-layers --sparsity <sparsity> --dtype float16 -o dense && flashllm rewrite dense -o …
Where the data file is not there, random_weights.py makes it. Layers share their bytes on the disk but not on the GPU. A step reads
the cache of `context` positions, writes the newest in place and ends with the argmax of the logits; both sides' times are the
median of what the host sees from the start to the end of a step.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from dense import SIZES, VOCABULARY, DenseOpt
from random_weights import fill

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def with_argmax(path):
    """Writes `model-token.onnx` beside a model: its output is the most probable token of each sequence, not the logits."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    graph.node.append(helper.make_node("ArgMax", ["logits"], ["token"], "token", axis=-1, keepdims=0))
    kept = [output for output in graph.output if output.name not in ("logits", "likeliest")]
    del graph.output[:]
    graph.output.extend([helper.make_tensor_value_info("token", TensorProto.INT64, ["batch_size", "sequence_length"])] + kept)
    made = os.path.join(os.path.dirname(path), "model-token.onnx")
    onnx.save(model, made)
    return made


def gpu_session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    device = next(
        d
        for d in ort.get_ep_devices()
        if d.ep_name == "FlashLLMExecutionProvider" and d.device.type == ort.OrtHardwareDeviceType.GPU
    )
    options.add_provider_for_devices([device], {"verify_checksum": "0", "cuda_graph": "1"})
    return ort.InferenceSession(path, options, enable_fallback=0)


def bind(session, batch, context):
    """A step whose every input and output is a buffer on the GPU; the new token goes where the step took its own from."""

    def on_gpu(array):
        return ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0)

    binding = session.io_binding()
    ids = on_gpu(np.full((batch, 1), 7, np.int64))
    binding.bind_ortvalue_input("input_ids", ids)
    binding.bind_ortvalue_output("token", ids)
    binding.bind_ortvalue_input("attention_mask", on_gpu(np.ones((batch, context), np.int64)))
    binding.bind_ortvalue_input("position_ids", on_gpu(np.full((batch, 1), context - 1, np.int64)))
    for cache in session.get_inputs()[3:]:
        buffer = on_gpu(np.zeros((batch, cache.shape[1], context, cache.shape[3]), np.float16))
        binding.bind_ortvalue_input(cache.name, buffer)
        binding.bind_ortvalue_output(cache.name.replace("past_key_values", "present"), buffer)
    return binding


def milliseconds(session, binding, repeats, graph_id):
    """Median of a step. `graph_id` -1: an ordinary run, no graph."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        session.run_with_iobinding(binding, options)
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[3:])


def kernel_times(session, binding, steps=5):
    """(name, launches, microseconds) of a step's kernels, the longest first. Ordinary runs: a replayed graph has no names."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            session.run_with_iobinding(binding, options)
        torch.cuda.synchronize()
    rows = [(event.key, event.count / steps, event.self_device_time_total / steps) for event in profiler.key_averages()]
    return sorted((row for row in rows if row[2] > 0), key=lambda row: -row[2])


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


def step_bytes(path, size, batch, context):
    """What a step must read: packed weights as they are stored, the head, the caches."""
    model = onnx.load(path, load_external_data=False)
    layers, hidden, _ = SIZES[size]
    packed = 0
    for node in model.graph.node:
        if node.op_type == "SparseMatMul":
            integers = {a.name: a.i for a in node.attribute}
            packed += integers["out_features"] * (-(-integers["in_features"] // 64) * 8) + 2 * integers["nnz"]
    return packed + 2 * VOCABULARY * hidden + 4 * layers * batch * context * hidden


def measure_sparse(path, size, sparsity, arguments, report):
    before, start = torch.cuda.mem_get_info()[0], time.perf_counter()
    session = gpu_session(path)
    loading = time.perf_counter() - start
    for number, batch in enumerate(arguments.batches):
        binding = bind(session, batch, arguments.context)
        for cuda_graph in (True, False):
            row = {
                "side": "flashllm",
                "size": size,
                "sparsity": sparsity,
                "batch": batch,
                "cudaGraph": cuda_graph,
                "milliseconds": milliseconds(session, binding, arguments.repeats, number if cuda_graph else -1),
                "bytes": step_bytes(path, size, batch, arguments.context),
                "loadSeconds": loading,
                "gpuBytes": before - torch.cuda.mem_get_info()[0],
            }
            if arguments.profile and not cuda_graph:
                row["kernels"] = [
                    {"name": name, "launches": count, "microseconds": took} for name, count, took in kernel_times(session, binding)
                ]
            report(row)
        session.release_captured_graph(number)
        del binding
    del session
    gc.collect()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", default=os.path.join(ROOT, "native", "linux-x64", "libonnxruntime_ep_flashllm.so"))
    parser.add_argument("--models", required=True)
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=["13b", "30b"])
    parser.add_argument("--sparsities", type=lambda text: text.split(","), default=["0.8", "0.5"])
    parser.add_argument("--batches", type=lambda text: [int(one) for one in text.split(",")], default=[1, 8, 16, 32])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--no-dense", action="store_true")
    parser.add_argument("--profile", action="store_true", help="also tell the time of each kernel of a step")
    parser.add_argument("--commit", default="")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    ort.register_execution_provider_library("flashllm", os.path.abspath(arguments.library))
    result = {
        "what": "a decode step of random OPT models against dense torch with a CUDA graph",
        "date": time.strftime("%Y-%m-%d"),
        "commit": arguments.commit,
        "gpu": torch.cuda.get_device_name(),
        "onnxruntime": ort.__version__,
        "torch": torch.__version__,
        "context": arguments.context,
        "readGBs": bandwidth(),
        "rows": [],
    }
    torch.cuda.empty_cache()
    print(f"{result['gpu']}, reads {result['readGBs']:.0f} GB/s, context {arguments.context}", flush=True)
    dense = {}

    def save():
        """After every row, so that a run that is cut short keeps what it measured."""
        if not arguments.json:
            return
        temporary = arguments.json + ".part"
        with open(temporary, "w", encoding="utf8") as file:
            json.dump(result, file, indent=1)
        os.replace(temporary, arguments.json)

    def report(row):
        result["rows"].append(row)
        save()
        if row["side"] == "dense":
            dense[row["size"], row["batch"]] = row["milliseconds"]
            print(f"{row['size']} dense            B={row['batch']}: {row['milliseconds']:.3f} ms", flush=True)
            return
        floor, took = row["bytes"] / result["readGBs"] / 1e6, row["milliseconds"]
        against = dense.get((row["size"], row["batch"]))
        how = "graph" if row["cudaGraph"] else "plain"
        print(
            f"{row['size']} {row['sparsity']} {how} B={row['batch']}: {took:.3f} ms, "
            + (f"{against / took:.2f}x dense, " if against else "")
            + f"floor {floor:.3f} ms ({100 * floor / took:.0f} %), loaded in {row['loadSeconds']:.1f} s,"
            + f" {row['gpuBytes'] / 1e9:.1f} GB",
            flush=True,
        )
        for kernel in row.get("kernels", [])[:16]:
            print(f"    {kernel['microseconds']:9.1f} us  {kernel['launches']:5.1f} x  {kernel['name'][:110]}", flush=True)

    for size in arguments.sizes:
        if not arguments.no_dense:
            model = DenseOpt(size)
            for batch in arguments.batches:
                took = model.milliseconds(batch, arguments.context, arguments.repeats)
                report({"side": "dense", "size": size, "batch": batch, "milliseconds": took})
            del model
            gc.collect()
            torch.cuda.empty_cache()
        for sparsity in arguments.sparsities:
            path = os.path.join(arguments.models, f"{size}-{sparsity}", "model.onnx")
            if not os.path.exists(path.replace("model.onnx", "model.onnx_data")):
                fill(path)
            measure_sparse(with_argmax(path), size, sparsity, arguments, report)


if __name__ == "__main__":
    sys.exit(main())
