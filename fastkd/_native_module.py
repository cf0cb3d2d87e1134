# SPDX-License-Identifier: Apache-2.0
"""What a compiled module offers: the Python side of csrc/bindings."""

from typing import Any, Literal, Protocol

# csrc/bindings/module.cpp has the same number. Raise both where a function of the modules, its
# arguments or a code that it takes changes: what was built in place before stays where it is.
INTERFACE = 6

Described = tuple[int, int, tuple[int, ...], tuple[int, ...]]


class NativeModule(Protocol):
    """What csrc/bindings exports; every backend has the same functions."""

    interface: int
    device_type: Literal["cpu", "cuda"]  # "cuda": device memory, which the host must not read

    def __hash__(self) -> int: ...

    def KdLossOptions(  # noqa: N802 - a C++ struct
        self,
        temperature: float,
        soft_weight: float,
        hard_weight: float,
        label_smoothing: float,
        divergence: int,
        beta: float,
        target_weight: float,
    ) -> Any: ...

    def RowOptions(self, reduction: int, ignore_index: int) -> Any: ...  # noqa: N802

    def kd_loss(
        self,
        options: Any,
        rows: Any,
        dim: int,
        batch_size: int,
        num_items: float,
        num_items_on_device: int,
        student: Described,
        teacher: Described,
        target: int,
        sample_weight: int,
        loss: int,
        unscale: int,
        grad: Described | None,
        workspace: int,
        device: int,
        stream: int,
    ) -> bool: ...

    def TopKKdLossOptions(  # noqa: N802
        self,
        temperature: float,
        soft_weight: float,
        hard_weight: float,
        label_smoothing: float,
        tail: int,
        logits: bool,
    ) -> Any: ...

    def topk_kd_loss(
        self,
        options: Any,
        rows: Any,
        dim: int,
        batch_size: int,
        num_items: float,
        num_items_on_device: int,
        student: Described,
        count: int,
        values: int,
        indices: int,
        target: int,
        sample_weight: int,
        loss: int,
        unscale: int,
        grad: Described | None,
        workspace: int,
        device: int,
        stream: int,
    ) -> bool: ...

    def scale_gradient(
        self,
        dim: int,
        grad: Described,
        out: Described,
        grad_loss: int,
        per_row: bool,
        unscale: int,
        device: int,
        stream: int,
    ) -> bool: ...

    def workspace_bytes(self, rows: int) -> int: ...

    def RkdOptions(  # noqa: N802
        self,
        distance_weight: float,
        angle_weight: float,
        criterion: int,
        beta: float,
        reduction: int,
        squared: bool,
        eps: float,
    ) -> Any: ...

    def SimilarityOptions(  # noqa: N802
        self, loss: int, reduction: int, criterion: int, beta: float, gamma: float, eps: float
    ) -> Any: ...

    # rkd_loss and similarity_loss have the same arguments: fastkd/_native.py calls them by name.

    def attention_transfer_loss_workspace(
        self, samples: int, positions: int, with_grad: bool
    ) -> int: ...

    def attention_transfer_loss(
        self,
        power: float,
        mean: bool,
        student: Described,
        teacher: Described,
        loss: int,
        map_grad: int,
        workspace: int,
        device: int,
        stream: int,
    ) -> bool: ...

    def attention_transfer_gradient(
        self,
        power: float,
        student: Described,
        map_grad: int,
        grad_loss: int,
        grad: Described,
        device: int,
        stream: int,
    ) -> bool: ...
