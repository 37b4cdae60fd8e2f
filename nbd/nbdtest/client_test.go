package nbdtest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

func chunk(flags, typ uint16, cookie uint64, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, proto.MagicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func simple(errno uint32, cookie uint64, data ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, proto.MagicSimple)
	b = binary.BigEndian.AppendUint32(b, errno)
	return append(binary.BigEndian.AppendUint64(b, cookie), data...)
}

func at(off uint64, rest ...byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, off), rest...)
}

// A test that passes proves nothing if its client takes whatever comes.
func TestStrictClientRefusesUnsoundReplies(t *testing.T) {
	read := Request{Cmd: proto.CmdRead, Off: 512, Length: 4}
	status := Request{Cmd: proto.CmdBlockStatus, Length: 512}
	const done = proto.ChunkFlagDone
	descriptors := func(id uint32, nums ...uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, id)
		for _, n := range nums {
			b = binary.BigEndian.AppendUint32(b, n)
		}
		return b
	}
	for _, tc := range []struct {
		name       string
		req        Request
		structured bool
		reply      []byte
		want       string // part of the error; "" = sound
	}{
		{"sound simple", read, false, simple(0, 1, 'd', 'a', 't', 'a'), ""},
		{"sound chunk", read, true, chunk(done, proto.ChunkOffsetData, 1, at(512, 'd', 'a', 't', 'a')...), ""},
		{"sound error", read, true, chunk(done, proto.ChunkErrorOffset, 1, append([]byte{0, 0, 0, 5, 0, 0}, at(513)...)...), ""},
		{"sound status", status, true, chunk(done, proto.ChunkBlockStatus, 1, descriptors(1, 512, 3)...), ""},
		{"wrong magic", read, false, make([]byte, 16), "magic"},
		{"unknown cookie", read, false, simple(0, 9), "unknown cookie"},
		{"simple read under structured", read, true, simple(5, 1), "simple reply"},
		{"chunk not negotiated", read, false, chunk(done, proto.ChunkNone, 1), "not negotiated"},
		{"no data", read, true, chunk(done, proto.ChunkNone, 1), "no data"},
		{"too little data", read, true, chunk(done, proto.ChunkOffsetData, 1, at(512, 'd')...), "bytes came"},
		{"outside the request", read, true, chunk(done, proto.ChunkOffsetData, 1, at(511, 'd')...), "outside"},
		{"overlap", read, true, append(chunk(0, proto.ChunkOffsetData, 1, at(512, 'd', 'a')...), chunk(done, proto.ChunkOffsetHole, 1, at(513, 0, 0, 0, 3)...)...), "overlaps"},
		{"empty data", read, true, chunk(done, proto.ChunkOffsetData, 1, at(512)...), "chunk type"},
		{"empty hole", read, true, chunk(done, proto.ChunkOffsetHole, 1, at(512, 0, 0, 0, 0)...), "hole"},
		{"none without done", read, true, chunk(0, proto.ChunkNone, 1), "chunk type"},
		{"unknown flag", read, true, chunk(2|done, proto.ChunkNone, 1), "flags"},
		{"unknown type", read, true, chunk(done, 77, 1), "chunk type"},
		{"another cookie in between", read, true, append(chunk(0, proto.ChunkOffsetData, 1, at(512, 'd')...), chunk(done, proto.ChunkNone, 2)...), "among"},
		{"error 0", read, true, chunk(done, proto.ChunkError, 1, 0, 0, 0, 0, 0, 0), "errno 0"},
		{"error outside", read, true, chunk(done, proto.ChunkErrorOffset, 1, append([]byte{0, 0, 0, 5, 0, 0}, at(516)...)...), "outside"},
		{"message too long", read, true, chunk(done, proto.ChunkError, 1, 0, 0, 0, 5, 0, 9), "message"},
		{"fragments under DF", Request{Cmd: proto.CmdRead, Flags: proto.CmdFlagDF, Length: 2}, true,
			append(chunk(0, proto.ChunkOffsetData, 1, at(0, 'd')...), chunk(done, proto.ChunkOffsetData, 1, at(1, 'd')...)...), "DF"},
		{"status of another context", status, true, chunk(done, proto.ChunkBlockStatus, 1, descriptors(2, 512, 0)...), "context"},
		{"empty descriptor", status, true, chunk(done, proto.ChunkBlockStatus, 1, descriptors(1, 0, 0)...), "descriptor"},
		{"descriptor behind the end", status, true, chunk(done, proto.ChunkBlockStatus, 1, descriptors(1, 512, 0, 512, 3)...), "behind"},
		{"two for REQ_ONE", Request{Cmd: proto.CmdBlockStatus, Flags: proto.CmdFlagReqOne, Length: 512}, true,
			chunk(done, proto.ChunkBlockStatus, 1, descriptors(1, 256, 0, 256, 3)...), "REQ_ONE"},
		{"status without a chunk", status, true, chunk(done, proto.ChunkNone, 1), "without a descriptor"},
		{"simple status", status, true, simple(0, 1), "simple reply"},
	} {
		client, server := net.Pipe()
		greeting := binary.BigEndian.AppendUint64(nil, proto.MagicInit)
		greeting = binary.BigEndian.AppendUint64(greeting, proto.MagicOption)
		served := make(chan error, 1)
		go func() {
			if _, err := server.Write(append(greeting, 0, 3)); err != nil {
				served <- err
				return
			}
			if _, err := io.ReadFull(server, make([]byte, proto.ClientFlagsLen+proto.RequestLen)); err != nil {
				served <- err
				return
			}
			_, err := server.Write(tc.reply)
			served <- err
		}()
		c, err := NewClient(client, FixedNewstyle)
		if err != nil {
			t.Fatal(err)
		}
		c.Structured, c.ContextID = tc.structured, 1
		_, err = c.Do(tc.req)
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: error %v, want one about %q", tc.name, err, tc.want)
		}
		_ = client.Close()
		<-served // an unsound reply need not be read to its end
	}
}

func TestAppendRequestTakesItsLengthFromTheData(t *testing.T) {
	b := AppendRequest(nil, 3, Request{Cmd: proto.CmdWrite, Off: 512, Data: []byte("abc")})
	if len(b) != proto.RequestLen+3 || binary.BigEndian.Uint32(b[24:]) != 3 || !bytes.HasSuffix(b, []byte("abc")) {
		t.Errorf("request % x", b)
	}
}
