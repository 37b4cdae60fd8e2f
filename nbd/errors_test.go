package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/blockrepl/blockrepl/nbd"
	"github.com/blockrepl/blockrepl/nbd/internal/proto"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// Every refused request is answered with the errno of the specification, its payload skipped, and the next one served.
func TestRefusedRequestsLeaveTheConnectionAlive(t *testing.T) {
	eachSession(t, func(t *testing.T, c *nbdtest.Client, d *nbdtest.MemDisk) {
		tooLong := proto.EINVAL
		status, df := proto.EINVAL, proto.EINVAL
		if c.Structured {
			tooLong, status, df = proto.EOVERFLOW, 0, 0
		}
		payload := func(n int) []byte { return make([]byte, n) }
		for _, tc := range []struct {
			name string
			r    nbdtest.Request
			want uint32
		}{
			{"read at the end", nbdtest.Request{Cmd: proto.CmdRead, Off: diskSize, Length: 1}, proto.EINVAL},
			{"read across the end", nbdtest.Request{Cmd: proto.CmdRead, Off: diskSize - 4096, Length: 8192}, proto.EINVAL},
			{"read at 2^63", nbdtest.Request{Cmd: proto.CmdRead, Off: 1 << 63, Length: 4096}, proto.EINVAL},
			{"read that overflows", nbdtest.Request{Cmd: proto.CmdRead, Off: 1<<64 - 1, Length: 4096}, proto.EINVAL},
			{"read of nothing", nbdtest.Request{Cmd: proto.CmdRead}, proto.EINVAL},
			{"read too long", nbdtest.Request{Cmd: proto.CmdRead, Length: 32<<20 + 1}, tooLong},
			{"read of 2^32-1", nbdtest.Request{Cmd: proto.CmdRead, Length: 1<<32 - 1}, tooLong},
			{"read with NO_HOLE", nbdtest.Request{Cmd: proto.CmdRead, Flags: proto.CmdFlagNoHole, Length: 512}, proto.EINVAL},
			{"read with an unknown flag", nbdtest.Request{Cmd: proto.CmdRead, Flags: 1 << 7, Length: 512}, proto.EINVAL},
			{"read with DF", nbdtest.Request{Cmd: proto.CmdRead, Flags: proto.CmdFlagDF, Length: 512}, df},
			{"write at the end", nbdtest.Request{Cmd: proto.CmdWrite, Off: diskSize, Data: payload(1)}, proto.ENOSPC},
			{"write across the end", nbdtest.Request{Cmd: proto.CmdWrite, Off: diskSize - 4096, Data: payload(8192)}, proto.ENOSPC},
			{"write that overflows", nbdtest.Request{Cmd: proto.CmdWrite, Off: 1<<64 - 4096, Data: payload(8192)}, proto.ENOSPC},
			{"write of nothing", nbdtest.Request{Cmd: proto.CmdWrite}, proto.EINVAL},
			{"write too long", nbdtest.Request{Cmd: proto.CmdWrite, Data: payload(32<<20 + 1)}, proto.EINVAL},
			{"write with DF", nbdtest.Request{Cmd: proto.CmdWrite, Flags: proto.CmdFlagDF, Data: payload(512)}, proto.EINVAL},
			{"trim at the end", nbdtest.Request{Cmd: proto.CmdTrim, Off: diskSize, Length: 1}, proto.EINVAL},
			{"trim of nothing", nbdtest.Request{Cmd: proto.CmdTrim}, proto.EINVAL},
			{"zeroes across the end", nbdtest.Request{Cmd: proto.CmdWriteZeroes, Length: 1<<32 - 1}, proto.ENOSPC},
			{"zeroes with DF", nbdtest.Request{Cmd: proto.CmdWriteZeroes, Flags: proto.CmdFlagDF, Length: 1}, proto.EINVAL},
			{"cache across the end", nbdtest.Request{Cmd: proto.CmdCache, Off: diskSize - 1, Length: 2}, proto.EINVAL},
			{"cache with REQ_ONE", nbdtest.Request{Cmd: proto.CmdCache, Flags: proto.CmdFlagReqOne, Length: 2}, proto.EINVAL},
			{"flush with a length", nbdtest.Request{Cmd: proto.CmdFlush, Length: 1}, proto.EINVAL},
			{"flush with an offset", nbdtest.Request{Cmd: proto.CmdFlush, Off: 1}, proto.EINVAL},
			{"status beyond the end", nbdtest.Request{Cmd: proto.CmdBlockStatus, Off: diskSize, Length: 1}, proto.EINVAL},
			{"status", nbdtest.Request{Cmd: proto.CmdBlockStatus, Length: 4096}, status},
			{"unknown command", nbdtest.Request{Cmd: 8, Length: 4096}, proto.EINVAL},
			{"another unknown command", nbdtest.Request{Cmd: 0xffff}, proto.EINVAL},
		} {
			t.Run(tc.name, func(t *testing.T) {
				do(t, c, tc.r, tc.want)
				write(t, c, 4096, pattern(512, 7))
				if got := read(t, c, 4096, 512); !bytes.Equal(got, pattern(512, 7)) {
					t.Fatal("the stream is out of step afterwards")
				}
			})
		}
		if d.Allocs() != 0 {
			t.Errorf("%d buffers are still out", d.Allocs())
		}
	})
}

