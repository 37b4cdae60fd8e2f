package nbd

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

// What this package encodes and decodes by hand is what go-nbd's structures are on the wire.
func TestEncodingAgreesWithGoNBD(t *testing.T) {
	wire := func(v any) []byte {
		var b bytes.Buffer
		if err := binary.Write(&b, binary.BigEndian, v); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	req := wire(protocol.TransmissionRequestHeader{RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST, CommandFlags: 3,
		Type: protocol.TRANSMISSION_TYPE_REQUEST_WRITE, Handle: 0x0102030405060708, Offset: 1 << 40, Length: 4096})
	if len(req) != proto.RequestLen {
		t.Fatalf("a request is %d bytes, want %d", proto.RequestLen, len(req))
	}
	h, ok := parseHeader(req)
	if want := (header{flags: 3, cmd: proto.CmdWrite, cookie: 0x0102030405060708, off: 1 << 40, length: 4096}); !ok || h != want {
		t.Errorf("request %+v, %v, want %+v", h, ok, want)
	}
	if got, want := appendSimple(nil, 7, 22), wire(protocol.TransmissionReplyHeader{ReplyMagic: protocol.TRANSMISSION_MAGIC_REPLY, Error: 22, Handle: 7}); !bytes.Equal(got, want) {
		t.Errorf("simple reply % x, want % x", got, want)
	}
	c := &conn{}
	c.appendReply(proto.OptGo, proto.RepInfo, "ab")
	want := append(wire(protocol.NegotiationReplyHeader{ReplyMagic: protocol.NEGOTIATION_MAGIC_REPLY, ID: 7, Type: 3, Length: 2}), "ab"...)
	if !bytes.Equal(c.reply, want) {
		t.Errorf("option reply % x, want % x", c.reply, want)
	}
	c.reply = nil
	s := session{info: Info{Size: 1 << 30, MinBlock: 512, PreferredBlock: 4096, MaxPayload: 1 << 20}}
	c.appendInfos(proto.OptGo, &goRequest{}, &s)
	head := func(n int) []byte {
		return wire(protocol.NegotiationReplyHeader{ReplyMagic: protocol.NEGOTIATION_MAGIC_REPLY, ID: 7, Type: 3, Length: uint32(n)})
	}
	export := wire(protocol.NegotiationReplyInfo{Type: protocol.NEGOTIATION_TYPE_INFO_EXPORT, Size: 1 << 30, TransmissionFlags: s.transmissionFlags()})
	sizes := wire(protocol.NegotiationReplyBlockSize{Type: protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE, MinimumBlockSize: 512, PreferredBlockSize: 4096, MaximumBlockSize: 1 << 20})
	want = bytes.Join([][]byte{head(len(export)), export, head(len(sizes)), sizes}, nil)
	if !bytes.Equal(c.reply, want) {
		t.Errorf("information % x, want % x", c.reply, want)
	}
}
