"""A prediction against a measurement: a verdict, and the reason in words. All pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from labs.limits import Prediction

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
VERDICTS = (PASS, FAIL, INCONCLUSIVE)
UNSETTLED = "the running count never settled; give the probe more time"


@dataclass(frozen=True)
class Measurement:
    """One row of a result record. Only kinds `exact` and `bound` carry a verdict."""

    name: str
    kind: str
    verdict: str | None = None
    predicted: Any = None
    measured: Any = None
    binding: str = ""
    why: str = ""
    unit: str = ""
    samples: tuple[float, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the JSON object of the result record, without empty entries."""
        kept = {"name", "kind"} | (
            {"predicted", "measured", "verdict"} if self.kind in ("exact", "bound") else {"measured"} if self.kind == "info" else set()
        )
        entry = {k: v for k, v in asdict(self).items() if k in kept or v not in (None, "", (), {}, [])}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in entry.items()}


@dataclass(frozen=True)
class Plateau:
    """What the gate showed: `running` task instances while `queued` and `scheduled` ones waited.

    `polls` readings over `seconds` s were all the same; `starting` is how many tasks a worker
    had taken that did not run yet, None if that cannot be told.
    """

    running: int
    queued: int
    scheduled: int
    polls: int
    seconds: float
    settled: bool = True
    starting: int | None = None

    @property
    def waiting(self) -> int:
        """Task instances that waited for room."""
        return self.queued + self.scheduled


def check_peak(name: str, prediction: Prediction, plateau: Plateau | None, timeline_peak: int) -> Measurement:
    """Return the verdict on a peak: the plateau must be saturated, and the timeline must agree with it."""
    if plateau is None or not plateau.settled:
        return Measurement(
            name,
            "exact",
            INCONCLUSIVE,
            prediction.peak,
            None if plateau is None else plateau.running,
            prediction.binding,
            UNSETTLED,
            evidence={"timeline peak": timeline_peak},
        )
    evidence = {
        "waiting": plateau.waiting,
        "queued": plateau.queued,
        "scheduled": plateau.scheduled,
        "polls": plateau.polls,
        "seconds": round(plateau.seconds, 1),
        "starting": plateau.starting,
        "timeline peak": timeline_peak,
    }
    verdict, why = _judge_peak(prediction, plateau, timeline_peak)
    return Measurement(name, "exact", verdict, prediction.peak, plateau.running, prediction.binding, why, evidence=evidence)


def _judge_peak(prediction: Prediction, plateau: Plateau, timeline_peak: int) -> tuple[str, str]:
    measured, most = plateau.running, max(plateau.running, timeline_peak)
    # More than was predicted refutes the prediction, whether or not anything waited.
    if most > prediction.peak:
        return FAIL, f"{most} ran at once, but at most {prediction.peak} were predicted ({prediction.binding}): that limit does not hold"
    if plateau.waiting == 0:
        return INCONCLUSIVE, f"all {measured} tasks ran and none waited, so no limit was reached; submit more tasks"
    if timeline_peak != measured:
        return INCONCLUSIVE, f"the gate showed {measured} running at once, the start and end times {timeline_peak}"
    if measured == prediction.peak:
        return PASS, f"{measured} ran at once while {plateau.waiting} waited: {prediction.binding}"
    return FAIL, (
        f"{measured} ran at once, {prediction.peak} were predicted ({prediction.binding}); "
        f"{plateau.waiting} more were waiting, so some other limit binds first"
    )


def check_exact(name: str, predicted: Any, measured: Any, *, binding: str = "", evidence: dict[str, Any] | None = None) -> Measurement:
    """Return `pass` when both are equal, `fail` when not, `inconclusive` when nothing was measured (None)."""
    if measured is None:
        return Measurement(name, "exact", INCONCLUSIVE, predicted, None, binding, "nothing was measured", evidence=evidence or {})
    equal = predicted == measured
    why = "as predicted" if equal else f"predicted {_show(predicted)}, measured {_show(measured)}"
    return Measurement(name, "exact", PASS if equal else FAIL, predicted, measured, binding, why, evidence=evidence or {})


def check_plateau(name: str, predicted: Any, measured: Any, plateaus: Sequence[Plateau], *, binding: str = "") -> Measurement:
    """Return the verdict on what was read while gates were closed: `inconclusive` unless the count had settled at each of them."""
    evidence = {"polls": min(plateau.polls for plateau in plateaus), "seconds": round(min(plateau.seconds for plateau in plateaus), 1)}
    if not all(plateau.settled for plateau in plateaus):
        return Measurement(name, "exact", INCONCLUSIVE, predicted, measured, binding, UNSETTLED, evidence=evidence)
    return check_exact(name, predicted, measured, binding=binding, evidence=evidence)


def check_bound(
    name: str, measured: float | None, *, at_least: float | None = None, at_most: float | None = None, unit: str = ""
) -> Measurement:
    """Return whether a number stays within bounds; bounds are for claims that no machine's speed can break."""
    bounds = [f"{words} {bound:g}" for words, bound in (("at least", at_least), ("at most", at_most)) if bound is not None]
    if not bounds:
        raise ValueError(f"check {name!r} needs a bound: at_least, at_most or both")
    predicted = " and ".join(bounds) + (f" {unit}" if unit else "")
    if measured is None:
        return Measurement(name, "bound", INCONCLUSIVE, predicted, None, why="nothing was measured", unit=unit)
    inside = (at_least is None or measured >= at_least) and (at_most is None or measured <= at_most)
    why = "within the bound" if inside else f"{measured:g} is not {predicted}"
    return Measurement(name, "bound", PASS if inside else FAIL, predicted, measured, why=why, unit=unit)


def timing(name: str, samples: Sequence[float], unit: str = "s") -> Measurement:
    """Return raw samples under a name; they are judged only against a baseline of the same machine."""
    return Measurement(name, "timing", unit=unit, samples=tuple(round(s, 4) for s in samples))


def info(name: str, value: Any) -> Measurement:
    """Return a fact that is recorded and never compared."""
    return Measurement(name, "info", measured=value)


def overall(verdicts: Sequence[str]) -> str:
    """Return the verdict of a whole lab: any failure fails it; without any verdict it is inconclusive."""
    if FAIL in verdicts:
        return FAIL
    if INCONCLUSIVE in verdicts or not verdicts:
        return INCONCLUSIVE
    return PASS


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 120 else text[:117] + "…"
