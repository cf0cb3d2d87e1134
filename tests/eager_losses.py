# SPDX-License-Identifier: Apache-2.0
"""The losses as people write them: what benchmarks compare with.

Of logits, as most training code has them. The others are the authors' code, or RepDistiller's,
which most training code has from them, with default options and as a function of the tensors.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def eager_kd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    dim: int,
    temperature: float,
    alpha: float,
    reduction: str,
    divergence: str = "forward_kl",
) -> Tensor:
    """The loss as most training code has it, both terms summed over rows and divided by N."""
    assert reduction == "batchmean"
    log_q = functional.log_softmax(student / temperature, dim)
    soft = _EAGER_DIVERGENCES[divergence](log_q, teacher / temperature, dim) / len(student)
    hard = functional.cross_entropy(student.movedim(dim, 1), target, reduction="sum") / len(student)
    return soft * temperature * temperature * alpha + hard * (1 - alpha)


def _eager_kl(log_q: Tensor, teacher: Tensor, dim: int) -> Tensor:
    return functional.kl_div(log_q, functional.softmax(teacher, dim), reduction="sum")


def _eager_reverse_kl(log_q: Tensor, teacher: Tensor, dim: int) -> Tensor:
    log_p = functional.log_softmax(teacher, dim)
    return functional.kl_div(log_p, log_q, reduction="sum", log_target=True)


def _eager_js(log_q: Tensor, teacher: Tensor, dim: int) -> Tensor:
    log_p = functional.log_softmax(teacher, dim)
    half = math.log(0.5)  # TRL's, with beta = 0.5
    log_m = torch.logsumexp(torch.stack([log_q + half, log_p + half]), 0)
    of_teacher = functional.kl_div(log_m, log_p, reduction="sum", log_target=True)
    of_student = functional.kl_div(log_m, log_q, reduction="sum", log_target=True)
    return (of_teacher + of_student) / 2


def _eager_tv(log_q: Tensor, teacher: Tensor, dim: int) -> Tensor:
    return (functional.softmax(teacher, dim) - log_q.exp()).abs().sum() / 2


_EAGER_DIVERGENCES = {
    "forward_kl": _eager_kl,
    "reverse_kl": _eager_reverse_kl,
    "js": _eager_js,
    "tv": _eager_tv,
}


def eager_standardized_kd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    dim: int,
    temperature: float,
    alpha: float,
    reduction: str,
    standardize_logits: bool,
) -> Tensor:
    """The same with the authors' z-scores, Sun et al. 2024."""
    assert reduction == "batchmean" and standardize_logits  # noqa: PT018

    def normalize(logits: Tensor) -> Tensor:
        deviation = logits.std(dim=dim, keepdim=True)
        return (logits - logits.mean(dim=dim, keepdim=True)) / (1e-7 + deviation)

    log_q = functional.log_softmax(normalize(student) / temperature, dim)
    soft = _eager_kl(log_q, normalize(teacher) / temperature, dim) / len(student)
    hard = functional.cross_entropy(student.movedim(dim, 1), target, reduction="sum") / len(student)
    return soft * temperature * temperature * alpha + hard * (1 - alpha)


def eager_decoupled_kd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    dim: int,
    temperature: float,
    alpha: float,
    beta: float,
    reduction: str,
) -> Tensor:
    """As in the authors' code, Zhao et al. 2022: the label's logit is hidden by taking 1000 off."""
    assert reduction == "batchmean"
    label = torch.zeros_like(student).scatter_(dim, target.unsqueeze(dim), 1).bool()
    others = torch.ones_like(student).scatter_(dim, target.unsqueeze(dim), 0).bool()
    q = functional.softmax(student / temperature, dim)
    p = functional.softmax(teacher / temperature, dim)
    of_student = torch.stack([(q * label).sum(dim), (q * others).sum(dim)]).log()
    of_teacher = torch.stack([(p * label).sum(dim), (p * others).sum(dim)])
    of_label = functional.kl_div(of_student, of_teacher, reduction="sum")
    log_q = functional.log_softmax(student / temperature - 1000.0 * label, dim)
    p_of_others = functional.softmax(teacher / temperature - 1000.0 * label, dim)
    of_others = functional.kl_div(log_q, p_of_others, reduction="sum")
    return (alpha * of_label + beta * of_others) * temperature**2 / len(student)


def eager_topk_kd_loss(
    student: Tensor,
    values: Tensor,
    indices: Tensor,
    target: Tensor,
    *,
    dim: int,
    alpha: float,
    reduction: str,
) -> Tensor:
    """The named classes gathered, and the rest of the mass as one class more."""
    assert reduction == "batchmean"
    named = functional.log_softmax(student, dim).gather(dim, indices)
    p = values.exp()
    rest = (1 - p.sum(dim)).clamp(min=1e-6)
    of_student = (1 - named.exp().sum(dim)).clamp(min=1e-6)
    soft = (p * (values - named)).sum(dim) + rest * (rest.log() - of_student.log())
    hard = functional.cross_entropy(student.movedim(dim, 1), target, reduction="sum")
    return (soft.sum() * alpha + hard * (1 - alpha)) / len(student)


