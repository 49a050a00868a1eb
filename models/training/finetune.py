#!/usr/bin/env python3
"""Prunes an OPT model gradually while it is trained to say what the dense model says.

    finetune.py --dense models/opt-14m --text <file> -o <folder> --sparsity 0.8 [--seconds 100]

The student begins as the dense model. Over the first part of the training the share of zeros in the linears of its layers rises from
--begin to --sparsity by a cubic schedule (Zhu and Gupta, arXiv 1710.01878); weights go by their worth to the loss (masks.py), and for a
while some come back. Two losses:

  * divergence of the student's distribution of the next token from the teacher's (Hinton et al., arXiv 1503.02531);
  * squared differences of the layers' outputs, each over the mean square of the teacher's (Kurtic et al., arXiv 2310.06927), with
    a weight that falls as the learning rate does.

A batch is text, and what the teacher itself writes after the first tokens of pieces of the text: it holds what the model knows beyond
this text. Adam, bfloat16 products with float32 weights, linear warm-up, cosine decay. The whole takes --seconds, or the training --steps;
what there is of the student is written at every report on the way.

Wants torch, tokenizers and safetensors, and a GPU for anything but a try. Output: float16 safetensors in Hugging Face's layout, and finetune.json with the
settings, the losses on the way and perplexities on --eval texts, which nothing is chosen by.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import opt_model
import sampling
from distillation import divergence, divergence_gradient, token_loss
from masks import Masks
from opt_model import Parameters, forward, perplexity

BEGUN = time.perf_counter()
SEPARATOR = "\n</s>\n"  # between documents, as make-training-text.mjs writes it
WARM_UP = 60  # steps
MASK_STEPS = 20  # between changes of the mask
REPORTS = 8  # on the way
REGROWN = 0.05  # of the kept weights swapped at a change, at first


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, type=Path, help="Hugging Face folder of the dense model")
    parser.add_argument("--text", required=True, type=Path, help="training text, UTF-8")
    parser.add_argument("--eval", action="append", default=[], help="name=file of a held-out text; may be repeated")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--begin", type=float, default=0.5, help="sparsity at the first step")
    parser.add_argument("--pruned-by", type=float, default=0.5, help="part of the training after which the sparsity is reached")
    parser.add_argument("--scores", choices=("magnitude", "fisher"), default="fisher")
    parser.add_argument("--regrow", action="store_true", help="let pruned weights come back")
    parser.add_argument("--seconds", type=float, default=100, help="until the end of the training, the teacher's writing included")
    parser.add_argument("--steps", type=int, help="instead of --seconds")
    parser.add_argument("--batch", type=int, default=16, help="sequences a step")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--rate", type=float, default=1e-3, help="largest learning rate")
    parser.add_argument("--written", type=int, default=8192, help="pieces that the teacher writes in each round")
    parser.add_argument("--written-length", type=int, default=512, help="tokens of each; a sequence holds several")
    parser.add_argument("--begun", type=int, nargs="*", default=[1, 4, 8, 16], help="tokens of text that a round's pieces begin with")
    parser.add_argument("--coldest", type=float, default=0.7, help="lowest temperature of sampling")
    parser.add_argument("--written-share", type=float, default=0.6, help="of each batch")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Corpus:
    """Sequences of text from anywhere in it, and of what the teacher wrote."""

    def __init__(self, text: torch.Tensor, written: torch.Tensor, settings, generator):
        self.text, self.written, self.generator = text, written, generator
        self.length = settings.length
        self.own = round(settings.batch * settings.written_share) if len(written) else 0
        self.read = settings.batch - self.own
        self.span = torch.arange(settings.length, device=text.device)

    def rows(self, count: int) -> torch.Tensor:
        """Of what the teacher wrote."""
        picked = torch.randint(len(self.written), (count,), generator=self.generator, device=self.text.device)
        return self.written[picked].long()

    def batch(self) -> torch.Tensor:
        """[batch, length]; what the teacher wrote comes last."""
        last = len(self.text) - self.length
        starts = torch.randint(last, (self.read, 1), generator=self.generator, device=self.text.device)
        parts = [self.text[starts + self.span].long()]
        if self.own:
            parts.append(self.rows(self.own))
        return torch.cat(parts)


class Training:
    """A student on its way. `layer_function` and `gradient_function` are opt_model.layer and distillation.divergence_gradient, or the
    same compiled."""

    def __init__(self, teacher: dict, tensors: dict, config: dict, corpus: Corpus, settings, layer_function, gradient_function):
        device = str(corpus.text.device)
        self.teacher, self.config, self.corpus, self.settings = teacher, config, corpus, settings
        self.layer_function, self.gradient_function = layer_function, gradient_function
        self.student = Parameters(tensors, device)
        student = self.student
        self.moments = [torch.zeros_like(student.flat) for _ in range(2)]
        self.steps_taken = 0
        pieces = {name: piece for name, piece in student.pieces(student.flat).items() if opt_model.is_pruned(name)}
        self.masks = Masks(student.flat[: student.pruned], pieces, settings.scores)
        self.pull = torch.zeros_like(self.masks.mask)
        self.sparse = False  # has reached the sparsity

    def run(self, settings, report) -> list[dict]:
        """Trains for the settings' steps or seconds. The losses on the way, and what `report` makes of the student."""
        log = []
        self.see_fisher(16)
        self.step(0.0, 1.0)  # compiles
        started, step, progress, told = time.perf_counter(), 0, 0.0, 0.0
        budget = settings.seconds - (started - BEGUN)
        while progress < 1:
            if step % MASK_STEPS == 0:
                self.change_masks(progress)
            decay = 0.5 * (1 + math.cos(math.pi * progress))
            parts = self.step(settings.rate * min(1.0, (step + 1) / WARM_UP) * decay, decay)
            step += 1
            seconds = time.perf_counter() - started
            progress = step / settings.steps if settings.steps else seconds / max(budget, 1e-6)
            if progress >= told or progress >= 1:
                told = progress + 1 / REPORTS
                entry = {"step": step, "seconds": seconds, "zeros": 1 - self.masks.mask.mean().item()}
                entry |= {name: value.item() for name, value in parts.items()} | report(self)
                log.append(entry)
                print(json.dumps({name: round(value, 4) for name, value in entry.items()}), flush=True)
        return log

    def sparsity_at(self, progress: float) -> float:
        left = max(0.0, 1 - progress / self.settings.pruned_by)
        return self.settings.sparsity - (self.settings.sparsity - self.settings.begin) * left**3

    def change_masks(self, progress: float) -> None:
        if not self.sparse:
            self.see_fisher(1)
            self.masks.prune(self.sparsity_at(progress))
            self.sparse = progress >= self.settings.pruned_by
        moving = self.settings.pruned_by + 0.2
        if self.settings.regrow and 0.02 < progress < moving:
            self.see_fisher(1)
            new = self.masks.regrow(REGROWN * (1 - progress / moving), self.pull)
            for moment in self.moments:
                moment[: len(new)].masked_fill_(new, 0)
        self.apply_masks()

    def apply_masks(self) -> None:
        student = self.student
        student.flat[: student.pruned].mul_(self.masks.mask)
        student.refresh()

    def see_fisher(self, batches: int) -> None:
        """Shows the masks gradients of what the teacher wrote (or of text, where it wrote nothing)."""
        for _ in range(batches):
            rows = self.corpus.rows(self.settings.batch) if self.corpus.own else self.corpus.batch()
            hidden = forward(self.student.leaves, self.config, rows, self.layer_function)[-1]
            hidden, wanted = hidden[:, :-1].reshape(-1, hidden.shape[-1]), rows[:, 1:].reshape(-1)
            token_loss(hidden, self.student.leaves["embed_tokens.weight"], wanted).backward()
            self.masks.see(self.student.gradient[: self.student.pruned])
            self.student.gradient.zero_()

    def step(self, rate: float, layers_weight: float) -> dict[str, torch.Tensor]:
        batch = self.corpus.batch()
        with torch.no_grad():
            wanted = forward(self.teacher, self.config, batch, self.layer_function)
        given = forward(self.student.leaves, self.config, batch, self.layer_function)
        pairs = list(zip(given, wanted))[:-1]
        layers = sum((s - t).square().mean() / t.square().mean() for s, t in pairs) / len(pairs)
        head, teacher_head = self.student.leaves["embed_tokens.weight"], self.teacher["embed_tokens.weight"]
        rows = (-1, self.config["hidden_size"])
        loss = divergence(given[-1].view(rows), head, wanted[-1].view(rows), teacher_head, self.gradient_function)
        (loss + layers_weight * layers).backward()
        self.update(rate)
        return {"divergence": loss.detach(), "layers": layers.detach()}

    @torch.no_grad()
    def update(self, rate: float, betas=(0.9, 0.98), largest_norm: float = 1.0) -> None:
        """Adam's step on the kept weights, the gradient's norm limited."""
        student = self.student
        gradient = student.gradient.float()
        self.pull.lerp_(gradient[: student.pruned], 0.1)
        gradient[: student.pruned].mul_(self.masks.mask)
        gradient.mul_((largest_norm / (gradient.norm() + 1e-6)).clamp(max=1.0))
        self.steps_taken += 1
        first, second = self.moments
        first.lerp_(gradient, 1 - betas[0])
        second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        unbias = [1 - beta**self.steps_taken for beta in betas]
        student.flat.addcdiv_(first, second.div(unbias[1]).sqrt_().add_(1e-8), value=-rate / unbias[0])
        student.flat[: student.pruned].mul_(self.masks.mask)
        student.refresh()
        student.gradient.zero_()

    def weights(self) -> dict[str, torch.Tensor]:
        """In float16's values, as they are stored."""
        return self.student.pieces(self.student.flat.half().float())


