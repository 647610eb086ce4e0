"""Shapes of arrays in annotations: jaxtyping's names, or stand-ins where it is not installed.

A client of the service runs in a host's environment with numpy, pillow and httpx only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
else:
    try:
        from jaxtyping import Float, UInt8
    except ImportError:

        class _Unchecked:
            """An annotation that says nothing."""

            def __class_getitem__(cls, item: Any) -> Any:
                return Any

        Float = UInt8 = _Unchecked

__all__ = ["Float", "UInt8"]
