"""All requests of an order, by due time. Pure."""

import heapq
from array import array

from orders import Order
from records import Records
from schedule import due_times, numbers


class Agenda:
    def __init__(self, order: Order) -> None:
        self.traffics = order.traffics
        times = [due_times(traffic.arrivals) for traffic in order.traffics]
        asked = [numbers(t.questions, len(due)) for t, due in zip(order.traffics, times, strict=True)]
        merged = list(heapq.merge(*([(at, kind, n) for n, at in enumerate(due)] for kind, due in enumerate(times))))
        self.questions = [asked[kind][n] for _, kind, n in merged]
        names, streams = [t.name for t in order.traffics], [t.stream for t in order.traffics]
        self.records = Records(array("d", (at for at, _, _ in merged)), [kind for _, kind, _ in merged], names, streams)

    def stream(self, number: int) -> bool:
        return self.traffics[self.records.traffic[number]].stream

    def request(self, number: int) -> bytes:
        traffic = self.traffics[self.records.traffic[number]]
        return b"%b%016d%b" % (traffic.head, self.questions[number], traffic.tail)
