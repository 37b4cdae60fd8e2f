package main

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// A client's token says which of its connections is the newer one, and the volume
// keeps the highest for good. A clock that was ahead once leaves one that no other
// connection of this client would pass for as long.

// oldTokenText is how a server says, to whoever connects with an older token, which
// is the newest. NBD has no other field for it: both sides are written here.
const oldTokenText = "token %d is older than %d"

// oldTokenRefusal is what the server tells the client, and logs.
func oldTokenRefusal(old *blockrepl.OldTokenError) error {
	return fmt.Errorf(oldTokenText+", with which client %q has written already", old.Token, old.Newest, old.Identity)
}

// oldTokenError is that refusal, as the client reads it.
type oldTokenError struct{ token, newest uint64 }

func (e *oldTokenError) Error() string {
	return fmt.Sprintf(oldTokenText+", with which a client of this name has written: it was attached later, or a clock was ahead", e.token, e.newest)
}

// readOldToken finds the refusal in a server's words; nil: it is another one.
func readOldToken(text string) *oldTokenError {
	e := &oldTokenError{}
	if i := strings.Index(text, "token "); i >= 0 {
		if n, err := fmt.Sscanf(text[i:], oldTokenText, &e.token, &e.newest); n == 2 && err == nil {
			return e
		}
	}
	return nil
}

// nextToken gives a connection a token above all of this program's, and, while the
// clock is right, of those before it.
func (a *attachment) nextToken() {
	a.token = max(a.token+1, uint64(time.Now().UnixNano()))
}

// raiseToken takes a token above the one that a server knows. Only a program that was
// just started may: by that it is the newest client of its name. One that merely
// reconnects may have been replaced meanwhile, and what its kernel sends again should not
// pass the writes of the one that replaced it: above a raised token it does not, before the
// clock is there. With a right clock the one that connects last wins (one name is one
// client, on one host).
func (a *attachment) raiseToken(err error) bool {
	var old *oldTokenError
	if a.attached || !errors.As(err, &old) || old.newest < a.token || old.newest > tokenRaiseMax {
		return false
	}
	// By the present milliseconds, not by one: of two programs that were told the same
	// number the later one is above, also above the other's connections.
	a.token = old.newest + uint64(time.Now().UnixMilli())
	fmt.Fprintf(a.out, "client %s has written with a token ahead of this host's clock (%s): going on above it\n",
		a.client, time.Unix(0, int64(old.newest)).UTC().Format(time.DateTime))
	return true
}

// tokenRaiseMax bounds what is raised: no clock gives more (the year 2262), and who
// names that as its token must not leave others without one.
const tokenRaiseMax = math.MaxInt64

// superseded says what an operator can do about a refused token.
func (a *attachment) superseded() string {
	return fmt.Sprintf("requests to %s wait. If this client shall go on, stop the others of its name (%s) and run this command again; "+
		"if that is refused too: umount, nbd-client -d %s, then with another --client and --takeover", a.device, a.client, a.device)
}
