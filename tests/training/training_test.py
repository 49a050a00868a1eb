#!/usr/bin/env python3
"""models/training against plain torch: python3 tests/training/training_test.py. Wants torch, tokenizers and safetensors; no GPU."""

import sys
import unittest
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "models" / "training"))
import distillation
import finetune
import opt_model
import sampling
from masks import Masks, keep_largest
from opt_model import Parameters

CONFIG = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "ffn_dim": 40, "vocab_size": 53}


def random_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = CONFIG["hidden_size"], CONFIG["ffn_dim"]
    shapes = {"embed_tokens.weight": (CONFIG["vocab_size"], hidden), "embed_positions.weight": (34, hidden)}
    norms = ["final_layer_norm"]
    for index in range(CONFIG["num_hidden_layers"]):
        for linear in opt_model.LINEARS:
            outs, ins = {"fc1": (inner, hidden), "fc2": (hidden, inner)}.get(linear, (hidden, hidden))
            shapes[f"layers.{index}.{linear}.weight"] = (outs, ins)
            shapes[f"layers.{index}.{linear}.bias"] = (outs,)
        norms += [f"layers.{index}.{norm}" for norm in opt_model.NORMS]
    shapes |= {f"{norm}.{kind}": (hidden,) for norm in norms for kind in ("weight", "bias")}
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def reference_forward(p: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Logits by the definition, one head after the other, in the type of `p`."""
    heads, hidden = CONFIG["num_attention_heads"], CONFIG["hidden_size"]
    size = hidden // heads
    x = p["embed_tokens.weight"][ids] + p["embed_positions.weight"][torch.arange(ids.shape[1]) + 2]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, (hidden,), p[f"{name}.weight"], p[f"{name}.bias"])

    future = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
    for index in range(CONFIG["num_hidden_layers"]):
        at = f"layers.{index}."
        h = norm(x, at + "self_attn_layer_norm")
        q, k, v = (linear(h, f"{at}self_attn.{part}_proj") for part in "qkv")
        context = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = q[..., own] @ k[..., own].transpose(1, 2) / size**0.5
            context.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[..., own])
        x = x + linear(torch.cat(context, -1), at + "self_attn.out_proj")
        x = x + linear(F.relu(linear(norm(x, at + "final_layer_norm"), at + "fc1")), at + "fc2")
    return norm(x, "final_layer_norm") @ p["embed_tokens.weight"].T


class ModelTest(unittest.TestCase):
    def test_forward_is_the_definition(self):
        tensors, ids = random_tensors(0), torch.randint(53, (3, 17), generator=torch.Generator().manual_seed(1))
        hidden = opt_model.forward(tensors, CONFIG, ids)[-1]
        wanted = reference_forward({name: tensor.double() for name, tensor in tensors.items()}, ids)
        torch.testing.assert_close(hidden @ tensors["embed_tokens.weight"].T, wanted.float(), rtol=1e-4, atol=1e-4)

    def test_gradients_land_in_the_flat_vector(self):
        tensors = random_tensors(2)
        student = Parameters(tensors, "cpu")
        self.assertEqual(student.pruned, sum(t.numel() for n, t in tensors.items() if opt_model.is_pruned(n)))
        for _ in range(2):
            sum((leaf.float() * 2).sum() for leaf in student.leaves.values()).backward()
        self.assertTrue((student.gradient == 4).all())
        student.flat.add_(1)
        student.refresh()
        for name, piece in student.pieces(student.flat).items():
            torch.testing.assert_close(piece, tensors[name] + 1)
            torch.testing.assert_close(student.leaves[name].detach(), piece.bfloat16())


class DistillationTest(unittest.TestCase):
    def setUp(self):
        generator = torch.Generator().manual_seed(3)
        shapes = ((13, 8), (29, 8), (13, 8), (29, 8))
        self.values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        self.chunk, distillation.CHUNK = distillation.CHUNK, 5  # not a divisor of the rows

    def tearDown(self):
        distillation.CHUNK = self.chunk

    def check(self, function, reference):
        hidden, head = (value.float().requires_grad_() for value in self.values[:2])
        (3 * function(hidden, head)).backward()
        exact = [value.clone().requires_grad_() for value in self.values[:2]]
        loss = reference(exact[0] @ exact[1].T)
        (3 * loss).backward()
        torch.testing.assert_close(function(hidden, head).double(), loss, rtol=1e-5, atol=1e-6)
        for found, wanted in zip((hidden, head), exact):
            torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5)

    def test_divergence(self):
        teacher, teacher_head = self.values[2:]
        wanted = (teacher @ teacher_head.T).log_softmax(-1)
        self.check(
            lambda hidden, head: distillation.divergence(hidden, head, teacher.float(), teacher_head.float()),
            lambda logits: F.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="batchmean"),
        )

    def test_token_loss(self):
        tokens = torch.arange(13) * 2
        self.check(
            lambda hidden, head: distillation.token_loss(hidden, head, tokens),
            lambda logits: F.cross_entropy(logits, tokens),
        )


class MasksTest(unittest.TestCase):
    def masks(self, scores: str, largest: float = 0.95) -> Masks:
        generator = torch.Generator().manual_seed(4)
        weights = torch.randn(1200, generator=generator)
        masks = Masks(weights, {"a": weights[:400], "b": weights[400:]}, scores, largest)
        masks.fisher.copy_(torch.rand(1200, generator=generator))
        return masks

    def test_keep_largest(self):
        self.assertEqual(keep_largest(torch.tensor([3.0, 1, 2, 0]), 0.5).tolist(), [1, 0, 1, 0])

    def test_magnitude_prunes_each_linear_alike(self):
        masks = self.masks("magnitude")
        masks.prune(0.75)
        self.assertEqual(masks.sparsities(), {"a": 0.75, "b": 0.75})

    def test_fisher_prunes_the_whole(self):
        masks = self.masks("fisher")
        masks.fisher[:400] *= 1e-6
        masks.prune(0.5)
        self.assertEqual(masks.mask.sum().item(), 600)
        found = masks.sparsities()
        self.assertAlmostEqual(found["a"], 0.95, places=6)  # worth next to nothing, but not all of it may go
        before = masks.mask.clone()
        masks.weights.neg_()
        masks.prune(0.8)
        self.assertEqual(masks.mask.sum().item(), 240)
        self.assertTrue((masks.mask <= before).all())  # nothing comes back by itself

    def test_regrow_swaps(self):
        masks = self.masks("fisher")
        masks.prune(0.5)
        before = masks.mask.clone()
        pull = torch.zeros(1200)
        wanted = (before == 0).nonzero()[7:67, 0]
        pull[wanted] = 1.0
        new = masks.regrow(0.1, pull)
        self.assertEqual(masks.mask.sum().item(), 600)
        self.assertEqual(new.nonzero()[:, 0].tolist(), wanted.tolist())
        self.assertTrue((masks.mask[wanted] == 1).all())
        self.assertEqual(((before == 1) & (masks.mask == 0)).sum().item(), 60)


class SamplingTest(unittest.TestCase):
    def write(self, tensors: dict, prompts: torch.Tensor, length: int, coldest: float) -> torch.Tensor:
        return sampling.write(tensors, CONFIG, prompts, length, torch.Generator().manual_seed(6), coldest)

    def test_goes_on_by_the_model(self):
        tensors = random_tensors(5)
        tensors["embed_tokens.weight"] *= 1000  # all of the probability on one token, whatever the temperature
        prompts = torch.tensor([[4, 9, 2], [7, 7, 50]])
        found = self.write(tensors, prompts, 20, 0.7)
        self.assertEqual(found.shape, (2, 20))
        wanted = prompts
        for _ in range(17):
            wanted = torch.cat([wanted, reference_forward(tensors, wanted)[:, -1:].argmax(-1)], 1)
        self.assertEqual(found.tolist(), wanted.tolist())

    def test_samples_have_the_model_s_frequencies(self):
        tensors, rows = random_tensors(5), 20_000
        for coldest in (1.0, 0.5):
            found = self.write(tensors, torch.full((rows, 1), 3), 2, coldest)[:, 1]
            logits = reference_forward(tensors, torch.tensor([[3]]))[0, 0]
            # Temperatures are spread evenly from `coldest` to 1.
            temperatures = torch.linspace(coldest, 1, 2001)[:, None]
            wanted = (logits / temperatures).softmax(-1).mean(0)
            deviation = (wanted * (1 - wanted) / rows).sqrt()
            counts = torch.bincount(found, minlength=CONFIG["vocab_size"]) / rows
            self.assertLess(((counts - wanted).abs() / (deviation + 1e-4)).max().item(), 4.5)


class TrainingTest(unittest.TestCase):
    SETTINGS = dict(
        sparsity=0.8,
        begin=0.5,
        pruned_by=0.5,
        scores="fisher",
        regrow=True,
        seconds=0,
        steps=100,
        batch=4,
        length=16,
        rate=1e-3,
        written_share=0.5,
    )

    def training(self, **changes) -> tuple[finetune.Training, SimpleNamespace]:
        settings = SimpleNamespace(**{**self.SETTINGS, **changes})
        generator = torch.Generator().manual_seed(7)
        text = torch.randint(53, (400,), generator=generator).to(torch.int16)
        written = torch.full((5, settings.length), 11, dtype=torch.int16)
        corpus = finetune.Corpus(text, written, settings, generator)
        tensors = random_tensors(8)
        functions = (opt_model.layer, distillation.divergence_gradient)
        return finetune.Training(tensors, tensors, CONFIG, corpus, settings, *functions), settings

    def test_a_batch_holds_pieces_of_the_text_and_what_was_written(self):
        corpus = self.training()[0].corpus
        batch = corpus.batch()
        self.assertEqual(batch.shape, (4, 16))
        self.assertTrue((batch[2:] == 11).all())
        windows = corpus.text.long().unfold(0, 16, 1)
        for row in batch[:2]:
            self.assertTrue((windows == row).all(1).any())

    def test_sparsity_rises_to_what_was_asked_for(self):
        training, _ = self.training()
        found = [training.sparsity_at(progress / 20) for progress in range(21)]
        self.assertEqual(found[0], 0.5)
        self.assertAlmostEqual(found[5], 0.8 - 0.3 / 8)  # halfway: an eighth of the way is left
        self.assertEqual(found[10:], [0.8] * 11)
        self.assertEqual(found, sorted(found))

    def test_a_training_ends_with_that_many_zeros(self):
        ends = []
        for _ in range(2):
            training, settings = self.training()
            seen = []
            log = training.run(settings, lambda run: seen.append(run.masks.mask.clone()) or {"seen": len(seen)})
            self.assertEqual(log[-1]["step"], 100)
            self.assertEqual(log[-1]["seen"], len(seen))
            student = training.student
            kept = student.pruned - int(0.8 * student.pruned)
            pruned = student.flat[: student.pruned]
            self.assertEqual(training.masks.mask.sum().item(), kept)
            self.assertTrue((pruned[training.masks.mask == 0] == 0).all())
            self.assertGreater(pruned.count_nonzero().item(), 0.99 * kept)
            self.assertTrue((seen[-1] == seen[-2]).all())  # none moves at the end
            self.assertFalse((seen[3] == seen[4]).all())
            ends.append(student.flat.clone())
        self.assertTrue((ends[0] == ends[1]).all())

    def test_training_brings_the_student_nearer_to_the_teacher(self):
        training, settings = self.training(sparsity=0.5, regrow=False, rate=3e-3)
        log = training.run(settings, lambda run: {})
        self.assertLess(log[-1]["divergence"], 0.5 * log[0]["divergence"])


if __name__ == "__main__":
    unittest.main()
