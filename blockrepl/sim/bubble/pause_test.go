package bubble

import (
	"sync"
	"time"
)

// A pause is what SIGSTOP and SIGCONT, or a virtual machine that is not scheduled, do to
// a server: nothing of it goes on, its sockets fill, and when it wakes up it finds that
// time has passed, and acts on what it held for true.
//
// A bubble cannot stop a goroutine. So everything stands still that a paused process
// could be told from a running one by: bytes to and from it wait, requests reach it and
// its answers leave it only afterwards, no fsync of its log ends, its boot-time clock
// hardly moves, and jumps in the end. What it is not: its own timers fire meanwhile (and
// find, by that clock, that nothing is due), it applies what was committed before, and it
// always stops where its goroutines rest, never between two instructions.

// pause is one of a process.
type pause struct {
	at   time.Time
	over chan struct{}
	once sync.Once
}

// creep is how much slower the clock of a paused process goes. It must not stand still:
// a timer that is set for what is left until a moment, by that clock, would be set for
// the same again and again.
const creep = 1000

// pause stops the process for a while; false when it is paused already, or dead.
func (p *process) pause(d time.Duration) bool {
	z := &pause{at: time.Now(), over: make(chan struct{})}
	if p.dead() || !p.paused.CompareAndSwap(nil, z) {
		return false
	}
	p.m.w.net.pause(p.m.name, true)
	p.disk.hung.Store(max(p.disk.hung.Load(), z.at.Add(d).UnixNano()))
	if p.dead() { // it died at this moment
		p.resume()
	}
	return true
}

// resume ends a pause, if there is one.
func (p *process) resume() {
	z := p.paused.Load()
	if z == nil {
		return
	}
	z.once.Do(func() {
		p.m.w.net.pause(p.m.name, false)
		p.paused.Store(nil)
		close(z.over)
	})
}

// awake waits until the process is not paused.
func (p *process) awake() {
	if z := p.paused.Load(); z != nil {
		<-z.over
	}
}

// whenAwake runs f at once, or when the pause ends.
func (p *process) whenAwake(f func()) {
	if p.paused.Load() == nil {
		f()
		return
	}
	go func() {
		p.awake()
		f()
	}()
}

// elapsed is how far the boot-time clock has come since begin.
func (p *process) elapsed(begin time.Time) time.Duration {
	if z := p.paused.Load(); z != nil {
		return z.at.Sub(begin) + time.Since(z.at)/creep
	}
	return time.Since(begin)
}