def tokens_of(path: Path, tokenizer: Tokenizer, separator: int) -> torch.Tensor:
    """All documents one after the other, each behind the separator."""
    ids: list[int] = []
    for document in tokenizer.encode_batch(path.read_text(encoding="utf8").split(SEPARATOR), add_special_tokens=False):
        ids.append(separator)
        ids.extend(document.ids)
    return torch.tensor(ids, dtype=torch.int16)


def write_text(teacher: dict, config: dict, text: torch.Tensor, settings, generator) -> torch.Tensor:
    """[…, length]: rounds of pieces, each begun with some tokens from anywhere in the text."""
    pieces = []
    for begun in settings.begun if settings.written else ():
        starts = torch.randint(len(text) - begun, (settings.written, 1), generator=generator, device=text.device)
        prompts = text[starts + torch.arange(begun, device=text.device)].long()
        written = sampling.write(teacher, config, prompts, settings.written_length, generator, settings.coldest)
        pieces.append(written.to(torch.int16).flatten())
    if not pieces:
        return torch.empty((0, settings.length), dtype=torch.int16, device=text.device)
    tokens = torch.cat(pieces)
    return tokens[: len(tokens) // settings.length * settings.length].view(-1, settings.length)


def compiled(settings) -> tuple:
    """opt_model.layer and distillation.divergence_gradient, compiled if that is possible here."""
    if settings.no_compile:
        return opt_model.layer, divergence_gradient
    return torch.compile(opt_model.layer, dynamic=False), torch.compile(divergence_gradient, dynamic=False)


def save(weights: dict[str, torch.Tensor], settings) -> None:
    out = {f"model.decoder.{name}": tensor.half().cpu().contiguous() for name, tensor in weights.items()}
    settings.output.mkdir(parents=True, exist_ok=True)
    whole = settings.output / "model.safetensors"
    save_file(out, whole.with_suffix(".partial"), metadata={"format": "pt"})
    whole.with_suffix(".partial").replace(whole)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (settings.dense / name).exists():
            shutil.copy(settings.dense / name, settings.output / name)


def main() -> None:
    settings = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(settings.seed)
    tokenizer = Tokenizer.from_file(str(settings.dense / "tokenizer.json"))
    config, tensors = opt_model.read_checkpoint(settings.dense)
    texts = dict(text.split("=", 1) for text in settings.eval)
    held_out = {name: tokenizer.encode(Path(file).read_text(encoding="utf8")).ids for name, file in texts.items()}

    def evaluate(weights: dict) -> dict[str, float]:
        return {name: perplexity(weights, config, ids) for name, ids in held_out.items()}

    kind = torch.float16 if device == "cuda" else torch.float32
    teacher = {name: tensor.to(device, kind) for name, tensor in tensors.items()}
    report = {"dense": evaluate({name: tensor.to(device) for name, tensor in tensors.items()})}
    text = tokens_of(settings.text, tokenizer, config["eos_token_id"]).to(device)
    started = time.perf_counter()
    written = write_text(teacher, config, text, settings, generator)
    print(json.dumps(report))
    print(f"{len(text)} tokens of text, {written.numel()} written in {time.perf_counter() - started:.1f} s", flush=True)
    corpus = Corpus(text, written, settings, generator)
    if device == "cuda":
        torch.cuda.empty_cache()  # of the writing

    def evaluate_and_save(run: Training) -> dict[str, float]:
        weights = run.weights()
        save(weights, settings)
        return evaluate(weights)

    run = Training(teacher, tensors, config, corpus, settings, *compiled(settings))
    log = run.run(settings, evaluate_and_save)
    weights = run.weights()
    report |= {
        "fine_tuned": evaluate(weights),
        "sparsities": run.masks.sparsities(),
        "settings": {key: str(value) for key, value in vars(settings).items()},
        "text_tokens": len(text),
        "written_tokens": written.numel(),
        "steps": log[-1]["step"],
        "log": log,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
    }
    (settings.output / "finetune.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
