#!/usr/bin/env python3
"""Fine-tunes a pruned OPT model under its masks, with the dense model as its teacher.

    finetune.py --dense models/opt-14m --pruned <folder of flashllm prune> --text <file> -o <folder> [--seconds 100]

Masks are those of the pruned checkpoint: what is zero in the linears of its layers stays zero; everything else is trained, on
three losses:

  * divergence of the student's distribution of the next token from the teacher's (Hinton et al., arXiv 1503.02531);
  * squared differences of the layers' outputs, each over the mean square of the teacher's (Kurtic et al., arXiv 2310.06927), with
    a weight that falls as the learning rate does;
  * cross entropy of the text, where a sequence is text; the rest is what the teacher itself writes after the first tokens of
    pieces of the text: it holds what the model knows beyond this text.

AdamW, bfloat16 products with float32 weights, linear warm-up, cosine decay. The number of steps is what fits into --seconds, which
is the time of the whole, at the speed of the first ones; or --steps. One CUDA device.

Wants torch, transformers, tokenizers and safetensors. Output: float16 safetensors in the pruned folder's layout, and finetune.json with the
settings, the losses on the way and perplexities before and after on --eval texts, which nothing is chosen by.
"""

import time

STARTED = time.perf_counter()  # before the imports that take a while

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import OPTForCausalLM

SEPARATOR = "\n</s>\n"  # between documents, as make-training-text.mjs writes it


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, type=Path, help="Hugging Face folder of the dense model")
    parser.add_argument("--pruned", required=True, type=Path, help="Hugging Face folder of the pruned model")
    parser.add_argument("--text", required=True, type=Path, help="training text, UTF-8")
    parser.add_argument("--eval", action="append", default=[], help="name=file of a held-out text; may be repeated")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--seconds", type=float, default=100, help="time until all is written")
    parser.add_argument("--steps", type=int, help="instead of --seconds")
    parser.add_argument("--batch", type=int, default=32, help="sequences a step")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="largest learning rate")
    parser.add_argument("--written", type=int, default=4096, help="pieces that the teacher writes")
    parser.add_argument("--written-length", type=int, default=256, help="tokens of each; a sequence holds several")
    parser.add_argument("--written-share", type=float, default=0.25, help="of each batch")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_model(folder: Path) -> OPTForCausalLM:
    model = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return model.cuda().eval()


def tokens_of(path: Path, tokenizer: Tokenizer, separator: int) -> torch.Tensor:
    """All documents one after the other, each behind the separator."""
    ids: list[int] = []
    for document in tokenizer.encode_batch(path.read_text(encoding="utf8").split(SEPARATOR), add_special_tokens=False):
        ids.append(separator)
        ids.extend(document.ids)
    return torch.tensor(ids)