func TestReadOnlyExportRefusesChanges(t *testing.T) {
	d := nbdtest.NewMemDisk(nbd.Info{Size: diskSize, ReadOnly: true})
	c := attach(t, pipe(t, serveDisk(t, d), true), true)
	for _, r := range []nbdtest.Request{
		{Cmd: proto.CmdWrite, Data: pattern(70_000, 1)}, {Cmd: proto.CmdTrim, Length: 512}, {Cmd: proto.CmdWriteZeroes, Length: 512},
	} {
		do(t, c, r, proto.EPERM)
	}
	if got := read(t, c, 0, 4096); !bytes.Equal(got, make([]byte, 4096)) || d.Writes() != 0 {
		t.Fatal("the export was changed")
	}
}

func TestMinimumBlockSizeIsEnforced(t *testing.T) {
	d := nbdtest.NewMemDisk(nbd.Info{Size: diskSize, MinBlock: 512})
	c := attach(t, pipe(t, serveDisk(t, d), true), false)
	for _, r := range []nbdtest.Request{
		{Cmd: proto.CmdRead, Off: 1, Length: 512}, {Cmd: proto.CmdRead, Length: 511}, {Cmd: proto.CmdWrite, Off: 512, Data: pattern(100, 1)},
		{Cmd: proto.CmdTrim, Off: 256, Length: 512}, {Cmd: proto.CmdWriteZeroes, Length: 1},
	} {
		do(t, c, r, proto.EINVAL)
	}
	write(t, c, 512, pattern(512, 1))
}

func TestDiskErrorsBecomeTheErrnosOfTheSpecification(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want uint32
	}{
		{syscall.EPERM, proto.EPERM}, {syscall.EROFS, proto.EPERM}, {syscall.EACCES, proto.EPERM},
		{syscall.EIO, proto.EIO}, {errors.New("what else"), proto.EIO}, {syscall.ESHUTDOWN, proto.EIO},
		{syscall.ENOMEM, proto.ENOMEM}, {syscall.EINVAL, proto.EINVAL}, {syscall.EOVERFLOW, proto.EINVAL},
		{syscall.ENOSPC, proto.ENOSPC}, {syscall.EDQUOT, proto.ENOSPC}, {syscall.EFBIG, proto.ENOSPC},
		{syscall.ENOTSUP, proto.EINVAL}, {os.ErrDeadlineExceeded, proto.EIO},
	} {
		err := fmt.Errorf("write: %w", &nbd.OffsetError{Off: 5, Err: tc.err})
		if got := nbd.Errno(err, false); got != tc.want {
			t.Errorf("%v: errno %d, want %d", tc.err, got, tc.want)
		}
	}
	if got := nbd.Errno(nil, false); got != 0 {
		t.Errorf("no error: errno %d", got)
	}
}

func TestErrorsOfTheDiskAreAnswered(t *testing.T) {
	eachSession(t, func(t *testing.T, c *nbdtest.Client, d *nbdtest.MemDisk) {
		for _, tc := range []struct {
			op   string
			r    nbdtest.Request
			err  error
			want uint32
		}{
			{"read", nbdtest.Request{Cmd: proto.CmdRead, Length: 4096}, syscall.EIO, proto.EIO},
			{"read", nbdtest.Request{Cmd: proto.CmdRead, Length: 512 << 10}, syscall.EIO, proto.EIO},
			{"read", nbdtest.Request{Cmd: proto.CmdRead, Length: 4 << 20}, syscall.EIO, proto.EIO},
			{"write", nbdtest.Request{Cmd: proto.CmdWrite, Data: pattern(4096, 1)}, syscall.ENOSPC, proto.ENOSPC},
			{"trim", nbdtest.Request{Cmd: proto.CmdTrim, Length: 4096}, syscall.EIO, proto.EIO},
			{"write zeroes", nbdtest.Request{Cmd: proto.CmdWriteZeroes, Length: 4096}, syscall.ENOTSUP, proto.EINVAL},
			{"write zeroes", nbdtest.Request{Cmd: proto.CmdWriteZeroes, Flags: proto.CmdFlagFastZero, Length: 4096}, syscall.ENOTSUP, proto.ENOTSUP},
			{"flush", nbdtest.Request{Cmd: proto.CmdFlush}, syscall.EIO, proto.EIO},
			{"cache", nbdtest.Request{Cmd: proto.CmdCache, Length: 4096}, syscall.EIO, proto.EIO},
		} {
			d.SetFault(nbdtest.FailNth(tc.op, 1, tc.err))
			if rep := do(t, c, tc.r, tc.want); c.Structured && tc.op == "read" && !rep.Located {
				t.Errorf("%s: the error says no offset", tc.op)
			}
			do(t, c, tc.r, 0) // the second call succeeds, on the same connection
		}
		if c.Structured {
			d.SetFault(nbdtest.FailNth("extents", 1, syscall.EIO))
			do(t, c, nbdtest.Request{Cmd: proto.CmdBlockStatus, Length: 4096}, proto.EIO)
			do(t, c, nbdtest.Request{Cmd: proto.CmdBlockStatus, Length: 4096}, 0)
		}
	})
}

