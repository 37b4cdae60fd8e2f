package blockrepl

import (
	"fmt"
	"sync"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

// StateChange is one of the recent events of GET /v1/events.
type StateChange struct {
	Time   time.Time         `json:"time"`
	Volume string            `json:"volume"` // "" for the server
	Text   string            `json:"text"`
	Warn   bool              `json:"warn,omitempty"`
	Args   map[string]string `json:"args,omitempty"`
}

// events keeps the newest eventsMax state changes.
type events struct {
	mu   sync.Mutex
	list []StateChange
	next int // where the next one goes once the list is full
}

func (e *events) add(now time.Time, volume string, n *replica.Note) {
	c := StateChange{Time: now, Volume: volume, Text: n.Text, Warn: n.Warn}
	for i := 0; i+1 < len(n.Args); i += 2 {
		if c.Args == nil {
			c.Args = make(map[string]string, len(n.Args)/2)
		}
		c.Args[fmt.Sprint(n.Args[i])] = fmt.Sprint(n.Args[i+1])
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list) < eventsMax {
		e.list = append(e.list, c)
		return
	}
	e.list[e.next] = c
	e.next = (e.next + 1) % eventsMax
}

// recent gives them, the oldest first.
func (e *events) recent() []StateChange {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append(append([]StateChange(nil), e.list[e.next:]...), e.list[:e.next]...)
}
