package journal

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// logger passes what pebble says to slog: its chatter at Debug, its errors at most
// once in logEvery (a full disk makes hundreds a second), and its end to fatal.
type logger struct {
	log   *slog.Logger
	fatal func(error)

	mu         sync.Mutex
	last       time.Time
	suppressed int
}

var _ pebble.Logger = (*logger)(nil)

// Infof is part of pebble.Logger.
func (l *logger) Infof(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("pebble", "text", fmt.Sprintf(format, args...))
	}
}

// Errorf is part of pebble.Logger.
func (l *logger) Errorf(format string, args ...any) {
	l.mu.Lock()
	now := time.Now()
	if !l.last.IsZero() && now.Sub(l.last) < logEvery {
		l.suppressed++
		l.mu.Unlock()
		return
	}
	n := l.suppressed
	l.last, l.suppressed = now, 0
	l.mu.Unlock()
	l.log.Error("pebble", "err", fmt.Sprintf(format, args...), "suppressed", n)
}

// Fatalf is part of pebble.Logger. It never returns: a returning one once turned a
// failed sync into success.
func (l *logger) Fatalf(format string, args ...any) {
	l.die(fmt.Sprintf(format, args...))
}

func (l *logger) die(reason string) {
	err := &FatalError{reason}
	l.log.Error("journal cannot go on; the server must be restarted", "err", err)
	if l.fatal != nil {
		l.fatal(err)
	}
	panic(err)
}
