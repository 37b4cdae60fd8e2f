// Package nbd serves block devices over the Network Block Device protocol.
//
// It knows the protocol and nothing of what is behind it: a program implements Exports (which names a client sees and
// opens) and Disk (reads, changes, flush), and gives both to a Server. It is built on the constants of go-nbd's
// pkg/protocol; the protocol is doc/proto.md of NetworkBlockDevice/nbd.
//
// # What it promises
//
//   - A reply is sent when the disk has said so, never before; a failed read is an error reply, never half a reply.
//   - While stopping, fencing or waiting nothing is answered with an error: the connection is held, or closed without a
//     reply (ErrHang, Client.Abort, Shutdown). An unanswered request is sent again by the client, an error is final.
//   - What a client sent before it closed the connection is not submitted any more once the close is known to the kernel.
//   - Whatever clients send or do not send, memory is bounded (Limits), the other clients are served, and only a broken
//     stream costs a client its connection.
//
// What it does not promise: any order between requests in flight (the protocol has none), durability (that is the
// disk's), or that a request whose connection was cut did not happen.
//
// # Goroutines
//
// Each connection has one goroutine that negotiates and then reads requests, one that writes replies, and a worker for
// each request that has ever waited at the same time as the others (at most Limits.MaxRequests). A server has one that
// looks for dead and stalled connections. Close and Shutdown end them all.
//
// The path of a request: input (many requests a system call) → check → disk (ReadNow and Submit in the reader, what waits
// in a worker) → outbox (many replies a system call).
//
// # Support
//
// Feature by feature against the specification, each with the test that proves it. A test of this package checks that the
// tests named here exist and that every flag the server can advertise has a line.
//
//	Handshake
//	  fixed newstyle, NBD_FLAG_NO_ZEROES  yes         TestGreetingOffersFixedNewstyleAndNoZeroes
//	  oldstyle negotiation                no          deprecated by the specification
//	  NBD_OPT_EXPORT_NAME                 yes         TestExportNameOpensForOldClients
//	  NBD_OPT_ABORT                       yes         TestAbortIsAcknowledged
//	  NBD_OPT_LIST                        yes         TestListTellsWhatTheClientMaySee
//	  NBD_OPT_STARTTLS                    yes         TestTLSCarriesASessionAndNamesTheClient
//	  NOTLS, SELECTIVETLS, FORCEDTLS      yes         TestTLSOffRefusesStartTLS, TestAllowedTLSIsTheClientsChoice, TestRequiredTLSRevealsNothingBefore
//	  NBD_OPT_INFO                        yes         TestInfoTellsWhatIsAskedAndOpensNothing
//	  NBD_OPT_GO                          yes         TestGoAfterRefusedGo
//	  NBD_INFO_NAME, _DESCRIPTION         yes         TestInfoTellsWhatIsAskedAndOpensNothing
//	  NBD_INFO_BLOCK_SIZE                 yes         TestBlockSizesAreToldUnaskedWhenNotTheDefault
//	  NBD_OPT_STRUCTURED_REPLY            yes         TestFlagsAreThoseThatAreTrue
//	  NBD_OPT_LIST_META_CONTEXT           yes         TestMetaContextQueries
//	  NBD_OPT_SET_META_CONTEXT            yes         TestMetaContextSelectionIsForOneExport
//	  base:allocation                     yes         TestBlockStatusTellsHolesAndData
//	  other metadata contexts             no          ignored in queries, as asked for
//	  NBD_OPT_EXTENDED_HEADERS            no          TestUnknownOptionIsUnsupported
//	  the default export (empty name)     by Exports  TestEmptyNameIsTheOnlyExport
//	Transmission
//	  NBD_CMD_READ, simple reply          yes         TestReadGivesWhatWasWritten
//	  NBD_CMD_READ, structured reply      yes         TestReadGivesWhatWasWritten
//	  NBD_REPLY_TYPE_OFFSET_HOLE          yes         TestZeroesAreReadAsHoles
//	  NBD_REPLY_TYPE_ERROR_OFFSET         yes         TestReadErrorTellsItsOffset
//	  NBD_FLAG_SEND_DF                    yes         TestDFReadIsOneChunkWithoutHoles
//	  NBD_CMD_WRITE                       yes         TestByteWriteKeepsItsNeighbours
//	  NBD_CMD_DISC                        yes         TestDisconnectAnswersWhatWasBegun
//	  NBD_FLAG_SEND_FLUSH                 yes         TestFlagsOfChangesReachTheDisk
//	  NBD_FLAG_SEND_FUA                   yes         TestFlagsOfChangesReachTheDisk
//	  NBD_FLAG_SEND_TRIM                  yes         TestZeroesAndTrimReadBackAsZeroes
//	  NBD_FLAG_SEND_WRITE_ZEROES          yes         TestZeroesAndTrimReadBackAsZeroes
//	  a whole device in one of these      yes         TestZeroOfWholeDeviceIsOneRequest
//	  NBD_CMD_FLAG_NO_HOLE                yes         TestFlagsOfChangesReachTheDisk
//	  NBD_FLAG_SEND_FAST_ZERO             by Info     TestErrorsOfTheDiskAreAnswered
//	  NBD_FLAG_SEND_CACHE                 yes         TestFlagsOfChangesReachTheDisk
//	  NBD_CMD_BLOCK_STATUS, REQ_ONE       yes         TestBlockStatusTellsHolesAndData
//	  NBD_FLAG_CAN_MULTI_CONN             by Info     TestMultiConnFlushCoversAllConnections
//	  NBD_FLAG_READ_ONLY                  by Info     TestReadOnlyExportRefusesChanges
//	  NBD_FLAG_ROTATIONAL                 by Info     TestFlagsAreThoseThatAreTrue
//	  NBD_FLAG_SEND_RESIZE                no          experimental in the specification
//	  payloads up to 32 MiB               yes         TestLargestPayload
//	  byte-granular requests              yes         TestReadGivesWhatWasWritten
//	  a minimum block size                by Info     TestMinimumBlockSizeIsEnforced
//	  replies in any order                yes         TestRequestsAreAnsweredInAnyOrder
//	  the errnos of the specification     yes         TestRefusedRequestsLeaveTheConnectionAlive
//	  NBD_ESHUTDOWN, _REP_ERR_SHUTDOWN    never sent  TestShutdownThatMayNotWaitDropsWithoutReply
//
// A request of length 0 is answered with EINVAL (the specification leaves it open). A READ longer than the maximum payload
// is answered with EOVERFLOW if structured replies are negotiated, else with EINVAL. FUA is accepted on every command, as
// the specification asks, and ignored where nothing is written.
package nbd