def eager_linear_kd_loss(
    student: Tensor,
    student_weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    target: Tensor,
    *,
    temperature: float,
    alpha: float,
) -> Tensor:
    """The loss of whole logits, after the output layers of both."""
    return eager_kd_loss(
        student @ student_weight.t(),
        teacher @ teacher_weight.t(),
        target,
        dim=-1,
        temperature=temperature,
        alpha=alpha,
        reduction="batchmean",
    )


def eager_rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Of the distances over their mean, Park et al. 2019."""
    with torch.no_grad():
        of_teacher = _pdist(teacher)
        of_teacher = of_teacher / of_teacher[of_teacher > 0].mean()
    of_student = _pdist(student)
    of_student = of_student / of_student[of_student > 0].mean()
    return functional.smooth_l1_loss(of_student, of_teacher)


def _pdist(x: Tensor, eps: float = 1e-12) -> Tensor:
    square = x.pow(2).sum(dim=1)
    product = x @ x.t()
    distance = (square.unsqueeze(1) + square.unsqueeze(0) - 2 * product).clamp(min=eps).sqrt()
    distance = distance.clone()
    distance[range(len(x)), range(len(x))] = 0
    return distance


def eager_rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Of the angles of all triplets, Park et al. 2019."""
    with torch.no_grad():
        of_teacher = _angles(teacher)
    return functional.smooth_l1_loss(_angles(student), of_teacher)


def _angles(x: Tensor) -> Tensor:
    directions = functional.normalize(x.unsqueeze(0) - x.unsqueeze(1), p=2, dim=2)
    return torch.bmm(directions, directions.transpose(1, 2)).view(-1)


def eager_rkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Both, with the authors' weights."""
    distance = eager_rkd_distance_loss(student, teacher)
    return 25 * distance + 50 * eager_rkd_angle_loss(student, teacher)


def eager_similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Tung and Mori 2019."""
    batch = len(student)
    student, teacher = student.view(batch, -1), teacher.view(batch, -1)
    of_student = functional.normalize(torch.mm(student, student.t()))
    of_teacher = functional.normalize(torch.mm(teacher, teacher.t()))
    difference = of_teacher - of_student
    return (difference * difference).sum() / (batch * batch)


def eager_cosine_similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The tables of cosines."""
    student, teacher = functional.normalize(student), functional.normalize(teacher)
    return functional.smooth_l1_loss(student @ student.t(), teacher @ teacher.t())


def eager_pkt_loss(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Passalis and Tefas 2018."""
    of_student, of_teacher = _neighbours(student, eps), _neighbours(teacher, eps)
    return torch.mean(of_teacher * torch.log((of_teacher + eps) / (of_student + eps)))


def _neighbours(x: Tensor, eps: float) -> Tensor:
    x = x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + eps)
    x[x != x] = 0  # noqa: PLR0124 - the authors' way to find NaN
    similarity = (torch.mm(x, x.transpose(0, 1)) + 1.0) / 2.0
    return similarity / torch.sum(similarity, dim=1, keepdim=True)


def eager_correlation_loss(student: Tensor, teacher: Tensor, gamma: float = 0.4) -> Tensor:
    """Peng et al. 2019, with the kernel itself in place of its Taylor series."""
    return functional.mse_loss(_gaussian(student, gamma), _gaussian(teacher, gamma))


def _gaussian(x: Tensor, gamma: float) -> Tensor:
    x = functional.normalize(x)
    return torch.exp(-gamma * (2 - 2 * torch.mm(x, x.t())))


def eager_attention_transfer_loss(student: Tensor, teacher: Tensor, p: int = 2) -> Tensor:
    """Zagoruyko and Komodakis 2017."""
    return (_attention(student, p) - _attention(teacher, p)).pow(2).mean()


def _attention(x: Tensor, p: int) -> Tensor:
    return functional.normalize(x.pow(p).mean(1).view(len(x), -1))


def eager_nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huang and Wang 2017."""
    student = functional.normalize(student.view(*student.shape[:2], -1), dim=2)
    teacher = functional.normalize(teacher.view(*teacher.shape[:2], -1), dim=2)
    return (
        _polynomial(teacher, teacher).mean().detach()
        + _polynomial(student, student).mean()
        - 2 * _polynomial(student, teacher).mean()
    )


def _polynomial(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2)


def eager_fsp_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Yim et al. 2017."""
    return (_flow(*student) - _flow(*teacher)).pow(2).mean()


def _flow(bottom: Tensor, top: Tensor) -> Tensor:
    bottom, top = bottom.unsqueeze(2), top.unsqueeze(1)
    return (bottom.flatten(3) * top.flatten(3)).mean(-1)


def eager_dist_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Huang et al. 2022."""
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    between, within = 1 - _pearson(q, p).mean(), 1 - _pearson(q.t(), p.t()).mean()
    return beta * temperature**2 * between + gamma * temperature**2 * within


def _pearson(x: Tensor, y: Tensor, eps: float = 1e-8) -> Tensor:
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    correlation: Tensor = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + eps)
    return correlation


def eager_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Of features or of logits."""
    return functional.mse_loss(student, teacher)
