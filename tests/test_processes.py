# SPDX-License-Identifier: Apache-2.0
"""Training on several processes."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import fastkd

WIDTH, CLASSES = 8, 10


class Student(torch.nn.Module):
    """Two layers; forward gives the loss, so that DDP sees every weight that it needs."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loss = loss
        self.body = torch.nn.Linear(WIDTH, WIDTH)
        self.head = torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, *rest: Tensor, **keywords: object) -> Tensor:
        return self.loss(self, self.body(x), *rest, **keywords)


def of_logits(
    student: Student, hidden: Tensor, teacher: Tensor, target: Tensor, **keywords: object
) -> Tensor:
    return fastkd.kd_loss(student.head(hidden), teacher, target, temperature=4.0, **keywords)


def of_hidden_states(
    student: Student, hidden: Tensor, teacher: Tensor, target: Tensor, **keywords: object
) -> Tensor:
    return fastkd.linear_kd_loss(
        hidden, student.head.weight, None, None, target, student_bias=student.head.bias,
        teacher_logits=teacher, temperature=4.0, chunk_rows=3, **keywords,
    )  # fmt: skip


LOSSES = {"kd_loss": of_logits, "linear_kd_loss": of_hidden_states}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, teacher and targets, of which the processes have unequal numbers."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, WIDTH, generator=generator)
    teacher = torch.randn(8, CLASSES, generator=generator)
    return x, teacher, torch.tensor([1, 2, -100, 3, 4, -100, -100, 5])


def gradients(student: Student) -> list[Tensor]:
    return [weight.grad for weight in student.parameters() if weight.grad is not None]


def _train_one_step(rank: int, folder: str, loss: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    student = Student(LOSSES[loss])
    model = DistributedDataParallel(student)
    mine = [tensor[4 * rank : 4 * rank + 4] for tensor in batch()]
    counted = (mine[2] != -100).sum()
    dist.all_reduce(counted)
    (2 * model(*mine, num_items=counted)).backward()  # DDP averages over the two processes
    if rank == 0:
        torch.save(gradients(student), Path(folder) / "result.pt")
    dist.barrier()  # a process that leaves early closes connections that the other still uses
    # No destroy_process_group: gloo's destructor holds the GIL while it waits for a thread that may
    # need it to let go of the barrier (torch 2.13, pytorch/pytorch#56297).
    os._exit(0)


@pytest.mark.parametrize("loss", LOSSES)
def test_ddp_on_two_processes_equals_one_batch(tmp_path: Path, loss: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_train_one_step, args=(str(tmp_path), loss), nprocs=2)
    found = torch.load(tmp_path / "result.pt")
    student = Student(of_logits)
    x, teacher, target = batch()
    hidden = student.body(x)
    fastkd.reference.kd_loss(student.head(hidden), teacher, target, temperature=4.0).backward()
    assert len(found) == 4
    torch.testing.assert_close(found, gradients(student))
