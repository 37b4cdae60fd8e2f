package wire

// Type tells a frame's message. Zero is invalid; numbers are never reused.
type Type uint8

// The message types.
const (
	TypeGreeting      Type = 1
	TypePrepare       Type = 2
	TypePromise       Type = 3
	TypeJoin          Type = 4
	TypeJoined        Type = 5
	TypeAppend        Type = 6
	TypeAck           Type = 7
	TypeRequest       Type = 8
	TypeHeartbeat     Type = 9
	TypeHeartbeatAck  Type = 10
	TypeReadIndex     Type = 11
	TypeReadIndexOK   Type = 12
	TypeForward       Type = 13
	TypeRefuse        Type = 14
	TypeStateUpdate   Type = 15
	TypeStateAck      Type = 16
	TypeHandover      Type = 17
	TypeHandoverReady Type = 18
	TypeTakeOver      Type = 19
	TypeQuery         Type = 20
	TypeHashQuery     Type = 21
	TypeExtentData    Type = 22
	TypeLeaving       Type = 23
	TypeFetch         Type = 24
	TypeFetched       Type = 25
	TypeSizeQuery     Type = 26
	TypeSizeAnswer    Type = 27
)

func (*Greeting) messageType() Type      { return TypeGreeting }
func (*Prepare) messageType() Type       { return TypePrepare }
func (*Promise) messageType() Type       { return TypePromise }
func (*Join) messageType() Type          { return TypeJoin }
func (*Joined) messageType() Type        { return TypeJoined }
func (*Append) messageType() Type        { return TypeAppend }
func (*Ack) messageType() Type           { return TypeAck }
func (*Request) messageType() Type       { return TypeRequest }
func (*Heartbeat) messageType() Type     { return TypeHeartbeat }
func (*HeartbeatAck) messageType() Type  { return TypeHeartbeatAck }
func (*ReadIndex) messageType() Type     { return TypeReadIndex }
func (*ReadIndexOK) messageType() Type   { return TypeReadIndexOK }
func (*Forward) messageType() Type       { return TypeForward }
func (*Refuse) messageType() Type        { return TypeRefuse }
func (*StateUpdate) messageType() Type   { return TypeStateUpdate }
func (*StateAck) messageType() Type      { return TypeStateAck }
func (*Handover) messageType() Type      { return TypeHandover }
func (*HandoverReady) messageType() Type { return TypeHandoverReady }
func (*TakeOver) messageType() Type      { return TypeTakeOver }
func (*Query) messageType() Type         { return TypeQuery }
func (*HashQuery) messageType() Type     { return TypeHashQuery }
func (*ExtentData) messageType() Type    { return TypeExtentData }
func (*Leaving) messageType() Type       { return TypeLeaving }
func (*Fetch) messageType() Type         { return TypeFetch }
func (*Fetched) messageType() Type       { return TypeFetched }
func (*SizeQuery) messageType() Type     { return TypeSizeQuery }
func (*SizeAnswer) messageType() Type    { return TypeSizeAnswer }