@torch.no_grad()
def perplexity(model, path: str, tokenizer: Tokenizer, window: int = 1024, windows: int = 16) -> float:
    """As bench/accuracy.ts measures it: windows evenly spaced in the text, each without context."""
    ids = tokenizer.encode(Path(path).read_text(encoding="utf8")).ids
    count = len(ids) // window
    taken = min(windows, count)
    starts = [i * count // taken * window for i in range(taken)]
    batch = torch.tensor([ids[start : start + window] for start in starts]).cuda()
    logits = model(batch).logits.float()
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
    return math.exp(loss.item())


@torch.no_grad()
def write_text(teacher, text: torch.Tensor, settings, generator: torch.Generator) -> torch.Tensor:
    """[…, length]: 16 tokens from anywhere in the text and how the teacher goes on, sampled at temperature 1, piece after piece."""
    begun, most = 16, 4096
    teacher.generation_config.eos_token_id = None  # a document's end is not the sequence's
    out = []
    for first in range(0, settings.written, most):
        count = min(most, settings.written - first)
        starts = torch.randint(len(text) - begun, (count,), generator=generator).tolist()
        prompts = torch.stack([text[start : start + begun] for start in starts]).cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            rows = teacher.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=settings.written_length - begun,
            )
        out.append(rows)
    tokens = torch.cat(out).flatten()
    return tokens[: len(tokens) // settings.length * settings.length].view(-1, settings.length)


class Batches:
    """Sequences of text from anywhere in it, and of what the teacher wrote."""

    def __init__(self, text: torch.Tensor, written: torch.Tensor, settings, generator):
        self.text, self.written, self.generator = text.cuda(), written, generator
        self.length = settings.length
        self.own = round(settings.batch * settings.written_share) if len(written) else 0
        self.read = settings.batch - self.own
        self.span = torch.arange(settings.length, device="cuda")

    def next(self) -> torch.Tensor:
        """[batch, length]; the first `read` rows are text."""
        starts = torch.randint(len(self.text) - self.length, (self.read, 1), generator=self.generator).cuda()
        rows = torch.randint(max(1, len(self.written)), (self.own,), generator=self.generator).cuda()
        parts = [self.text[starts + self.span]]
        if self.own:
            parts.append(self.written[rows])
        return torch.cat(parts)


def losses(student, teacher, batch: torch.Tensor, read: int) -> dict[str, torch.Tensor]:
    """`divergence` is the cross entropy to the teacher's distribution: larger than the divergence by the teacher's entropy, which
    nothing here changes."""
    with torch.autocast("cuda", dtype=torch.bfloat16):
        with torch.no_grad():
            wanted = teacher(batch, output_hidden_states=True, use_cache=False)
        given = student(batch, output_hidden_states=True, use_cache=False)
    pairs = zip(given.hidden_states[1:], wanted.hidden_states[1:])
    layers = [F.mse_loss(s.float(), t.float()) / t.float().square().mean() for s, t in pairs]
    log_student = F.log_softmax(given.logits, -1, dtype=torch.float32)
    divergence = -(F.softmax(wanted.logits, -1, dtype=torch.float32) * log_student).sum(-1).mean()
    text = -log_student[:read, :-1].gather(-1, batch[:read, 1:, None]).mean()
    return {"divergence": divergence, "layers": torch.stack(layers).mean(), "text": text}


WEIGHTS = {"divergence": 1.0, "layers": 1.0, "text": 0.1}
WARM_UP = 60  # steps
SPEED_STEPS = (10, 25)  # between which the time of a step is measured
AT_THE_END = 6  # seconds for evaluation and writing


def train(student, teacher, masks: dict, batches: Batches, settings) -> list[dict]:
    """Trains in place. The losses of every 50th step."""
    parameters = list(student.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    weights = dict(student.named_parameters())
    pruned = [weights[name] for name in masks]
    steps, step, log = settings.steps, 0, []
    started = time.perf_counter()
    while steps is None or step < steps:
        if step == SPEED_STEPS[0]:
            torch.cuda.synchronize()
            begun = time.perf_counter()
        if step == SPEED_STEPS[1] and steps is None:
            torch.cuda.synchronize()
            seconds = (time.perf_counter() - begun) / (SPEED_STEPS[1] - SPEED_STEPS[0])
            left = settings.seconds - AT_THE_END - (time.perf_counter() - STARTED)
            steps = step + max(1, int(left / seconds))
            print(f"{1000 * seconds:.1f} ms a step, {steps} steps", flush=True)
        warm = min(1.0, (step + 1) / WARM_UP)
        decay = 0.5 * (1 + math.cos(math.pi * step / steps)) if steps else 1.0
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * warm * decay
        parts = losses(student, teacher, batches.next(), batches.read)
        optimizer.zero_grad(set_to_none=True)
        scales = WEIGHTS | {"layers": WEIGHTS["layers"] * decay}
        sum(scales[name] * value for name, value in parts.items()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(pruned, list(masks.values()))
        if step % 50 == 0 or step + 1 == steps:
            log.append({"step": step, "seconds": time.perf_counter() - started, **{k: v.item() for k, v in parts.items()}})
            print(json.dumps(log[-1]), flush=True)
        step += 1
    return log


def save(student, settings) -> None:
    """In float16 and in the pruned folder's names; lm_head is the embedding, which is not stored a second time."""
    stored = {}
    for file in sorted(settings.pruned.glob("*.safetensors")):
        stored.update(load_file(file))
    trained = dict(student.named_parameters())
    out = {}
    for name in stored:
        found = trained.get(name, trained.get(name if name.startswith("model.") else f"model.{name}"))
        if found is None:
            sys.exit(f"the pruned checkpoint has {name}, which the model has not")
        out[name] = found.detach().half().cpu().contiguous()
    settings.output.mkdir(parents=True, exist_ok=True)
    save_file(out, settings.output / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (settings.dense / name).exists():
            shutil.copy(settings.dense / name, settings.output / name)


def main() -> None:
    settings = arguments()
    torch.manual_seed(settings.seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator().manual_seed(settings.seed)
    tokenizer = Tokenizer.from_file(str(settings.dense / "tokenizer.json"))
    teacher, student = load_model(settings.dense), load_model(settings.pruned)
    teacher.requires_grad_(False)
    linears = {name: weight for name, weight in student.named_parameters() if weight.ndim == 2 and ".layers." in name}
    masks = {name: (weight != 0).float() for name, weight in linears.items()}
    zeros = 1 - sum(mask.sum().item() for mask in masks.values()) / sum(mask.numel() for mask in masks.values())

    def evaluate(model) -> dict[str, float]:
        return {name: perplexity(model, file, tokenizer) for name, file in (text.split("=", 1) for text in settings.eval)}

    report = {"zeros": zeros, "dense": evaluate(teacher), "pruned": evaluate(student)}
    print(json.dumps(report), flush=True)

    text = tokens_of(settings.text, tokenizer, teacher.config.eos_token_id)
    started = time.perf_counter()
    written = write_text(teacher, text, settings, generator) if settings.written else torch.empty(0)
    torch.cuda.synchronize()
    print(f"{len(text)} tokens of text; {tuple(written.shape)} written in {time.perf_counter() - started:.1f} s", flush=True)
    log = train(student, teacher, masks, Batches(text, written, settings, generator), settings)

    for parameter in student.parameters():
        parameter.data = parameter.data.half().float()  # as it will be stored
    report["fine_tuned"] = evaluate(student)
    print(json.dumps(report["fine_tuned"]), flush=True)
    save(student, settings)
    report |= {
        "settings": {key: str(value) for key, value in vars(settings).items()},
        "loss_weights": WEIGHTS,
        "text_tokens": len(text),
        "written_tokens": written.numel(),
        "steps": log[-1]["step"] + 1,
        "log": log,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    (settings.output / "finetune.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
