"""An NBD client made of libnbd, which does what its standard input says.

A batch is lines, ended by "go":

    open URI SECONDS      a new connection, in place of the present one
    write OFF BASE64      what is written must be there when it is answered
    zero OFF BYTES
    trim OFF BYTES
    flush
    read OFF BYTES
    close

All requests of a batch go out before the first reply is waited for, for at most the
seconds that open was given. Then a line for each of the batch, in its order:

    ok [BASE64]           done; of a read what it gave
    error ERRNO TEXT      the server answered with an error
    lost TEXT             no answer: the connection broke, or none came in time

After "lost" the connection is gone until the next open.
"""

import base64
import errno
import sys
import time

import nbd


class Client:
    def __init__(self):
        self.handle, self.seconds = None, 0

    def batch(self, lines):
        answers = [None] * len(lines)
        begun = []  # [index, cookie, buffer]
        self.deadline = time.monotonic() + self.seconds
        for i, line in enumerate(lines):
            what, *args = line.split()
            if what == "open":
                answers[i] = self.open(args[0], float(args[1]))
            elif what == "close":
                self.handle, answers[i] = None, "ok"
            elif self.handle is None:
                answers[i] = "lost not connected"
            else:
                try:
                    begun.append([i, *self.begin(what, args)])
                except nbd.Error as e:  # by libnbd itself
                    answers[i] = "lost " + e.string if self.gone() else self.broken(e)
        while begun:
            gone = self.gone()  # before the look at the requests: then each has its answer
            begun = [b for b in begun if not self.answered(b, answers)]
            if not begun:
                break
            if gone or not self.poll():
                for i, *_ in begun:
                    answers[i] = "lost " + (gone or "no answer in %g s" % self.seconds)
                self.handle = None
                break
        if self.handle is not None and self.gone():
            self.handle = None
        return answers

    def open(self, uri, seconds):
        self.seconds, self.deadline = seconds, time.monotonic() + seconds
        self.handle = h = nbd.NBD()
        try:
            h.aio_connect_uri(uri)
            while not h.aio_is_ready():
                if self.gone() or not self.poll():
                    self.handle = None
                    return "lost " + (self.gone() or "not open in %g s" % seconds)
            return "ok"
        except nbd.Error as e:
            self.handle = None
            return "lost %s" % e.string

    def begin(self, what, args):
        h = self.handle
        if what == "write":
            buf = nbd.Buffer.from_bytearray(bytearray(base64.b64decode(args[1])))
            return h.aio_pwrite(buf, int(args[0])), buf
        if what == "read":
            buf = nbd.Buffer(int(args[1]))
            return h.aio_pread(buf, int(args[0])), buf
        if what == "zero":
            return h.aio_zero(int(args[1]), int(args[0])), None
        if what == "trim":
            return h.aio_trim(int(args[1]), int(args[0])), None
        if what == "flush":
            return h.aio_flush(), None
        sys.exit("unknown request " + what)

    def answered(self, request, answers):
        i, cookie, buf = request
        try:
            if not self.handle.aio_command_completed(cookie):
                return False
            read = buf is not None and self.lines[i].startswith("read")
            answers[i] = "ok " + base64.b64encode(buf.to_bytearray()).decode() if read else "ok"
        except nbd.Error as e:
            answers[i] = self.broken(e)
        return True

    @staticmethod
    def broken(e):
        # libnbd's own word for requests whose connection broke; no server can say it.
        if e.errnum == errno.ENOTCONN:
            return "lost %s" % e.string
        return "error %d %s" % (e.errnum, e.string)

    def gone(self):
        if self.handle is None:
            return "not connected"
        if self.handle.aio_is_dead() or self.handle.aio_is_closed():
            return "the connection broke"
        return ""

    def poll(self):
        """Waits for something to happen; false when the time is over."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            return False
        try:
            self.handle.poll(max(1, int(left * 1000)))
        except nbd.Error:
            pass  # what broke is seen at each request
        return True

    def run(self):
        self.lines = []
        for line in sys.stdin:
            if line.strip() != "go":
                self.lines.append(line)
                continue
            for answer in self.batch(self.lines):
                print(answer.replace("\n", " "))
            sys.stdout.flush()
            self.lines = []


Client().run()
