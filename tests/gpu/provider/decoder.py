"""An exported OPT model on the GPU through Python's onnxruntime: growing caches and caches in place."""

import gc
import os
import re
import sys
import tempfile

import numpy as np
import onnxruntime as ort

GPU = "cuda"


def gpu_device(index: int = 0):
    """The provider's OrtEpDevice of a GPU."""
    ours = [d for d in ort.get_ep_devices() if d.ep_name == "FlashLLMExecutionProvider"]
    gpus = [d for d in ours if d.device.type == ort.OrtHardwareDeviceType.GPU]
    if index >= len(gpus):
        raise SystemExit(f"the provider offers {len(gpus)} GPUs of {len(ours)} devices, wanted number {index}")
    return gpus[index]


def gpu_count():
    """GPUs that the provider offers."""
    ours = [d for d in ort.get_ep_devices() if d.ep_name == "FlashLLMExecutionProvider"]
    return sum(d.device.type == ort.OrtHardwareDeviceType.GPU for d in ours)


def gpu_session(model, options=None, config=None, level=None, profile=None, severity=3, device=0):
    """A session of a path or of bytes on GPU number `device`. `config`: session configuration entries; `profile`: what the name of a
    profile begins with; `severity`: the least of what is logged."""
    settings = ort.SessionOptions()
    settings.log_severity_level = severity
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile
    if level is not None:
        settings.graph_optimization_level = level
    for key, value in (config or {}).items():
        settings.add_session_config_entry(key, value)
    settings.add_provider_for_devices([gpu_device(device)], options or {})
    return ort.InferenceSession(model, settings, enable_fallback=0)


def session_and_memory(model, options=None, config=None):
    """(session, MB of the GPU that the provider holds in this process once it is made), of which the log tells."""
    gc.collect()  # a session that waits to be collected would count, or go between two of these
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            session = gpu_session(model, options, config, severity=1)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        log = file.read().decode(errors="replace")
    held = re.search(r"the process holds ([\d.]+) MB of its memory", log)
    if held is None:
        raise AssertionError("the provider did not say how much memory it holds. Its log:\n" + log[-2000:])
    return session, float(held[1])


ON_GPU_ONLY = {"session.disable_cpu_ep_fallback": "1"}


class Decoder:
    """A model with its caches' names and sizes, in a session on GPU number `device`."""

    def __init__(self, session, device=0):
        self.session, self.device = session, device
        self.caches = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
        self.heads, self.head_dim = self.caches[0].shape[1], self.caches[0].shape[3]

    def run(self, ids, mask, positions, past=None):
        """(logits, caches) with growing caches; `past`: those of the run before."""
        empty = np.zeros((len(ids), self.heads, 0, self.head_dim), np.float16)
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        for i, cache in enumerate(self.caches):
            feeds[cache.name] = empty if past is None else past[i]
        logits, *caches = self.session.run(None, feeds)
        return logits, caches


class InPlace:
    """A batch whose caches are buffers of full length on the GPU, written where they lie."""

    def __init__(self, decoder, batch, capacity, logits="cpu"):
        self.decoder = decoder
        shape = [batch, decoder.heads, capacity, decoder.head_dim]
        self.buffers = [ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float16, GPU, decoder.device) for _ in decoder.caches]
        self.logits = logits

    def run(self, ids, mask, positions, run_options=None):
        binding = self.decoder.session.io_binding()
        for name, array in (("input_ids", ids), ("attention_mask", mask), ("position_ids", positions)):
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits", self.logits)
        for cache, buffer in zip(self.decoder.caches, self.buffers):
            binding.bind_ortvalue_input(cache.name, buffer)
            binding.bind_ortvalue_output(cache.name.replace("past_key_values", "present"), buffer)
        self.decoder.session.run_with_iobinding(binding, run_options)
        return binding.get_outputs()[0].numpy()


class Static:
    """A batch whose every input and output lies in one place on the GPU and never changes its shape, as CUDA graphs want it: the
    attention mask is as wide as the caches and filled as decoding goes on. `graph`: the graph's number in its session."""

    def __init__(self, decoder, batch, capacity, vocabulary, graph=0):
        self.decoder, self.mask = decoder, np.zeros((batch, capacity), np.int64)
        self.options = ort.RunOptions()
        self.options.add_run_config_entry("gpu_graph_id", str(graph))
        place = lambda array: ort.OrtValue.ortvalue_from_numpy(array, GPU, decoder.device)  # noqa: E731
        one = np.zeros((batch, 1), np.int64)
        self.inputs = {"input_ids": place(one), "attention_mask": place(self.mask), "position_ids": place(one)}
        self.logits = place(np.zeros((batch, 1, vocabulary), np.float16))
        self.caches = InPlace(decoder, batch, capacity).buffers
        self.binding = decoder.session.io_binding()
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        self.binding.bind_ortvalue_output("logits", self.logits)
        for cache, buffer in zip(decoder.caches, self.caches):
            self.binding.bind_ortvalue_input(cache.name, buffer)
            self.binding.bind_ortvalue_output(cache.name.replace("past_key_values", "present"), buffer)

    def prefill(self, ids, mask, positions):
        """An ordinary run into the same caches. Its shapes are its own."""
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", "-1")
        state = InPlace.__new__(InPlace)
        state.decoder, state.buffers, state.logits = self.decoder, self.caches, "cpu"
        self.mask[:, : mask.shape[1]] = mask
        return state.run(ids, mask, positions, options)

    def step(self, ids, column, positions):
        self.mask[:, column] = 1
        self.inputs["input_ids"].update_inplace(np.ascontiguousarray(ids))
        self.inputs["attention_mask"].update_inplace(self.mask)
        self.inputs["position_ids"].update_inplace(np.ascontiguousarray(positions))
        self.decoder.session.run_with_iobinding(self.binding, self.options)
        return self.logits.numpy()
