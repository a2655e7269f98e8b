"""Packet rate: the highest at which at most 0.5 % of the packets are lost, by a search; and the delay at 80 % of it.

Two ways of sending, both from the same generator, which hands the kernel trains of up to 63 packets (UDP GSO):

    trains   they leave the pod whole, as those of a program that uses UDP GSO do; a datapath may profit from that or not
    alone    they are cut in the pod's own device: every packet is forwarded by itself, the worst case for every datapath

The search of one round starts where that of the last ended, so only the first one has to look far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flanpy.bench.beds import Bed
from flanpy.bench.native import TRAIN_MAX, Received, Sent
from flanpy.bench.samples import Figure, Settings
from flanpy.bench.stations import send_and_count
from flanpy.bench.statistics import Found, Trial, highest_rate
from flanpy.bench.tasks import Task, Value

SIZES = (64, 512, 1400)
LOSS_LIMIT = 0.005
FLOWS = 4
TRIAL_S = 0.4
FIRST_PPS = 100_000.0
CEILING_PPS = 12_000_000.0
PRECISION = 0.04
MOST_TRIALS = 24
DELAY_AT = 0.8
"""Share of the highest rate at which the delay is measured: near the limit it would be the length of a queue."""


def _send(bed: Bed, payload_bytes: int, rate_pps: float) -> tuple[Sent, Received]:
    train = min(TRAIN_MAX, 65507 // payload_bytes)
    rate = max(1, round(rate_pps))
    return send_and_count(bed, payload_bytes=payload_bytes, rate_pps=rate, seconds=TRIAL_S, train=train, flows=FLOWS)


def trial(bed: Bed, payload_bytes: int, rate_pps: float) -> Trial:
    """Send at one rate and see what arrives."""
    sent, received = _send(bed, payload_bytes, rate_pps)
    return Trial(rate_pps, sent.packets / sent.elapsed_s if sent.elapsed_s else 0.0, sent.packets, received.packets)


def search(bed: Bed, payload_bytes: int, near_pps: float | None) -> Found:
    """The highest rate of a bed; ``near_pps`` is where an earlier search ended."""
    return highest_rate(
        lambda rate_pps: trial(bed, payload_bytes, rate_pps),
        start_pps=near_pps or FIRST_PPS,
        ceiling_pps=CEILING_PPS,
        loss_limit=LOSS_LIMIT,
        precision=PRECISION,
        most_trials=MOST_TRIALS,
        growth=1.3 if near_pps else 2.0,
    )


def udp_task(payload_bytes: int, alone: bool) -> Task:
    """Packet rate and delay of one size."""
    key = f"udp_{payload_bytes}" + ("_alone" if alone else "")
    title = f"UDP, {payload_bytes} B, " + ("each packet alone" if alone else "trains (UDP GSO)")
    figures = (
        Figure(key, f"{title}: highest rate with at most 0.5 % loss", "packets/s"),
        *(
            Figure(f"{key}_delay_{part}", f"{title}: one-way delay at {DELAY_AT:.0%} of it, {part}", "us", higher_is_better=False)
            for part in ("p50", "p99")
        ),
    )
    ended_at: dict[tuple[str, str | None], float] = {}

    def measure(bed: Bed) -> Sequence[Value]:
        bed.set_trains(not alone)
        found = search(bed, payload_bytes, ended_at.get((bed.setup, bed.mode)))
        detail = {"trials": len(found.trials), "generator_bound": found.generator_bound}
        if found.best is None:
            return [Value(key, 0.0, detail)]
        ended_at[bed.setup, bed.mode] = found.best.asked_pps
        rate = Value(key, found.best.received_pps, {**detail, "loss": found.best.loss})
        return [rate, *_delay(bed, key, payload_bytes, found.best.sent_pps * DELAY_AT)]

    return Task(title, figures, 6.0, measure)


def _delay(bed: Bed, key: str, payload_bytes: int, rate_pps: float) -> Sequence[Value]:
    sent, received = _send(bed, payload_bytes, rate_pps)
    lost = sent.packets - received.packets
    detail = {"sent": sent.packets, "lost": lost, "duplicates": received.duplicates, "reordered": received.reordered}
    return [
        Value(f"{key}_delay_p50", received.delay.quantile_ns(0.5) / 1000, detail, received.delay.buckets),
        Value(f"{key}_delay_p99", received.delay.quantile_ns(0.99) / 1000),
    ]


def udp_tasks(settings: Settings) -> Iterator[Task]:
    """Every size in trains, and the smallest alone; the length of a trial does not follow ``--seconds``: a search takes many."""
    del settings
    for payload_bytes in SIZES:
        yield udp_task(payload_bytes, alone=False)
    yield udp_task(SIZES[0], alone=True)
