"""The device and the precision that a process works in."""

import torch

from search_spaces.errors import UserError


def device_and_dtype(precision: str) -> tuple[torch.device, torch.dtype | None]:
    """Return the accelerator, or else the CPU, and the dtype to autocast to there, if any."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type != "cpu":
        device = torch.device(device.type, torch.accelerator.current_device_index())
    return device, autocast_dtype(precision, device)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype that `precision` means on `device`.

    Args:
        precision: `fp32`, `bf16`, or `auto`: bf16 on a CUDA device whose hardware has it, else
            fp32.

    Raises:
        UserError: `bf16` on a CUDA device that can only emulate it.
    """
    if precision == "fp32" or (precision == "auto" and device.type != "cuda"):
        return None
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"`precision: bf16` on {name}, which has no bf16: use `auto` or `fp32`.")
    return torch.bfloat16 if has_bf16 else None


def weights_dtype(lora: bool, autocast: torch.dtype | None) -> torch.dtype:
    """Return the dtype that a model's weights are held in.

    Frozen weights need no full precision; weights that learn do, or small updates vanish. The
    reference is scored with the same, or Δ would not start at zero.
    """
    return autocast if lora and autocast is not None else torch.float32
