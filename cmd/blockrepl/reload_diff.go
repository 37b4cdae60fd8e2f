package main

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// leftOver is what a configuration asks for and a running server does not do.
type leftOver struct {
	restart []string // keys that are read at the start only
	command []string // what a volume has of its own, with the command that changes it
	created []string // likewise, and nothing changes it
}

// warn names all of it in one line.
func (l *leftOver) warn(log *slog.Logger) {
	var args []any
	if len(l.restart) > 0 {
		args = append(args, "need_restart", strings.Join(l.restart, ", "))
	}
	if len(l.command) > 0 {
		args = append(args, "by_command", strings.Join(l.command, "; "))
	}
	if len(l.created) > 0 {
		args = append(args, "as_created", strings.Join(l.created, ", "))
	}
	if len(args) > 0 {
		log.Warn("not all of the configuration is in force", args...)
	}
}

// outstandingWait bounds how long volumes may take to say what they have.
const outstandingWait = 2 * time.Second

// outstanding compares a configuration with what is in force: running, and what
// server's volumes have of their own.
func outstanding(ctx context.Context, running, next *Config, server *blockrepl.Server) leftOver {
	ctx, cancel := context.WithTimeout(ctx, outstandingWait)
	defer cancel()
	var l leftOver
	l.restart = differing("", reflect.ValueOf(*running), reflect.ValueOf(*next))
	if running.NBDTLS.Mode != next.NBDTLS.Mode {
		l.restart = append(l.restart, "nbd_tls")
	}
	if (running.PeerTLS.Cert == "") != (next.PeerTLS.Cert == "") {
		l.restart = append(l.restart, "peer_tls")
	}
	was, will := running.own(), next.own()
	for _, v := range will {
		if i := indexOf(was, v.Name); i >= 0 {
			l.volume(running.Data, was[i], v, ownState(ctx, server, v.Name))
		} else {
			l.restart = append(l.restart, "volume."+v.Name)
		}
	}
	for _, v := range was {
		if indexOf(will, v.Name) < 0 {
			l.restart = append(l.restart, "volume."+v.Name)
		}
	}
	return l
}

// comparedByHand are the keys that are compared by hand, or change at once.
var comparedByHand = []string{"nbd_tls", "peer_tls", "volume", "log_level"}

// differing gives the keys of two tables whose values differ.
func differing(prefix string, a, b reflect.Value) (keys []string) {
	for i := range a.NumField() {
		key := a.Type().Field(i).Tag.Get("toml")
		switch {
		case key == "" || prefix == "" && slices.Contains(comparedByHand, key):
		case a.Field(i).Kind() == reflect.Struct:
			keys = append(keys, differing(prefix+key+".", a.Field(i), b.Field(i))...)
		case !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
			keys = append(keys, prefix+key)
		}
	}
	return keys
}

func indexOf(list []VolumeConfig, name string) int {
	return slices.IndexFunc(list, func(v VolumeConfig) bool { return v.Name == name })
}

// ownState is what the volume has since its creation, whatever was configured; nil
// when it has not been created, or does not answer.
func ownState(ctx context.Context, server *blockrepl.Server, name string) *blockrepl.VolumeStatus {
	v := server.Volume(name)
	if v == nil {
		return nil
	}
	st := v.Status(ctx)
	if len(st.Members) == 0 || st.Last == 0 {
		return nil
	}
	return &st
}

// volume compares one that both configurations have.
func (l *leftOver) volume(data string, was, next VolumeConfig, has *blockrepl.VolumeStatus) {
	key := func(name string) string { return "volume." + next.Name + "." + name }
	if has == nil { // at its creation it takes the word of the configuration that was read at the start
		l.restart = append(l.restart, differing("volume."+next.Name+".", reflect.ValueOf(was), reflect.ValueOf(next))...)
		return
	}
	if was.imagePath(data) != next.imagePath(data) {
		l.restart = append(l.restart, key("image"))
	}
	if size := int64(next.Size); size > has.SizeBytes {
		l.command = append(l.command, fmt.Sprintf("%s: blockrepl resize %s %s", key("size"), next.Name, next.Size))
	} else if size < has.SizeBytes {
		l.created = append(l.created, fmt.Sprintf("%s (has %s)", key("size"), Size(has.SizeBytes))) // it never shrinks
	}
	if next.OnDegraded != has.OnDegraded {
		l.command = append(l.command, fmt.Sprintf("%s: blockrepl set %s on_degraded=%s", key("on_degraded"), next.Name, next.OnDegraded))
	}
	if int64(next.Keep) != has.KeepBytes {
		l.command = append(l.command, fmt.Sprintf("%s: blockrepl set %s keep=%s", key("keep"), next.Name, next.Keep))
	}
	if !slices.Equal(slices.Sorted(slices.Values(next.Servers)), slices.Sorted(slices.Values(has.Members))) {
		l.created = append(l.created, fmt.Sprintf("%s (has %s)", key("servers"), strings.Join(has.Members, " ")))
	}
	if next.Shared != has.Shared {
		l.created = append(l.created, fmt.Sprintf("%s (has %v)", key("shared"), has.Shared))
	}
}
