// Package proto names the numbers of the NBD protocol.
//
// Where go-nbd's pkg/protocol has a constant it is used; the rest (most option replies, every structured reply, most
// commands and flags) is added here from the specification (doc/proto.md of NetworkBlockDevice/nbd, section "Values").
// Server and test client share these numbers and nothing else: each encodes and decodes by itself, so that a mistake in
// one does not hide in the other. All integers on the wire are big-endian.
package proto

import "github.com/pojntfx/go-nbd/pkg/protocol"

// Magic numbers.
const (
	MagicInit       = protocol.NEGOTIATION_MAGIC_OLDSTYLE // "NBDMAGIC"
	MagicOption     = protocol.NEGOTIATION_MAGIC_OPTION   // "IHAVEOPT"
	MagicOptReply   = protocol.NEGOTIATION_MAGIC_REPLY
	MagicRequest    = protocol.TRANSMISSION_MAGIC_REQUEST
	MagicSimple     = protocol.TRANSMISSION_MAGIC_REPLY
	MagicStructured = uint32(0x668e33ef)
)

// Sizes of the fixed parts, in bytes.
const (
	GreetingLen        = 8 + 8 + 2             // magic, magic, handshake flags
	ClientFlagsLen     = 4                     //
	OptionLen          = 8 + 4 + 4             // magic, option, length
	OptReplyLen        = 8 + 4 + 4 + 4         // magic, option, type, length
	RequestLen         = 4 + 2 + 2 + 8 + 8 + 4 // magic, flags, type, cookie, offset, length
	SimpleLen          = 4 + 4 + 8             // magic, error, cookie
	ChunkLen           = 4 + 2 + 2 + 8 + 4     // magic, flags, type, cookie, length
	ExportNameReplyLen = 8 + 2                 // size, flags
	ZeroesLen          = 124                   // after an EXPORT_NAME reply, unless NO_ZEROES
	StringMax          = 4096                  // longest string the specification allows
)

// Handshake flags (server) and client flags; the bits are the same.
const (
	FlagFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	FlagNoZeroes      = uint16(1 << 1)
)

// Options.
const (
	OptExportName      = uint32(1)
	OptAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	OptList            = protocol.NEGOTIATION_ID_OPTION_LIST
	OptPeekExport      = uint32(4) // withdrawn
	OptStartTLS        = uint32(5)
	OptInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	OptGo              = protocol.NEGOTIATION_ID_OPTION_GO
	OptStructuredReply = uint32(8)
	OptListMetaContext = uint32(9)
	OptSetMetaContext  = uint32(10)
	OptExtendedHeaders = uint32(11)
)

// Option replies.
const (
	RepAck         = protocol.NEGOTIATION_TYPE_REPLY_ACK
	RepServer      = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	RepInfo        = protocol.NEGOTIATION_TYPE_REPLY_INFO
	RepMetaContext = uint32(4)

	RepErrBit           = uint32(1 << 31)
	RepErrUnsup         = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	RepErrPolicy        = RepErrBit | 2
	RepErrInvalid       = RepErrBit | 3
	RepErrPlatform      = RepErrBit | 4
	RepErrTLSReqd       = RepErrBit | 5
	RepErrUnknown       = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	RepErrShutdown      = RepErrBit | 7
	RepErrBlockSizeReqd = RepErrBit | 8
	RepErrTooBig        = RepErrBit | 9
)

// Information items of INFO and GO.
const (
	InfoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	InfoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	InfoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	InfoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags.
const (
	FlagHasFlags        = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	FlagReadOnly        = uint16(1 << 1)
	FlagSendFlush       = uint16(1 << 2)
	FlagSendFUA         = uint16(1 << 3)
	FlagRotational      = uint16(1 << 4)
	FlagSendTrim        = uint16(1 << 5)
	FlagSendWriteZeroes = uint16(1 << 6)
	FlagSendDF          = uint16(1 << 7)
	FlagCanMultiConn    = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	FlagSendResize      = uint16(1 << 9)
	FlagSendCache       = uint16(1 << 10)
	FlagSendFastZero    = uint16(1 << 11)
)

// Commands.
const (
	CmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	CmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	CmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	CmdFlush       = uint16(3)
	CmdTrim        = uint16(4)
	CmdCache       = uint16(5)
	CmdWriteZeroes = uint16(6)
	CmdBlockStatus = uint16(7)
)

// Command flags.
const (
	CmdFlagFUA      = uint16(1 << 0)
	CmdFlagNoHole   = uint16(1 << 1)
	CmdFlagDF       = uint16(1 << 2)
	CmdFlagReqOne   = uint16(1 << 3)
	CmdFlagFastZero = uint16(1 << 4)
)

// Chunks of a structured reply.
const (
	ChunkFlagDone = uint16(1 << 0)

	ChunkNone        = uint16(0)
	ChunkOffsetData  = uint16(1)
	ChunkOffsetHole  = uint16(2)
	ChunkBlockStatus = uint16(5)
	ChunkErrorBit    = uint16(1 << 15)
	ChunkError       = ChunkErrorBit | 1
	ChunkErrorOffset = ChunkErrorBit | 2
)

// Extent flags of base:allocation.
const (
	StateHole = uint32(1 << 0)
	StateZero = uint32(1 << 1)
)

// ContextAllocation is the one metadata context the specification defines.
const ContextAllocation = "base:allocation"

// Errors on the wire.
const (
	EPERM     = protocol.TRANSMISSION_ERROR_EPERM
	EIO       = uint32(5)
	ENOMEM    = uint32(12)
	EINVAL    = protocol.TRANSMISSION_ERROR_EINVAL
	ENOSPC    = uint32(28)
	EOVERFLOW = uint32(75)
	ENOTSUP   = uint32(95)
	ESHUTDOWN = uint32(108) // never sent: see package nbd
)
