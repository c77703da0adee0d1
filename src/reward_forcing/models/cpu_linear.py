"""Linear layers on a CPU as single oneDNN products, with the bias added and GELU applied as they multiply.

Without gradients only: training takes torch's own layers.
"""

from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn

Activation = Literal["none", "gelu"]
"""What is applied to the product: nothing, or the tanh approximation of GELU."""


def is_one_product(linear: nn.Module, x: Tensor) -> TypeGuard[nn.Linear]:
    """Whether `product` may compute this layer of x: on a CPU, without gradients or autocast, of plain weights."""
    if type(linear) is not nn.Linear or type(x) is not Tensor or x.device.type != "cpu":
        return False
    if x.dtype != linear.weight.dtype or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if x.dtype == torch.bfloat16:
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.backends.mkldnn.is_available() and x.dtype == torch.float32


def product(linear: nn.Linear, x: Tensor, activation: Activation = "none") -> Tensor:
    """`activation` of linear(x) [..., E], of x [..., inputs]."""
    compute = opaque_product if torch.compiler.is_compiling() else _product
    return compute(x, linear.weight, linear.bias, activation)


def project(linear: nn.Module, x: Tensor) -> Tensor:
    """linear(x), as one product in bfloat16, where torch's own layer writes the bias first and adds to it."""
    return product(linear, x) if x.dtype == torch.bfloat16 and is_one_product(linear, x) else linear(x)


def _product(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    approximation = "tanh" if activation == "gelu" else ""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], approximation)


@torch.library.custom_op("reward_forcing::product", mutates_args=())
def opaque_product(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """The product as an operator that a compiler does not look into.

    torch's own takes oneDNN's operator only with weights that it may keep as constants.
    """
    return _product(x, weight, bias, activation)


@opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))
