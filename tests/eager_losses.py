# SPDX-License-Identifier: Apache-2.0
"""The relational and feature losses as people write them: what benchmarks compare with.

Each is the authors' code, or RepDistiller's, which most training code has from them, with default
options and as a function of the tensors.
"""

import torch
from torch import Tensor
from torch.nn import functional


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


def eager_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Of features or of logits."""
    return functional.mse_loss(student, teacher)
