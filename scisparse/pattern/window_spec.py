"""The regular window behind a pattern."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["WindowSpec"]


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """The regular window behind a pattern, in the terms of a torch convolution, one entry an axis.

    Site ``o`` and tap ``k`` of an axis read source ``o * stride - padding[0] + k * dilation``.

    Parameters
    ----------
    kernel_size, stride, dilation
        As in ``torch.nn.Conv2d``.
    padding
        Sources added before and after each axis.
    padding_modes
        ``"zeros"``, ``"circular"``, ``"reflect"`` or ``"replicate"`` for each axis.
    input_size, output_size
        Sources and sites along each axis.
    transposed
        Sites and sources have changed places, as in a torch transposed convolution.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    padding_modes: tuple[str, ...]
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    transposed: bool = False

    @property
    def site_size(self) -> tuple[int, ...]:
        """Sites along each axis, whichever way round."""
        return self.input_size if self.transposed else self.output_size

    @property
    def source_size(self) -> tuple[int, ...]:
        """Sources along each axis, whichever way round."""
        return self.output_size if self.transposed else self.input_size

    def swapped(self) -> WindowSpec:
        """Give the window with sites and sources in each other's place."""
        return replace(self, transposed=not self.transposed)
