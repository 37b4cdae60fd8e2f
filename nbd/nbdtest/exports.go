// Package nbdtest has what tests and benchmarks of an NBD server need: a small strict client, a disk in memory that fails
// and waits on command, a plain file as a disk, and exports to serve them.
package nbdtest

import (
	"context"
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/nbd"
)

// Informed is a disk that can describe itself.
type Informed interface {
	nbd.Disk
	Info() nbd.Info
}

// Exports serves disks by name. The empty name means the only one.
type Exports map[string]Informed

// List implements nbd.Exports.
func (e Exports) List(context.Context, *nbd.Client) ([]string, error) {
	var names []string
	for n := range e {
		names = append(names, n)
	}
	slices.Sort(names)
	return names, nil
}

// Describe implements nbd.Exports.
func (e Exports) Describe(_ context.Context, _ *nbd.Client, name string) (nbd.Info, error) {
	_, info, err := e.find(name)
	return info, err
}

// Open implements nbd.Exports.
func (e Exports) Open(_ context.Context, _ *nbd.Client, name string) (nbd.Disk, nbd.Info, error) {
	return e.find(name)
}

func (e Exports) find(name string) (nbd.Disk, nbd.Info, error) {
	if name == "" && len(e) == 1 {
		for only := range e {
			name = only
		}
	}
	d, ok := e[name]
	if !ok {
		return nil, nbd.Info{}, fmt.Errorf("export %q: %w", name, nbd.ErrUnknownExport)
	}
	info := d.Info()
	info.Name = name
	return d, info, nil
}
