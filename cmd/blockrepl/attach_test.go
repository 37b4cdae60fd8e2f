package main

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestAttachNegotiatesWithAServer(t *testing.T) {
	dir := t.TempDir()
	notify, next := notifySocket(t)
	door := Addr("unix:" + filepath.Join(dir, "nbd.sock"))
	s := startChild(t, []string{"NOTIFY_SOCKET=" + notify}, "blockrepl", "serve", "--cluster", "lab", "--id", "a", "--data", filepath.Join(dir, "data"),
		"--nbd", string(door), "--peers", "127.0.0.1:0", "--admin", "unix:"+filepath.Join(dir, "admin.sock"), "--volume", "vol0 size=1MiB")
	if got := next(); got != "READY=1" {
		t.Fatalf("message %q", got)
	}
	conn, err := dialNBD(t.Context(), door, "vol0?client=db1&token=7", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if conn.info.size != 1<<20 || conn.info.readOnly() {
		t.Errorf("export: %+v, want 1 MiB, writable", conn.info)
	}
	reader, err := dialNBD(t.Context(), door, "vol0?client=db2&token=8&readonly", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if !reader.info.readOnly() {
		t.Error("what was asked for as read-only is writable")
	}
	if _, err := dialNBD(t.Context(), door, "vol1", time.Second); err == nil || !strings.Contains(err.Error(), "no such volume") {
		t.Errorf("unknown volume: %v", err)
	}
	conn.socket.Close()
	reader.socket.Close()
	if code := s.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("SIGTERM: exit %d", code)
	}
}

// A server's answer to GO, and what the operator reads.
func TestAttachSaysWhatToDoAboutARefusal(t *testing.T) {
	be := binary.BigEndian
	reply := func(kind uint32, data string) []byte {
		b := be.AppendUint64(nil, nbdReplyMagic)
		b = be.AppendUint32(be.AppendUint32(b, nbdOptGo), kind)
		return append(be.AppendUint32(b, uint32(len(data))), data...)
	}
	endless := bytes.Repeat(reply(nbdRepInfo, "xx"), maxNBDReplies)
	for _, tt := range []struct {
		name, greeting string
		answer         []byte
		want           string
	}{
		{"TLS", nbdInitMagic, reply(nbdRepTLSRequired, ""), "wants TLS, which the kernel's driver does not speak: use a tunnel"},
		{"unknown volume", nbdInitMagic, reply(nbdRepUnknown, "x"), "no such volume"},
		{"another error", nbdInitMagic, reply(nbdRepErrorBit+2, "no\nway"), `refused (NBD error 2): "no\nway"`},
		{"no size", nbdInitMagic, reply(nbdRepAck, ""), "did not say the export's size"},
		{"a huge answer", nbdInitMagic, reply(nbdRepInfo, strings.Repeat("x", maxNBDReply+1)), "are read"},
		{"answers without end", nbdInitMagic, endless, "without end"},
		{"not NBD", "HTTP/1.1 400 Bad Request", nil, "not an NBD server"},
		{"closed", nbdInitMagic, nil, "read answer"},
	} {
		client := &scripted{in: bytes.NewReader(append(be.AppendUint16([]byte(tt.greeting), 3), tt.answer...))}
		if _, err := negotiateNBD(client, "vol0"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// scripted is a server that says its part whatever it hears.
type scripted struct{ in *bytes.Reader }

func (s *scripted) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s *scripted) Write(b []byte) (int, error) { return len(b), nil }