func TestReadErrorTellsItsOffset(t *testing.T) {
	d := memDisk()
	c := attach(t, pipe(t, serveDisk(t, d), true), true)
	for _, tc := range []struct{ at, want int64 }{{5000, 5000}, {4096, 4096}, {1, 4096}, {-1, 4096}, {8192, 4096}} {
		d.SetFault(func(context.Context, nbdtest.Call) error { return &nbd.OffsetError{Off: tc.at, Err: nbdtest.ErrDisk} })
		rep := do(t, c, nbdtest.Request{Cmd: proto.CmdRead, Off: 4096, Length: 4096}, proto.EIO)
		if !rep.Located || rep.ErrOff != uint64(tc.want) {
			t.Errorf("the disk failed at %d: the client was told %d (%v), want %d", tc.at, rep.ErrOff, rep.Located, tc.want)
		}
	}
}

// While stopping or fencing no request is answered with an error: the connection ends instead.
func TestHangClosesTheConnectionWithoutReply(t *testing.T) {
	for _, err := range []error{nbd.ErrHang, fmt.Errorf("demoted: %w", nbd.ErrHang), context.Canceled, context.DeadlineExceeded} {
		for _, instant := range []bool{false, true} {
			for _, r := range []nbdtest.Request{
				{Cmd: proto.CmdRead, Length: 4096}, {Cmd: proto.CmdRead, Length: 512 << 10}, {Cmd: proto.CmdWrite, Data: pattern(4096, 1)},
				{Cmd: proto.CmdFlush}, {Cmd: proto.CmdTrim, Length: 512}, {Cmd: proto.CmdBlockStatus, Length: 512},
			} {
				d := memDisk()
				d.SetFault(func(context.Context, nbdtest.Call) error { return err })
				var served nbdtest.Informed = d
				if instant {
					served = nbdtest.Instant{MemDisk: d}
				}
				c := attach(t, pipe(t, serveDisk(t, served), true), true)
				if rep, e := c.Do(r); e == nil || isTimeout(e) {
					t.Fatalf("%v to %+v: reply %+v, %v, want a closed connection", err, brief(r), rep, e)
				}
				await(t, "the disk is closed", func() bool { return d.Closed() == 1 })
				if d.Allocs() != 0 {
					t.Errorf("%d buffers are still out", d.Allocs())
				}
			}
		}
	}
}

func TestRefusalsAreLoggedWithTheRichErrorAtABoundedRate(t *testing.T) {
	var lines logLines
	d := memDisk()
	s := serve(t, nbd.Options{Exports: nbdtest.Exports{"disk": d}, Logger: slog.New(slog.NewTextHandler(&lines, nil))})
	c := attach(t, pipe(t, s, true), true)
	d.SetFault(nbdtest.FailNth("write", 1, errors.New("sector 7 is rotten")))
	do(t, c, nbdtest.Request{Cmd: proto.CmdWrite, Off: 512, Data: pattern(512, 1)}, proto.EIO)
	for range 1000 {
		do(t, c, nbdtest.Request{Cmd: proto.CmdRead, Off: diskSize, Length: 512}, proto.EINVAL)
	}
	got := lines.String()
	if !strings.Contains(got, "sector 7 is rotten") || !strings.Contains(got, "off=512") {
		t.Errorf("the log does not tell what happened:\n%s", got)
	}
	if n := strings.Count(got, "request refused"); n < 5 || n > 100 {
		t.Errorf("1001 refusals made %d log lines", n)
	}
}
