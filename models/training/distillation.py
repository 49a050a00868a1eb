"""Losses with the head in them: the divergence of the student's distribution of the next token from the teacher's, and −log p of tokens.

Logits of a batch would be the largest thing in memory by far; they are made, used and dropped in chunks, and the gradient with them.
"""

import torch
import torch.nn.functional as F

CHUNK = 8192  # rows of logits at once


def divergence_gradient(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over rows of KL(teacher ‖ student), and its gradient by the student's logits."""
    log_student = F.log_softmax(student.float(), -1)
    log_teacher = F.log_softmax(teacher.float(), -1)
    wanted = log_teacher.exp()
    loss = (wanted * (log_teacher - log_student)).sum()
    return loss, (log_student.exp() - wanted).to(student.dtype)


def token_gradient(student: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over rows of −log p(token), and its gradient by the logits."""
    log_student = F.log_softmax(student.float(), -1)
    loss = -log_student.gather(-1, tokens[:, None]).sum()
    gradient = log_student.exp()
    gradient.scatter_add_(-1, tokens[:, None], torch.full_like(tokens[:, None], -1, dtype=gradient.dtype))
    return loss, gradient.to(student.dtype)


class HeadLoss(torch.autograd.Function):
    """Mean loss over rows of `hidden` [rows, size] with the head [vocabulary, size]; `wanted` is the teacher's hidden, head, or tokens."""

    @staticmethod
    def forward(ctx, hidden, head, wanted, wanted_head, gradient):
        rows = hidden.shape[0]
        total = torch.zeros((), device=hidden.device)
        by_hidden = torch.empty_like(hidden)
        by_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
        for at in range(0, rows, CHUNK):
            part = slice(at, min(rows, at + CHUNK))
            target = wanted[part] if wanted_head is None else wanted[part] @ wanted_head.T
            loss, by_logits = gradient(hidden[part] @ head.T, target)
            total += loss
            by_logits /= rows
            by_hidden[part] = by_logits @ head
            by_head += by_logits.T @ hidden[part]
        ctx.save_for_backward(by_hidden, by_head.to(head.dtype))
        return total / rows

    @staticmethod
    def backward(ctx, scale):
        by_hidden, by_head = ctx.saved_tensors
        return (by_hidden * scale).to(by_hidden.dtype), (by_head * scale).to(by_head.dtype), None, None, None


def divergence(hidden, head, teacher_hidden, teacher_head, gradient=divergence_gradient) -> torch.Tensor:
    return HeadLoss.apply(hidden, head, teacher_hidden, teacher_head, gradient)


def token_loss(hidden, head, tokens) -> torch.Tensor:
    return HeadLoss.apply(hidden, head, tokens, None, token_gradient)
