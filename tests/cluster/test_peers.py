"""Which process is named as lost, and the line protocol against broken and foreign input."""

import socket

import pytest

from hetjax.cluster.messages import LONGEST_LINE, Goodbye, MessageStream, Status, encode
from hetjax.cluster.peers import Peer, find_lost


def peer(process, position, *, moved=0.0, heard=100.0, unlimited=False):
    status = Status(position=position, doing="d", unlimited=unlimited)
    return Peer(process, 4, "h", 1, heard, moved, status)


def named(*peers, now=100.0):
    message = find_lost(peers, 60, now)
    return message and [line.split()[1] for line in message.splitlines()]


def test_all_moving_is_well():
    assert named(peer(0, (1,), moved=90), peer(1, (2,), moved=50)) is None


def test_the_smallest_position_is_named_among_the_still():
    assert named(peer(0, (12, 9)), peer(1, (12, 7)), peer(2, (13, 1))) == ["1"]


def test_all_at_the_smallest_position_are_named():
    assert named(peer(0, (12, 9)), peer(1, (12, 7)), peer(2, (12, 7))) == ["1", "2"]


def test_nobody_is_named_while_the_one_furthest_behind_moves_or_may_take_its_time():
    assert named(peer(0, (12, 9)), peer(1, (12, 7), moved=99)) is None
    assert named(peer(0, (12, 9)), peer(1, (12, 7), unlimited=True)) is None


def test_a_still_one_behind_one_that_may_take_its_time_is_named():
    assert named(peer(0, (12, 7)), peer(1, (12, 9), unlimited=True)) == ["0"]


def test_time_spent_waiting_for_another_is_not_counted():
    slow, waiting = peer(0, (12, 7), moved=99), peer(1, (12, 9))
    assert named(slow, waiting) is None
    slow.update(Status(position=(12, 10), doing="d", unlimited=False), 101.0)
    slow.last_heartbeat = waiting.last_heartbeat = 150.0
    assert named(slow, waiting, now=150.0) is None
    assert named(slow, waiting, now=161.0) == ["1"]


def test_time_beside_one_that_may_take_its_time_is_not_counted():
    busy, waiting = peer(0, (12, 7), unlimited=True), peer(1, (12, 7))
    assert named(busy, waiting) is None
    waiting.last_heartbeat = 150.0
    assert named(waiting, now=150.0) is None
    assert named(waiting, now=161.0) == ["1"]


def test_silence_counts_even_where_any_time_may_be_taken():
    assert named(peer(0, (1,), moved=99), peer(1, (9,), heard=39, unlimited=True)) == ["1"]


@pytest.fixture
def ends():
    """Both ends of a TCP connection: a plain socket, and a stream of messages."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    stream = MessageStream(right)
    yield left, stream
    left.close()
    stream.close()


def test_a_status_arrives_as_it_was_sent_however_it_is_cut(ends):
    left, stream = ends
    status = Status(position=(3, 4), doing="F3 of «llm»", unlimited=False)
    stream.send(status)
    raw = left.recv(4096)
    left.sendall(raw[:7])
    assert stream.receive() == []
    left.sendall(raw[7:] + raw)
    assert stream.receive() == [status, status]
    left.close()
    assert stream.receive() is None


def test_a_goodbye_arrives_with_its_reason(ends):
    left, stream = ends
    left.sendall(encode(Goodbye(reason="the data ended\nafter 3 steps")))
    assert stream.receive() == [Goodbye(reason="the data ended\nafter 3 steps")]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1]\n",
        b"\xff\xfe\n",
        b"1\n",
        b'{"doing": "no kind"}\n',
        b'{"kind": "Verdict"}\n',
        b'{"kind": "Status", "position": 7}\n',
    ],
)
def test_nonsense_counts_as_a_broken_connection(ends, nonsense):
    left, stream = ends
    left.sendall(nonsense)
    assert stream.receive() is None


def test_a_line_without_end_is_not_collected_for_ever(ends):
    left, stream = ends
    received, sent = [], 0
    while received == []:
        assert sent <= 2 * LONGEST_LINE
        left.sendall(b"x" * 10000)
        sent += 10000
        received = stream.receive()
    assert received is None
