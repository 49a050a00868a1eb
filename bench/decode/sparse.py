"""The measured side: a rewritten model in a session of this provider, every input and output in buffers on the GPU."""

import gc
import json
import os
import re
import resource
import statistics
import tempfile
import time

import numpy as np
import onnxruntime as ort
import torch


def gpu_session(path, expected_batch=0, expanded_megabytes=0, compact_weights=False, jagged_megabytes=0):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    device = next(
        d
        for d in ort.get_ep_devices()
        if d.ep_name == "FlashLLMExecutionProvider" and d.device.type == ort.OrtHardwareDeviceType.GPU
    )
    ours = {"verify_checksum": "0", "cuda_graph": "1", "expected_batch": str(expected_batch)}
    ours |= {"expanded_megabytes": str(expanded_megabytes), "compact_weights": str(int(compact_weights))}
    ours |= {"jagged_megabytes": str(jagged_megabytes)}
    options.add_provider_for_devices([device], ours)
    return ort.InferenceSession(path, options, enable_fallback=0)


def bind(session, batch, new, context):
    """(binding, bytes of its buffers): `new` tokens of each sequence at the end of a cache of `context` positions. A step's token
    goes where it took its own from."""
    binding, held = session.io_binding(), 0

    def on_gpu(array):
        nonlocal held
        held += array.nbytes
        return ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0)

    ids = on_gpu(np.full((batch, new), 7, np.int64))
    places = np.tile(np.arange(context - new, context, dtype=np.int64), (batch, 1))
    binding.bind_ortvalue_input("input_ids", ids)
    binding.bind_ortvalue_output("likeliest", ids if new == 1 else on_gpu(np.zeros((batch, new), np.int64)))
    binding.bind_ortvalue_input("attention_mask", on_gpu(np.ones((batch, context), np.int64)))
    binding.bind_ortvalue_input("position_ids", on_gpu(places))
    for cache in session.get_inputs()[3:]:
        buffer = on_gpu(np.zeros((batch, cache.shape[1], context, cache.shape[3]), np.float16))
        binding.bind_ortvalue_input(cache.name, buffer)
        binding.bind_ortvalue_output(cache.name.replace("past_key_values", "present"), buffer)
    return binding, held


class Step:
    """A bound run. `graph_id` -1: no CUDA graph; else the third run is the first that replays one."""

    def __init__(self, session, binding, graph_id):
        self.session, self.binding = session, binding
        self.options = ort.RunOptions()
        self.options.add_run_config_entry("gpu_graph_id", str(graph_id))

    def run(self):
        self.session.run_with_iobinding(self.binding, self.options)

    def times(self, repeats):
        """Median milliseconds that the host sees, and the mean of what its processors worked meanwhile."""
        for _ in range(3):
            self.run()
        times, before = [], resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(repeats):
            start = time.perf_counter()
            self.run()
            times.append((time.perf_counter() - start) * 1000)
        after = resource.getrusage(resource.RUSAGE_SELF)
        worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return statistics.median(times), worked / repeats * 1000

    def kernels(self, runs=3):
        """What the kernels of a run take, the most expensive first, and the milliseconds from the first's start to the last's end.

        `microseconds` is the sum of their times, which overlap: a kernel that waits for the one before it is running too. `adds`
        is by how much they end later than everything before them, and `gaps` is when nothing ran before they began.
        """
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profiler:
            for _ in range(runs):
                self.run()
            torch.cuda.synchronize()
        events = kernel_events(profiler)
        events = events[len(events) - len(events) // runs :]
        if not events:
            return [], 0.0
        rows, end = {}, events[0]["ts"]
        for event in events:
            row = rows.setdefault(short_name(event["name"]), {"launches": 0, "microseconds": 0.0, "adds": 0.0, "gaps": 0.0})
            stop = event["ts"] + event["dur"]
            row["launches"] += 1
            row["microseconds"] += event["dur"]
            row["gaps"] += max(0.0, event["ts"] - end)
            row["adds"] += max(0.0, stop - max(end, event["ts"]))
            end = max(end, stop)
        table = [{"name": name, **{key: round(value, 1) for key, value in row.items()}} for name, row in rows.items()]
        return sorted(table, key=lambda row: -row["adds"]), (end - events[0]["ts"]) / 1000


def kernel_events(profiler):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path, encoding="utf8") as file:
            events = json.load(file)["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    return sorted((event for event in events if event.get("cat") in kinds), key=lambda event: event["ts"])


def short_name(name):
    name = re.sub(r"flashllm::cuda::|decoder::|\(anonymous namespace\)::|^void ", "", name)
    return re.sub(r"\([A-Za-z]*(Params|Args)\)$", "", name)


def free_bytes():
    """Of the GPU, with nothing left of sessions that are gone but what the provider keeps for buffers outside of sessions."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]
