package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/journal"
)

// Comes from: the configuration of a stopped server. Does: looks into its journal, which
// may take as long as a start does. Goes to: check. serve has no use for it: there each
// volume says the same of itself.

// checkSaved gives what keeps volumes that are there already from taking part: damage of
// what the journal keeps of them, and images that are missing or smaller than they are.
func (c *Config) checkSaved() []error {
	var logs []blockrepl.NamedLog
	j, err := journal.OpenReadOnly(journal.Options{Dir: blockrepl.JournalDir(c.Data)})
	if err == nil {
		defer j.Close() // nothing was written
		logs, err = blockrepl.NamedLogs(j)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // which the first start will make
		return []error{fmt.Errorf("data %s: %w", c.Data, err)}
	}
	return c.checkLogs(logs)
}

func (c *Config) checkLogs(logs []blockrepl.NamedLog) []error {
	var p problems
	nameless := false
	for _, n := range logs {
		if n.Name == n.Log.Volume().String() {
			nameless = true
			p.add(fmt.Errorf("a volume whose name is damaged, %s: %w; %s", n.Name, n.Err, damagedNext(true)))
		}
	}
	for _, v := range c.own() {
		want := blockrepl.Wanted{}
		i := slices.IndexFunc(logs, func(n blockrepl.NamedLog) bool { return n.Name == v.Name })
		if i < 0 && nameless {
			continue // it may be that one, and of any size
		}
		if i >= 0 {
			err := logs[i].Err
			next := damagedNext(false)
			if err == nil {
				want, err = blockrepl.WantedOf(logs[i].Log)
				next = damagedNext(true)
			}
			if err != nil {
				p.add(fmt.Errorf("volume %q: %w; %s", v.Name, err, next))
				continue
			}
		}
		path := v.imagePath(c.Data)
		err := image.Fits(path, cmp.Or(want.Size, int64(v.Size)), want.Grow)
		if err == nil && want.Size != 0 {
			err = blockrepl.ImageThere(path)
		}
		if errors.Is(err, image.ErrSize) || errors.Is(err, fs.ErrNotExist) { // checkImage tells all others
			p.add(fmt.Errorf("volume %q: image %s: %w", v.Name, path, err))
		}
	}
	return p
}
