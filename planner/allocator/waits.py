"""Freed blocks that other streams still use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from planner.allocator.blocks import Block


class StreamWaits:
    """Blocks freed while other streams were recorded on them; each goes to ``release`` once those have finished.

    ``blocks`` are those still waiting, by address. Per stream a queue holds them with the number of synchronizations that the
    stream had seen when the block was freed: one more, and the stream has finished with the block.
    """

    def __init__(self, release: Callable[[Block], None]) -> None:
        self.blocks: dict[int, Block] = {}
        self._release = release
        self._deferred: list[Block] = []
        self._queues: dict[int, deque[tuple[Block, int]]] = {}
        self._synchronized: dict[int, int] = {}

    def add(self, block: Block, *, capturing: bool) -> None:
        """Take a freed block; during a capture its wait begins only after it."""
        self.blocks[block.address] = block
        if capturing:
            self._deferred.append(block)
        else:
            self._queue(block)

    def synchronize(self, stream: int | None) -> None:
        """A stream (None: every one) has finished what was queued."""
        for each in (stream,) if stream is not None else tuple(self._queues):
            self._synchronized[each] = self._synchronized.get(each, 0) + 1

    def process(self) -> None:
        """Release what no stream uses any more."""
        self._queue_deferred()
        for stream, queue in list(self._queues.items()):
            while queue and queue[0][1] < self._synchronized.get(stream, 0):
                self._end_one(queue.popleft()[0])
            if not queue:
                del self._queues[stream]

    def wait(self) -> None:
        """Let every stream finish, and release all."""
        self._queue_deferred()
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            for block, _ in queue:
                self._end_one(block)

    def _queue_deferred(self) -> None:
        deferred, self._deferred = self._deferred, []
        for block in deferred:
            # the capture's own streams have completed with it
            block.used_by = (block.used_by or set()) - (block.capture_streams or set())
            self._queue(block)

    def _queue(self, block: Block) -> None:
        streams, block.used_by, block.capture_streams = block.used_by or set(), None, None
        block.pending_streams = len(streams)
        for stream in sorted(streams):
            self._queues.setdefault(stream, deque()).append((block, self._synchronized.get(stream, 0)))
        if not streams:
            self._end(block)

    def _end_one(self, block: Block) -> None:
        block.pending_streams -= 1
        if block.pending_streams == 0:
            self._end(block)

    def _end(self, block: Block) -> None:
        del self.blocks[block.address]
        self._release(block)
