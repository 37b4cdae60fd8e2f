package blockrepl

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/zeebo/xxh3"
)

// ErrIdentity says that a data directory belongs to another server or cluster,
// or that its identity file is damaged.
var ErrIdentity = errors.New("data directory is not this server's")

// identity is the file DATA/identity: written once, when the data directory is
// made. A directory that was lost and made anew is another incarnation, and no
// peer takes it for the old one.
type identity struct {
	Version     int                `json:"version"`
	Cluster     string             `json:"cluster"`
	Server      record.ServerID    `json:"server"`
	Incarnation record.Incarnation `json:"incarnation"`
	Created     time.Time          `json:"created"`
	Sum         string             `json:"sum"` // XXH3-64 of the JSON with an empty sum
}

const identityVersion = 1

// loadIdentity reads the identity or makes it.
func loadIdentity(o *Options) (identity, error) {
	path := filepath.Join(o.DataDir, "identity")
	b, err := readFile(o.Files, path)
	if errors.Is(err, fs.ErrNotExist) {
		return newIdentity(o, path)
	}
	if err != nil {
		return identity{}, fmt.Errorf("load identity: %w", err)
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return identity{}, fmt.Errorf("%w: %s is damaged: %w", ErrIdentity, path, err)
	}
	switch {
	case id.Version != identityVersion:
		return identity{}, fmt.Errorf("%w: %s has version %d, this program knows %d", ErrIdentity, path, id.Version, identityVersion)
	case id.Sum != id.sum() && !mutant.Is("ignore the sum of the identity") || id.Incarnation.IsZero():
		return identity{}, fmt.Errorf("%w: %s is damaged: its sum does not match", ErrIdentity, path)
	case id.Cluster != o.Cluster:
		return identity{}, fmt.Errorf("%w: %s is of cluster %q, the configuration says %q", ErrIdentity, o.DataDir, id.Cluster, o.Cluster)
	case id.Server != o.ID:
		return identity{}, fmt.Errorf("%w: %s is of server %s, the configuration says %s", ErrIdentity, o.DataDir, id.Server, o.ID)
	}
	return id, nil
}

func newIdentity(o *Options, path string) (identity, error) {
	id := identity{Version: identityVersion, Cluster: o.Cluster, Server: o.ID, Created: o.Wall().UTC()}
	id.Incarnation = record.Incarnation(draw16(o.Rand))
	id.Sum = id.sum()
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return identity{}, fmt.Errorf("encode identity: %w", err)
	}
	if err := writeFile(o.Files, path, append(b, '\n')); err != nil {
		return identity{}, fmt.Errorf("make identity: %w", err)
	}
	return id, nil
}

func (id identity) sum() string {
	id.Sum = ""
	id.Created = id.Created.UTC()
	b, err := json.Marshal(id)
	if err != nil {
		panic(fmt.Sprintf("blockrepl: bug: encode identity: %v", err))
	}
	return fmt.Sprintf("%016x", xxh3.Hash(b))
}

// draw16 draws 16 random bytes, not all zero.
func draw16(rand func() uint64) (b [16]byte) {
	binary.LittleEndian.PutUint64(b[:], rand())
	binary.LittleEndian.PutUint64(b[8:], rand()|1)
	return b
}
