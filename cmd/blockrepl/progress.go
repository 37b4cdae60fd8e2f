package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

const (
	progressEvery = time.Second
	progressWait  = 5 * time.Second // for one answer; late ones are of no use
	eraseLine     = "\r\x1b[K"
)

// showProgress prints on a terminal how far the volume's verify or init is, on one
// line of stderr, until the given function is called, which may be called again.
func (a *admin) showProgress(c *cli.Context, volume string) (stop func()) {
	w := c.App.ErrWriter
	if !isTerminal(w) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(c.Context)
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				fmt.Fprint(w, eraseLine)
				return
			case <-tick.C:
				a.printProgress(ctx, w, volume)
			}
		}
	}()
	return sync.OnceFunc(func() {
		cancel()
		<-done
	})
}

func (a *admin) printProgress(ctx context.Context, w io.Writer, volume string) {
	ctx, cancel := context.WithTimeout(ctx, progressWait)
	defer cancel()
	var s blockrepl.Status
	if a.get(ctx, "/v1/status", &s) != nil {
		return // the command itself will say what is wrong
	}
	for _, v := range s.Volumes {
		if v.Name == volume && v.Work != nil {
			fmt.Fprint(w, eraseLine+workText(v.Work))
		}
	}
}

func workText(s *blockrepl.WorkStatus) string {
	text := fmt.Sprintf("%s: %s of %s", s.What, humanBytes(s.DoneBytes), humanBytes(s.TotalBytes))
	if s.DoneBytes > 0 {
		text += fmt.Sprintf(", %s left", humanDuration(time.Duration(s.LeftSeconds*float64(time.Second))))
	}
	return text
}
