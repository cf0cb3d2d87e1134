# SPDX-License-Identifier: Apache-2.0
"""Training on several processes."""

import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import fastkd


def _train_one_step(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 10)
    model = DistributedDataParallel(layer)
    x, teacher = torch.randn(8, 8), torch.randn(8, 10)
    target = torch.tensor([1, 2, -100, 3, 4, -100, -100, 5])
    mine = slice(4 * rank, 4 * rank + 4)
    counted = (target[mine] != -100).sum()
    dist.all_reduce(counted)
    loss = fastkd.kd_loss(
        model(x[mine]), teacher[mine], target[mine], temperature=4.0, num_items=counted
    )
    (2 * loss).backward()  # DDP averages over the two processes
    if rank == 0:
        torch.save([layer.weight.grad, x, teacher, target], Path(folder) / "result.pt")
    dist.barrier()  # a process that leaves early closes connections that the other still uses
    dist.destroy_process_group()


def test_ddp_on_two_processes_equals_one_batch(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_train_one_step, args=(str(tmp_path),), nprocs=2)
    grad, x, teacher, target = torch.load(tmp_path / "result.pt")
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 10)
    fastkd.reference.kd_loss(layer(x), teacher, target, temperature=4.0).backward()
    torch.testing.assert_close(grad, layer.weight.grad)
