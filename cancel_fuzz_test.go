package tp

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/packet"
)

// FuzzCancels is any order of what concerns a call's end: pulls and pushes that come, on
// the reading goroutine or not, with ids that are used again; readers that are replaced;
// handlers that ask for their contexts; callers that give up; replies; the end of the connection.
// Each call whose caller has given up is told, whenever it asks, no other is, and nothing is
// remembered of calls that are over.
func FuzzCancels(f *testing.F) {
	f.Add([]byte{0x00, 0x40, 0x20, 0x60})                   // come, cancel, ask, reply
	f.Add([]byte{0x00, 0x20, 0x40, 0x60, 0x00, 0x20, 0x60}) // the id again
	f.Add([]byte{0x10, 0x80, 0x40, 0x20, 0x60})             // on the reading goroutine, which is replaced
	f.Add([]byte{0x10, 0x20, 0x60, 0x40, 0x01, 0x21, 0xa0}) // a cancel that is late; the end
	f.Add([]byte{0x00, 0x00, 0x01, 0x40, 0xc0, 0x41, 0xa0, 0x20, 0x00})
	p := NewPeer(nil)
	f.Cleanup(func() { _ = p.Close() })
	f.Fuzz(func(t *testing.T, ops []byte) {
		type modelled struct {
			c     *call
			id    string
			pull  bool
			told  error // as the model has it
			asked context.Context
		}
		cn := &conn{peer: p}
		var live []*modelled
		var inline *modelled // at most one, and the reader does nothing else until it is over
		ended := false
		check := func(c *modelled) {
			if c.asked != nil {
				require.Equal(t, c.told != nil, c.asked.Err() != nil)
				require.Equal(t, c.told, context.Cause(c.asked))
			}
		}
		over := func(i int) {
			c := live[i]
			c.c.keep() // so that the exchange is not used again, and the context can be asked for
			c.c.release()
			require.Error(t, c.c.Context().Err())
			if c == inline {
				inline = nil
			}
			live = append(live[:i], live[i+1:]...)
		}
		for _, op := range ops {
			id := string('a' + rune(op&3))
			pick := func() int { return int(op&0xf) % len(live) }
			switch op >> 5 {
			case 0: // one comes
				if inline != nil {
					continue
				}
				c := &modelled{c: newReadCtx(cn), id: id, pull: op&8 == 0}
				c.c.keepId([]byte(id))
				if c.c.typ = packet.TypePull; !c.pull {
					c.c.typ = packet.TypePush
				}
				if op&0x10 != 0 {
					inline = c
				} else {
					c.c.enter()
					if ended {
						c.told = ErrSessionEnded
					}
				}
				live = append(live, c)
			case 1: // a handler asks for its context
				if len(live) == 0 {
					continue
				}
				c := live[pick()]
				c.asked = c.c.Context()
				if ended && c.told == nil {
					c.told = ErrSessionEnded
				}
				check(c)
			case 2, 6: // a caller gives up
				if inline != nil {
					continue
				}
				cn.heardCancel([]byte(id))
				for _, c := range live {
					if c.pull && c.id == id && c.told == nil {
						c.told = context.Canceled
					}
				}
			case 3, 7: // a reply
				if len(live) > 0 {
					over(pick())
				}
			case 4: // the reader is replaced
				if inline != nil {
					inline.c.enter()
					if ended && inline.told == nil {
						inline.told = ErrSessionEnded
					}
					inline = nil
				}
			case 5: // the connection ends
				cn.endCalls()
				for _, c := range live {
					if c.told == nil && (c != inline || c.asked != nil) {
						c.told = ErrSessionEnded
					}
				}
				ended = true
			}
			for _, c := range live {
				check(c)
			}
		}
		for len(live) > 0 {
			c := live[0]
			if c.asked == nil {
				if c.asked = c.c.Context(); ended && c.told == nil {
					c.told = ErrSessionEnded
				}
				check(c)
			}
			over(0)
		}
		require.Zero(t, cn.calls.Len())
	})
}
