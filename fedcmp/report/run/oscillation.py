"""Whether the server goes on or swings back."""

from __future__ import annotations

from fedcmp.report.blocks import Picture, Section
from fedcmp.report.drawing.canvas import COOL, colour
from fedcmp.report.drawing.lines import Level, Line, draw_lines
from fedcmp.report.run.reading import Run
from fedcmp.report.words import layer, number, short


def oscillation_section(run: Run) -> Section | None:
    """None where the method recorded nothing of it."""
    pictures = [picture for picture in (_turns(run), _length(run), _angles(run)) if picture]
    if not pictures:
        return None
    _, cosines = run.series("aggregator/oscillation")
    text = "A server that swings back undoes its last step: the cosine between the two is below 0."
    back = sum(value < 0 for value in cosines[1:])
    if len(cosines) > 1:
        steps = f"{len(cosines) - 1} step{'' if len(cosines) == 2 else 's'} after the first"
        text += f" Here that happened in {back or 'none'} of {steps}."
    return Section("oscillation", "Oscillation between rounds", [text], pictures)


def _turns(run: Run) -> Picture | None:
    rounds, cosines = run.series("aggregator/oscillation")
    if len(cosines) < 2:
        return None
    rounds, cosines = rounds[1:], cosines[1:]  # the first step has none before it
    figure = draw_lines(
        [Line("", rounds, cosines, COOL, 2.0)], "cosine", levels=[Level(0.0)], limits=(min(-0.1, *cosines), 1.0)
    )
    alt = f"Cosine between each server step and the one before: from {number(min(cosines))} to {number(max(cosines))}, "
    alt += f"{number(sum(cosines) / len(cosines))} on average."
    caption = "1: straight on; 0: a right angle; below 0: back."
    return Picture("step-cosine", "Cosine between successive steps", figure, alt, caption)


def _length(run: Run) -> Picture | None:
    rounds, steps = run.series("aggregator/step_norm")
    if not steps:
        return None
    lines = [Line("server step", rounds, steps, COOL, 2.0)]
    x, deltas = run.series("aggregator/delta_norm")
    if deltas and any(abs(one - other) > 1e-6 * max(one, other) for one, other in zip(steps, deltas, strict=False)):
        lines.append(Line("fused update", x, deltas, colour(1), dash=(0, (5, 1.5))))
    alt = f"Norm of the server step: {short(steps[0])} in the first round, {short(steps[-1])} in the last."
    figure = draw_lines(lines, "Euclidean norm", limits=(0.0, None))
    return Picture("step-norm", "Length of the server step", figure, alt, "Over all parameters of the projector.")


def _angles(run: Run) -> Picture | None:
    lines = []
    for place, name in enumerate(run.parts("aggregator/basis_turn")):
        x, mean = run.series(f"aggregator/basis_turn/{name}")
        lines.append(Line(f"{layer(name)}, mean", x, mean, colour(place), 2.0))
        x, largest = run.series(f"aggregator/basis_turn_max/{name}")
        lines.append(Line(f"{layer(name)}, largest", x, largest, colour(place), 1.2, (0, (2, 2))))
    lines = [line for line in lines if line.y]
    if not lines:
        return None
    alt = "Principal angles between the shared bases of two rounds, in the last one: "
    alt += ", ".join(f"{line.name} {number(line.y[-1], 0)} degrees" for line in lines) + "."
    caption = "Between the spaces that the updates of two successive rounds span; momentum is carried by them."
    figure = draw_lines(lines, "degrees", limits=(0.0, 90.0))
    return Picture("angles", "Turn of the shared basis", figure, alt, caption)
