"""Integrated gradients on the time-frequency plane, through captum."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from baselines.plane import (
    Item,
    OnPlane,
    Part,
    Plane,
    Scale,
    check_count,
    import_captum,
)
from baselines.rows import fitting_memory
from specsegdiff.frontend import Stft
from specsegdiff.shapes import Map


class IntegratedGradients(OnPlane):
    """Gradients along the straight line from silence to the recording, times their difference
    (Sundararajan et al. 2017, arXiv 1703.01365, eq. 1; Gauss-Legendre quadrature).

    A map sums to ``f(x) - f(silence)`` as far as ``steps`` points resolve the line: exactly for
    networks that are polynomials along it, to what ``delta`` says for others. On the log scale the
    line is straight in logarithms, and silence is the wrapper's floor. ``chunk`` points pass the
    network at once, as many as the memory holds by default, and windows of a long recording a
    few at a time (`Plane.parts`). Raises `ConfigError` on other settings,
    and `ShapeError` on waves that are not ``(b, n)`` and finite.
    """

    def __init__(
        self,
        detector: Callable[..., Any],
        *,
        target: str | int = "spoof",
        stft: Stft | None = None,
        scale: Scale = "linear",
        steps: int = 50,
        chunk: int | None = None,
    ) -> None:
        check_count(steps, name="steps")
        super().__init__(Plane(detector, target=target, stft=stft, scale=scale, chunk=chunk))
        self.steps = steps

    def _explain(self, item: Item) -> tuple[Map, Float[Tensor, ""]]:
        import_captum()
        from captum.attr import IntegratedGradients as CaptumIntegratedGradients

        silence = self.plane.baseline(item, None)

        def along_line(part: Part) -> Tensor:
            def integrate(rows: int) -> Tensor:
                return CaptumIntegratedGradients(part.score).attribute(
                    part.item.value,
                    baselines=silence[:, :, part.frames],
                    n_steps=self.steps,
                    method="gausslegendre",
                    internal_batch_size=rows,
                )

            result, _ = fitting_memory(integrate, chunk=self.plane.chunk, device=self.plane.device)
            return result.detach()

        (result,) = self.plane.over_parts(item, along_line)
        return result, self.plane.change(item, None)
