package record

import "fmt"

// validate checks every field of a numbered record, one rule a sentence.
func (h *Header) validate() error {
	switch {
	case h.Seq == 0:
		return h.bad("number is zero")
	case h.Epoch.Counter == 0 || !h.Epoch.Server.valid():
		return h.bad("epoch is none or its server's id is invalid")
	case h.Volume.IsZero():
		return h.bad("volume is none")
	case h.Seq == 1 && h.Prev != 0:
		return h.bad("prev of number 1 is not zero")
	}
	return h.validateCommon()
}

// validateDraft checks a record that has no number yet.
func (h *Header) validateDraft() error {
	switch {
	case h.Seq != 0 || !h.Epoch.IsZero() || h.Prev != 0:
		return h.bad("a draft with number, epoch or prev")
	case h.Volume.IsZero():
		return h.bad("volume is none")
	}
	return h.validateCommon()
}

func (h *Header) validateCommon() error {
	switch {
	case h.Flags != 0:
		return h.bad("unknown flags")
	case !h.Origin.IsZero() && !h.Origin.valid():
		return h.bad("origin's id is invalid")
	}
	return h.validateKind()
}

// validateKind checks what each kind allows for extent, codec and payload.
func (h *Header) validateKind() error {
	if h.Offset < 0 || h.Length < 0 || h.Length > MaxSize || h.Offset > MaxSize-h.Length {
		return h.bad("extent out of bounds")
	}
	switch h.Kind {
	case KindWrite:
		if h.Length < 1 || h.Length > MaxPayload {
			return h.bad("length of a write")
		}
		return h.validateStored()
	case KindMembers, KindEpoch, KindMark:
		if h.Offset != 0 || h.Length > MaxState {
			return h.bad("extent of a record without data")
		}
		return h.validateStored()
	case KindZero, KindTrim:
		if h.Length < 1 {
			return h.bad("empty extent")
		}
	case KindResize:
		if h.Offset != 0 {
			return h.bad("offset of a resize")
		}
	default:
		return h.bad("unknown kind")
	}
	if h.Stored != 0 || h.Codec != CodecNone || h.PayloadSum != 0 {
		return h.bad("payload where none is allowed")
	}
	return nil
}

// validateStored checks the stored length: compression never grows a payload.
func (h *Header) validateStored() error {
	switch {
	case h.Codec > CodecZstd:
		return h.bad("unknown codec")
	case h.Codec == CodecNone && int64(h.Stored) != h.Length:
		return h.bad("stored length is not the length")
	case h.Codec != CodecNone && (h.Stored == 0 || int64(h.Stored) >= h.Length):
		return h.bad("compressed length is not below the length")
	}
	return nil
}

func (h *Header) bad(why string) error {
	return fmt.Errorf("%w: record %d (%s, %s, epoch %s, %d bytes at %d, %d stored, flags %x): %s",
		ErrCorrupt, h.Seq, h.Kind, h.Codec, h.Epoch, h.Length, h.Offset, h.Stored, h.Flags, why)
}

// valid reports whether id could have come from ParseServerID.
func (id ServerID) valid() bool {
	n := len(id)
	for n > 0 && id[n-1] == 0 {
		n--
	}
	for _, c := range id[:n] {
		if !validIDByte(c) {
			return false
		}
	}
	return n > 0
}
